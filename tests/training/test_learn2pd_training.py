"""Training a Learn2PD filter: the oracle arrives at the static answer and a filter learns what a position alone does not say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from paceline.bench.sort_reverse import ANSWER, MASK, SHAPE, Training, examples, train
from paceline.core.errors import CheckpointError, UsageError
from paceline.denoising.canvas import Flags
from paceline.denoising.guesses import Guesses
from paceline.denoising.learn2pd import Learned
from paceline.denoising.learn2pd_filter import Filter, FilterFacts
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.training import learn2pd_traces
from paceline.training.learn2pd import FilterJob, default_prompts, read_prompts, train_filter
from paceline.training.learn2pd_fit import FitOptions, fit, split
from paceline.training.learn2pd_traces import Traces, trace, traces
from paceline.zoo.denoiser import Denoising, new_denoiser, save_denoiser

BLOCK = 8
PROMPTS = [row.tolist() for row in examples(6, 3)[0]]


@pytest.fixture(scope="module")
def model() -> LLM:
    """Twenty steps of training: predictions are wrong often enough."""
    return load(train(Training(steps=20, sequences=300, batch=32, warm_up=5)), "static", device="cpu", kv_tokens=256, pack=False)


@pytest.fixture(scope="module")
def found(model: LLM) -> Traces:
    return trace(model, PROMPTS, ANSWER, BLOCK)


def test_the_oracle_needs_fewer_forwards(found: Traces) -> None:
    """That it arrives at the static answer is checked by `trace` itself."""
    assert found.static == ANSWER * len(PROMPTS)
    assert found.forwards < found.static
    assert found.features.shape == found.labels.shape == found.masked.shape == (found.forwards, BLOCK)
    assert ((found.features > 0) & (found.features <= 1)).all()


def test_blocks_end_right_or_overwritten(found: Traces) -> None:
    """A record whose block is new behind it was the last of its block."""
    fresh = np.asarray(found.masked.all(-1))
    last = np.append(fresh[1:], True)
    left_right = np.asarray((found.labels | ~found.masked).all(-1))
    assert (left_right | found.forced)[last].all()
    assert not left_right[~last].any()
    stuck = ~(found.labels & found.masked).any(-1)
    assert (stuck == found.forced).all()
    assert last.sum() == len(PROMPTS) * ANSWER // BLOCK


@dataclass(frozen=True, slots=True)
class Perfect(Filter):
    """A filter that knows the answer."""

    answer: tuple[int, ...] = ()

    def accepts(self, guesses: Guesses, low: int, threshold: float) -> Flags:
        return np.equal(guesses.tokens, np.array(self.answer)[guesses.positions])


def test_a_perfect_filter_is_the_oracle(model: LLM, found: Traces) -> None:
    """The decoding rule given true labels takes the oracle's forwards, where these were never forced and the surest was always right."""
    static = load(model, f"static:block={BLOCK}", device="cpu", kv_tokens=512)
    same = 0
    for number, prompt in enumerate(PROMPTS):
        mine = found.prompt == number
        still, right = found.masked[mine], found.labels[mine]
        surest = np.where(still, found.features[mine], -1).argmax(-1)
        answer = static.generate([prompt], max_tokens=ANSWER, ignore_eos=True)[0].canvas
        llm = load(model, f"static:block={BLOCK}", device="cpu", kv_tokens=512)
        known = Perfect((), FilterFacts("m", BLOCK), (*prompt, *answer))
        llm.engine.denoiser = replace(llm.engine.denoiser, rule=Learned(known, 0.5))
        (output,) = llm.generate([prompt], max_tokens=ANSWER, ignore_eos=True)
        if not found.forced[mine].any() and right[np.arange(len(right)), surest].all():
            same += 1
            assert output.canvas == answer
            assert output.stats.forwards == mine.sum()
    assert same > 0


