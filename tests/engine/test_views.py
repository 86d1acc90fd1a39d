"""What the house offers drafters that decode with the target itself: its network, and views of its weights with memories of their own."""

from __future__ import annotations

import pytest

from paceline.bench.audit.toy import toy_decoder
from paceline.core.batch import ForwardBatch, Segment
from paceline.drafting.base import DraftContext, ForwardRunner
from paceline.drafting.none import NoDraft
from paceline.engine.llm import LLM
from paceline.engine.load import load

PROMPT = [3, 1, 4, 1, 5, 9]


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> tuple[LLM, DraftContext]:
    seen: list[DraftContext] = []

    def build(config: object, context: DraftContext) -> NoDraft:
        seen.append(context)
        return NoDraft()

    monkeypatch.setattr(NoDraft, "build", staticmethod(build))
    llm = load(toy_decoder(16, seed=3), "none", device="cpu", kv_tokens=64, pack=False)
    return llm, seen[0]


def greedy(runner: ForwardRunner, ids: list[int], count: int) -> list[int]:
    memory, rows, out = runner.memory.admit(ids), list(ids), []
    for _ in range(count):
        memory.reserve(len(rows))
        start = memory.length
        batch = ForwardBatch(rows, range(start, start + len(rows)), [Segment(memory, len(rows))], [len(rows) - 1])
        rows = [int(runner.forward(batch).logits[0].argmax())]
        memory.commit(range(len(batch.ids)))
        out += rows
    runner.memory.release(memory)
    return out


def test_a_view_decodes_like_the_target_over_its_own_memory(offered: tuple[LLM, DraftContext]) -> None:
    llm, context = offered
    assert context.target is llm.runner.decoder
    assert context.view is not None
    before = llm.ledger.live["draft_kv"]
    view, other = context.view(32), context.view(16)
    assert view.decoder is llm.runner.decoder  # type: ignore[attr-defined]  # one set of weights
    assert len({id(view.memory), id(other.memory), id(llm.runner.memory)}) == 3
    assert llm.ledger.live["draft_kv"] > before
    expected = llm.generate(PROMPT, max_tokens=8)[0].token_ids
    assert greedy(view, PROMPT, 8) == expected
    assert greedy(other, PROMPT, 8) == expected
    assert llm.runner.memory.free_slots + llm.runner.memory.evictable_slots == 64
