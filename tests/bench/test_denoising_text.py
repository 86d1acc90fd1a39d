"""Comparing ways of decoding on text: judges say what they should, prompts can be parsed, and tables, pictures and records come out."""

from __future__ import annotations

import io
import json
from math import log
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.toy import toy_decoder
from paceline.bench.denoising_judges import Judge, continues, edit_distance, parses
from paceline.bench.denoising_pareto import DISTINCT, MEASURES, front, mark_unbeaten, plot_pareto, styles_of
from paceline.bench.denoising_questions import Question, code_prompts, marks, questions
from paceline.bench.denoising_report import report_text
from paceline.bench.denoising_text import TextSettings, fitting, numbers, open_text, text_rows
from paceline.core.errors import UsageError
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.zoo.denoise_course import MASK_ID
from paceline.zoo.denoiser import Denoising, Layout, new_denoiser, save_denoiser
from paceline.zoo.network import END_OF_TEXT_ID, PAD_ID
from paceline.zoo.prompts import held_out_prompts
from paceline.zoo.registry import MODELS_FOLDER
from paceline.zoo.tasks import arithmetic
from paceline.zoo.tokenizer import VOCABULARY, load_tokenizer

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": END_OF_TEXT_ID,
    "pad_token_id": PAD_ID,
}  # fmt: skip
METHODS = ("static", "static:per_step=4", "threshold:threshold=0,cache=dual", "static:attention=sparsed,sparse_tile=8,sparse_skip=0")
SETTINGS = TextSettings((8, 16), (1, 2), prompts=4, chars=200)


def written(folder: Path, layout: Layout) -> Path:
    """An untrained checkpoint with the pocket models' tokenizer."""
    kind = Denoising(layout, MASK_ID, 8)
    save_denoiser(new_denoiser(kind, SHAPE, 0), kind, folder)
    load_tokenizer(MODELS_FOLDER / "pocket-code").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "llada", "llada")


@pytest.fixture(scope="module")
def model(folder: Path) -> LLM:
    return open_text(folder)


@pytest.fixture(scope="module")
def pocket() -> LLM:
    return load("pocket-code", "none", device="cpu", kv_tokens=256)


def test_edits_are_counted() -> None:
    assert edit_distance([1, 2, 3], [1, 2, 3]) == 0
    assert edit_distance([1, 2, 3], [1, 3]) == pytest.approx(1 / 3)
    assert edit_distance([2, 3, 4, 5], [1, 2, 3, 4]) == pytest.approx(2 / 4)  # one off at both ends, though no place agrees
    assert edit_distance([], [1, 2]) == edit_distance([1, 2], []) == 1
    assert edit_distance([], []) == 0
    random = Random(0)
    for _ in range(50):
        mine, other = ([random.randrange(3) for _ in range(random.randrange(1, 8))] for _ in range(2))
        assert (
            edit_distance(mine, other)
            == edit_distance(other, mine)
            == pytest.approx(_by_recursion(mine, other) / max(len(mine), len(other)))
        )


def _by_recursion(mine: list[int], other: list[int]) -> int:
    if not mine or not other:
        return len(mine) + len(other)
    same = _by_recursion(mine[1:], other[1:]) + (mine[0] != other[0])
    return min(same, _by_recursion(mine[1:], other) + 1, _by_recursion(mine, other[1:]) + 1)


@pytest.mark.parametrize(
    "code", ["x = 1\n", "def f(a):\n", "class A:\n    def f(self):\n        return (1,\n", "try:\n    f()\n", 's = """one\n']
)
def test_code_that_might_go_on(code: str) -> None:
    assert parses(code)


@pytest.mark.parametrize("code", ["x = = 1\n", "def f(a:\n    return )\n", "  x = 1\ny = 2\n", "return return\n", "x = 1 2\n", "a\0b"])
def test_code_that_never_parses(code: str) -> None:
    assert not parses(code)


def test_the_line_that_a_limit_cut_is_left_out() -> None:
    prompt = "def f(a):\n"
    assert continues(prompt, "    return a\n    b = = ", ended=False)
    assert not continues(prompt, "    return a\n    b = = ", ended=True)
    assert not continues(prompt, "    return a", ended=False)  # nothing whole is left
    assert not continues(prompt, "\n\n", ended=False)
    assert not continues(prompt, "return a\n", ended=False)