def test_an_oracle_with_another_answer_is_noticed(model: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a recorder that never forces a stuck block would wait for ever, one that forces wrongly is caught."""

    def wrong(self, step, canvas, logits):  # type: ignore[no-untyped-def]
        key = tuple(int(token) for token in canvas.ids[: canvas.prompt])
        self.answers[key][canvas.low : canvas.high] = (self.answers[key][canvas.low : canvas.high] + 1) % 10
        self.records.setdefault(key, [])
        forced = 0 * logits
        for row, at in enumerate(range(canvas.low, canvas.high)):
            forced[row, self.answers[key][at]] = 1e4
        return forced

    monkeypatch.setattr(learn2pd_traces.Recorder, "logits", wrong)
    with pytest.raises(Exception, match="did not arrive at the static answer"):
        trace(model, PROMPTS[:2], ANSWER, BLOCK)


def test_batches_are_single_runs(model: LLM, found: Traces) -> None:
    alone = Traces.joined([trace(model, [prompt], ANSWER, BLOCK, first=number) for number, prompt in enumerate(PROMPTS)])
    np.testing.assert_array_equal(alone.labels, found.labels)
    np.testing.assert_array_equal(alone.prompt, found.prompt)
    np.testing.assert_allclose(alone.features, found.features, atol=1e-5)


def test_block_diffusion(tmp_path: Path) -> None:
    """Blocks are cut at multiples of their size: the first holds the rest of the prompt, the last reaches behind the answer."""
    kind = Denoising("sdar", MASK, 4)
    save_denoiser(new_denoiser(kind, {**SHAPE, "head_dim": 16, "num_key_value_heads": 4, "initializer_range": 0.4}, 1), kind, tmp_path)
    found = trace(load(tmp_path, dtype="float32", device="cpu", kv_tokens=256), PROMPTS[:3], 21, 4)
    assert found.features.shape[1] == 4
    last = np.append(np.asarray(found.masked[1:].sum(-1) >= found.masked[:-1].sum(-1)), True)
    assert ((found.labels | ~found.masked).all(-1) | found.forced)[last].all()
    assert set(found.masked[found.prompt == 0][0].tolist()) == {False, True}  # ten tokens: two of the third block are given


def test_traces_go_on_where_they_were(model: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    whole = traces(model, PROMPTS, ANSWER, BLOCK, "entropy", 2, tmp_path, done.append)
    assert done == [2, 4, 6]
    assert (whole.features <= 0).all()
    assert (whole.features[~whole.masked] == 0).all()
    (tmp_path / "traces-000002.npz").unlink()
    made: list[int] = []
    original = trace

    def counting(*arguments, **options):  # type: ignore[no-untyped-def]
        made.append(arguments[-1])
        return original(*arguments, **options)

    monkeypatch.setattr(learn2pd_traces, "trace", counting)
    again = traces(model, PROMPTS, ANSWER, BLOCK, "entropy", 2, tmp_path)
    assert made == [2]
    np.testing.assert_array_equal(again.features, whole.features)
    assert again.static == whole.static
    assert not list(tmp_path.glob("*.partial"))


def synthetic(prompts: int = 60, seed: int = 0) -> Traces:
    """Final if the neighbour's confidence is high: the position's own says little."""
    random = np.random.default_rng(seed)
    number = np.repeat(np.arange(prompts), 20)
    features = random.random((len(number), BLOCK))
    labels = np.roll(features, 1, axis=1) + 0.1 * features > 0.5
    masked = random.random(features.shape) < 0.6
    return Traces(number, features, labels, masked, np.zeros(len(number), dtype=bool), 10 * len(number))


def test_training_beats_the_constant_and_the_position_alone() -> None:
    made = fit(synthetic(), "model", "probability", FitOptions(iterations=400))
    figures = made.facts.training
    assert figures["loss"]["validation"] < 0.5 * figures["loss_logistic"]
    assert figures["loss_logistic"] < figures["loss_constant"]
    assert figures["validation"]["wrong"] <= 0.02
    assert figures["test"]["wrong"] <= 0.05
    assert figures["test"]["accepted"] > 3 * figures["scalar_threshold"]["accepted"]
    assert sum(entry["count"] for entry in figures["calibration"]) > 0
    assert made.parameters == 2 * (BLOCK * BLOCK + BLOCK)
    assert 0.5 <= made.facts.threshold <= 1


def test_labels_that_say_nothing_teach_nothing() -> None:
    """Negative control: with shuffled labels the threshold accepts next to nothing, or no better than the constant."""
    known = synthetic()
    noise = np.random.default_rng(1).permutation(known.labels.ravel()).reshape(known.labels.shape)
    figures = fit(replace(known, labels=noise), "model", "probability", FitOptions(iterations=200)).facts.training
    assert figures["loss"]["validation"] > 0.97 * figures["loss_constant"]
    assert figures["test"]["accepted"] < 0.05


def test_fits_repeat() -> None:
    first, second = (fit(synthetic(12), "m", "probability", FitOptions(iterations=20, loss_on="masked", layers=3)) for _ in range(2))
    np.testing.assert_array_equal(first.layers[2][0], second.layers[2][0])
    assert len(first.layers) == 3


def test_prompts_do_not_cross_splits() -> None:
    known = synthetic(20)
    parts = [set(known.prompt[part].tolist()) for part in split(known, 0)]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert sum(map(len, parts)) == len(set.union(*parts))
    with pytest.raises(UsageError, match="at least 3, not 2"):
        split(synthetic(2), 0)


def test_filters_are_made_and_used(model: LLM, tmp_path: Path) -> None:
    """From prompts to a file that decodes; a second time from the traces that are there."""
    job = FilterJob(BLOCK, ANSWER, "probability", 3, FitOptions(iterations=30, target=0.3))
    seen: list[tuple[str, int, int]] = []
    made = train_filter(model, PROMPTS, job, tmp_path / "f", tmp_path / "work", report=lambda *told: seen.append(told))
    assert seen[1][1:] == (6, 6)
    assert seen[-1][1:] == (30, 30)
    again = train_filter(model, PROMPTS, job, tmp_path / "g", tmp_path / "work")
    np.testing.assert_array_equal(again.layers[0][0], made.layers[0][0])
    llm = load(model, f"learn2pd:block={BLOCK},filter={tmp_path / 'f'},threshold=0.3", device="cpu", kv_tokens=512)
    outputs = llm.generate(PROMPTS, max_tokens=ANSWER, ignore_eos=True)
    assert sum(output.stats.forwards for output in outputs) <= ANSWER * len(PROMPTS)


def test_jobs_that_cannot_be_done(model: LLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of block=8"):
        FilterJob(8, 20)
    with pytest.raises(UsageError, match="leaves no room"):
        train_filter(model, [[3] * 5000], FilterJob(8, 24), tmp_path / "f")
    with pytest.raises(UsageError, match="there is no folder"):
        train_filter(model, PROMPTS, FilterJob(8, 24), tmp_path / "none" / "f")


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert read_prompts(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('"one\\n"\n{"prompt": "two"}\n')
    assert read_prompts(tmp_path / "a.jsonl") == ["one\n", "two"]
    (tmp_path / "b.jsonl").write_text("3\n")
    with pytest.raises(CheckpointError, match="line 1"):
        read_prompts(tmp_path / "b.jsonl")
    texts = default_prompts(9, 0)
    assert len(set(texts)) == 9
    assert texts == default_prompts(9, 0)
