"""The dense strategies against expansion, which shares neither their masks nor their way of dropping rejected tokens."""

from __future__ import annotations

import pytest
from dense_engines import alone, ids, make, noisy, prompts, target
from expansion import ExpansionRunner

from paceline.bench.audit.agreement import keep_row
from paceline.core.batch import ForwardBatch, ForwardResult
from paceline.engine.llm import LLM
from paceline.engine.rectangle import DenseRunner
from paceline.engine.runner import Runner

LENGTH = 4


@pytest.fixture(scope="module")
def base() -> LLM:
    return target()


def test_expansion_is_exact_and_large(base: LLM) -> None:
    llm = make(base, noisy(base, 0.2), "eqspec:batch=3", f"draft-model:length={LENGTH}")
    runner = llm.engine.runner
    assert isinstance(runner, DenseRunner)
    oracle = llm.engine.runner = ExpansionRunner(runner.decoder, runner.dense)
    assert ids(llm, prompts()) == alone(base, prompts())
    assert oracle.copies == 3 * (LENGTH + 1)


def logits_of(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Logits of every target forward that decides, thinned."""
    heard = []
    kind = type(llm.engine.runner)
    forward = kind.forward

    def listen(self: Runner, batch: ForwardBatch) -> ForwardResult:
        result = forward(self, batch)
        if self is llm.engine.runner:
            heard.extend(keep_row(row).tolist() for row in result.logits)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", listen)
        ids(llm, prompts(5), 8)
    return heard


@pytest.mark.parametrize("name", ["eqspec", "gap"])
def test_logits_equal_those_of_expansion(base: LLM, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the tokens: every logit behind them."""
    draft = noisy(base, 0.2)
    expanded = make(base, draft, "eqspec:batch=3")
    assert isinstance(expanded.engine.runner, DenseRunner)
    expanded.engine.runner = ExpansionRunner(expanded.engine.runner.decoder, expanded.engine.runner.dense)
    expected = logits_of(expanded, monkeypatch)
    found = logits_of(make(base, draft, f"{name}:batch=3"), monkeypatch)
    assert len(found) == len(expected) > 50
    assert max(abs(a - b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)) < 1e-9
