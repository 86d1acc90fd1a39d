"""The demo's verdict: identical, tie or violation, by the audit's rule."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import paceline
from paceline.cli.app import app
from paceline.demo import measure
from paceline.demo.measure import judge, token_texts
from paceline.demo.result import Verdict
from paceline.demo.twin import first_difference

PROMPT = [5, 6, 7, 8]
GREEDY = paceline.Sampling()


def test_first_difference() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2


def test_equal_outputs_are_identical_and_wrong_ones_are_violations(tiny: str) -> None:
    llm = paceline.load(tiny, "none")
    plain = llm.generate([PROMPT], max_tokens=8)[0].token_ids
    assert judge(llm, PROMPT, plain, list(plain), GREEDY) == Verdict("identical")
    wrong = [*plain[:4], (plain[4] + 1) % llm.vocabulary, *plain[5:]]
    found = judge(llm, PROMPT, plain, wrong, GREEDY)
    assert (found.kind, found.position) == ("violation", 4)
    assert found.margin is not None
    assert found.margin > 0
    assert "violation at token 4" in str(found)
    assert judge(llm, PROMPT, plain, plain[:5], GREEDY) == Verdict("violation", 5)


def test_coupled_samples_are_judged_by_their_own_random_numbers(tiny: str) -> None:
    sampling = paceline.Sampling(temperature=1.0, seed=4)
    llm = paceline.load(tiny, "draft-model", draft=tiny, coupled=True)
    plain = paceline.load(tiny, "none").generate([PROMPT], sampling, max_tokens=8)[0].token_ids
    fast = llm.generate([PROMPT], sampling, max_tokens=8)[0].token_ids
    assert judge(llm, PROMPT, plain, fast, sampling) == Verdict("identical")
    other = paceline.load(tiny, "none").generate([PROMPT], paceline.Sampling(temperature=1.0, seed=5), max_tokens=8)[0].token_ids
    assert judge(llm, PROMPT, plain, other, sampling).kind == "violation"


def test_a_violation_ends_the_demo_with_5(tiny: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "judge", lambda *arguments: Verdict("violation", 3, 0.5))
    found = CliRunner().invoke(app, ["demo", "--quick", "--model", tiny, "--method", "none", "--out", str(tmp_path)])
    assert found.exit_code == 5
    assert "violation at token 3, margin 0.5" in " ".join(found.stdout.split())
    assert found.stderr.startswith("error: ")


def test_token_texts_join_to_the_text_of_all(tiny: str) -> None:
    llm = paceline.load(tiny, "none")
    assert llm.tokenizer is not None
    ids = llm.tokenizer.encode("def größe(x):\n    return '€' * x\n")
    pieces = token_texts(llm, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == "def größe(x):\n    return '€' * x\n"
    assert not any("\ufffd" in piece for piece in pieces)