def test_the_judge_sums_what_the_model_says(pocket: LLM) -> None:
    judge = Judge(pocket)
    prompt, answer = "import os\nimport ", "sys\n"
    given, said = judge.tokenizer.encode(prompt), judge.tokenizer.encode(answer)
    law = PlainPath(pocket.runner.decoder).all_logits([*given, *said]).log_softmax(-1)
    nats = -sum(float(law[len(given) - 1 + at, token]) for at, token in enumerate(said))
    assert judge.bits_per_byte(prompt, answer) == pytest.approx(nats / log(2) / len(answer))
    assert judge.bits_per_byte(prompt, "") is None
    likely, unlikely = (judge.bits_per_byte(prompt, text) for text in (answer, "){;;\n"))
    assert likely is not None
    assert unlikely is not None
    assert likely < unlikely
    judge.context = len(given) + len(said) - 2  # the beginning of the prompt goes first
    assert judge.bits_per_byte(prompt, answer) == pytest.approx(_cut(pocket, given[2:], said) / log(2) / len(answer))


def _cut(pocket: LLM, given: list[int], said: list[int]) -> float:
    law = PlainPath(pocket.runner.decoder).all_logits([*given, *said]).log_softmax(-1)
    return -sum(float(law[len(given) - 1 + at, token]) for at, token in enumerate(said))


def test_who_cannot_judge(model: LLM) -> None:
    with pytest.raises(UsageError, match="autoregressive"):
        Judge(model)
    with pytest.raises(UsageError, match="tokenizer"):
        Judge(load(toy_decoder(8, seed=0), "none", device="cpu", kv_tokens=8, pack=False))


def test_prompts_begin_with_a_statement_and_go_on_as_code() -> None:
    """So do the files they are from; most pieces of files that begin anywhere do not."""
    texts = code_prompts(12, 400)
    assert len(set(texts)) == 12
    assert all(parses(text) and len(text) <= 400 and text.count("\n") >= 3 for text in texts)
    assert sum(not parses(cut.prefix) for cut in held_out_prompts(24, 400, 400)) > 4
    with pytest.raises(UsageError, match="ask for fewer"):
        code_prompts(2, 50)
    kinds = [question.problem is None for question in questions(6, 400)]
    assert kinds == [False, True] * 3
    assert [question.problem is None for question in questions(3, 400)] == [False, True, False]


def test_marks(pocket: LLM) -> None:
    problem = arithmetic(Random(1))
    asked = [Question(problem.prompt, problem), Question("def f(a):\n"), Question(problem.prompt, problem), Question("def f(a):\n")]
    answers = [(problem.answer + "x", False), ("    return a\n", False), (" 0\n", True), (") = (\n", False)]
    found = marks(asked, answers, Judge(pocket))
    assert (found.solved, found.parses) == ((1.0, 0.0), (1.0, 0.0))
    assert len(found.bits) == 2
    assert found.bits[0] < found.bits[1]
    assert marks(asked, answers, None).bits == ()


def test_rows(model: LLM) -> None:
    told: list[tuple[str, int, int]] = []
    cells = list(text_rows(model, METHODS, SETTINGS, lambda *step: told.append(step)))
    assert all(len({(row["length"], row["batch"]) for row in cell}) == 1 for cell in cells)
    rows = [row for cell in cells for row in cell]
    assert [(row["length"], row["batch"], row["method"]) for row in rows] == [(n, b, m) for n in (8, 16) for b in (1, 2) for m in METHODS]
    assert [done for _, done, _ in told] == list(range(16))
    assert {turns for *_, turns in told} == {16}
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert 0 <= row["edit"] <= 1
        assert (row["solved"], row["identical_interval"][1]) == (0, max(row["identical_interval"]))
        assert row["bits"] > 0
        if row["method"] == "static":
            assert (row["identical"], row["edit"], row["speedup"]) == (1, 0, 1)
            assert row["forwards"] == row["length"]
    by = {(row["length"], row["batch"], row["method"]): row for row in rows}
    for length in (8, 16):
        assert by[length, 1, METHODS[2]]["forwards"] == 1
        assert by[length, 1, METHODS[1]]["forwards"] == length / 4
    assert any(row["identical"] < 1 for row in rows)


def test_answers_that_end_count_up_to_their_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose answers are shorter is not faster for what it leaves out."""
    monkeypatch.setattr("paceline.bench.denoising_text._timed", _timed)
    (rows,) = text_rows(open_text(folder), ("static", "threshold"), TextSettings((8,), (1,), prompts=2, chars=200, judge=""))
    assert [row["tokens"] for row in rows] == [16, 8]
    assert [row["tokens_per_second"] for row in rows] == [8, 4]
    assert [row["speedup"] for row in rows] == [1, 0.5]
    assert rows[0]["bits"] is None


def _timed(model: LLM, method: str, asked: Any, length: int, batch: int) -> tuple[float, Any]:
    short = method == "threshold"
    outputs = model.generate([[5, 6, 7]] * len(asked), max_tokens=length // 2 if short else length, ignore_eos=True)
    return 2.0, outputs


def test_the_front() -> None:
    points = [(1.0, 0.9), (2.0, 0.9), (3.0, 0.5), (2.5, 0.4), (0.5, 1.0), (3.0, 0.5)]
    assert front(points) == [4, 1, 2, 5]
    assert front([]) == []
    rows = [
        {
            "model": "m",
            "length": 8,
            "batch": 1,
            "method": name,
            "tokens_per_second": speed,
            "solved": worth,
            "parses": None,
            "bits": bits,
            "edit": 0.0,
        }
        for name, speed, worth, bits in (("a", 1.0, 0.9, 2.0), ("b", 2.0, 0.8, 1.0), ("c", 0.5, 0.7, 3.0))
    ]
    mark_unbeaten(rows)
    assert [row["unbeaten"] for row in rows] == [["solved"], ["solved", "bits", "edit"], []]


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_the_report(folder: Path, tmp_path: Path, layout: Layout) -> None:
    """Table, pictures and record; what a model refuses is named and left out."""
    source = folder if layout == "llada" else written(tmp_path / "sdar", "sdar")
    screen = io.StringIO()
    settings = TextSettings((8,), (1,), prompts=2, chars=200, judge="")
    rows = report_text(
        Console(file=screen, width=220),
        [str(source)],
        METHODS,
        settings,
        name="try",
        json=tmp_path / "try.json",
        pictures=tmp_path / "drawn",
    )
    refused = METHODS[2:] if layout == "sdar" else ()
    assert [row["method"] for row in rows] == [method for method in METHODS if method not in refused]
    assert all((method in screen.getvalue()) for method in METHODS)
    assert ("refuses" in screen.getvalue()) is bool(refused)
    (picture,) = (tmp_path / "drawn").iterdir()
    assert picture.name == f"try-{source.name}-pareto-batch-1.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "try.json").read_text())
    assert record["rows"] == json.loads(json.dumps(rows))
    assert record["settings"]["models"] == [source.name]


def test_nothing_to_draw(tmp_path: Path) -> None:
    row = {"model": "m", "length": 8, "batch": 1, "method": "static", "tokens_per_second": 1.0} | dict.fromkeys(
        measure.field for measure in MEASURES
    )
    with pytest.raises(UsageError, match="no row"):
        plot_pareto([row], tmp_path, "x")


def test_what_cannot_be_asked(model: LLM) -> None:
    with pytest.raises(UsageError, match="masked diffusion model"):
        open_text("pocket-code")
    with pytest.raises(UsageError, match="separated by commas"):
        numbers("64;128")
    for wrong in ({"lengths": ()}, {"batches": (0,)}, {"prompts": 1}, {"rounds": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            TextSettings(**wrong)  # type: ignore[arg-type]
    assert fitting(model, ["static", "lookahead", "static:block=0"]) == (["static"], ["lookahead", "static:block=0"])


def test_many_methods_look_like_what_they_are_made_of() -> None:
    """Few have looks and legends of their own; of many, rules share colours, caches marks, and sparse attention is an outline."""
    rules, caches = ("static", "threshold:threshold=0.8", "threshold", "factor"), ("none", "prefix", "dual", "dkv-decode")
    methods = []
    for rule in rules:
        for cache in caches:
            for attention in ("dense", "sparsed"):
                options = [f"cache={cache}"] if cache != "none" else []
                options += [f"attention={attention}"] if attention != "dense" else []
                methods.append(rule + (":" if options and ":" not in rule else "," if options else "") + ",".join(options))
    few = styles_of(methods[:DISTINCT])
    assert len({(style.colour, style.marker) for style in few.values()}) == DISTINCT
    assert [style.labels for style in few.values()] == [(method,) for method in methods[:DISTINCT]]
    many = styles_of(methods)
    assert len({style.colour for style in many.values()}) == 3
    assert len({style.marker for style in many.values()}) == len(caches)
    assert sum(style.hollow for style in many.values()) == len(methods) / 2
    assert many["threshold:threshold=0.8,cache=dual,attention=sparsed"].labels == ("threshold", "cache=dual", "attention=sparsed")
    assert many["static"].labels == ("static", "cache=none")
