"""DySpec and static trees in the loop, on toy models: identity, company, memory, budgets of nothing, tree order, and the audit."""

from __future__ import annotations

import pytest
import torch
from toy_engines import ids, make, overbook, prompts, toy_llm

from paceline.bench.audit import toy_checks
from paceline.bench.audit.certificate import Outcome
from paceline.bench.audit.run import run_audit
from paceline.bench.audit.toy import toy_decoder
from paceline.bench.trees import compare_trees, measure_acceptance, tree_methods
from paceline.core.batch import ForwardBatch, Segment
from paceline.core.sampling import Sampling
from paceline.core.tree import TokenTree
from paceline.drafting.draft_static import StaticDrafter
from paceline.drafting.dyspec import DySpec
from paceline.engine.llm import LLM

METHODS = (
    "dyspec:budget=12",
    "dyspec:budget=6,mode=budget,value=calibrated",
    "dyspec:budget=10,draws=sampled,threshold=0.05",
    "dyspec:budget=auto",
    "sequoia:nodes=8",
    "prompt-lookup+dyspec:budget=5",
)
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=5)
ASKED = prompts(5)
TOKENS = 14


@pytest.fixture(scope="module")
def pair() -> tuple[LLM, LLM]:
    return toy_llm(1, eos=(7,)), toy_llm(2, layers=1, eos=(7,))


@pytest.fixture(scope="module")
def plain(pair: tuple[LLM, LLM]) -> dict[str, list[list[int]]]:
    engine = make(*pair, "none", prefix_cache=False)
    return {"greedy": ids(engine, ASKED, GREEDY, TOKENS), "sampled": ids(engine, ASKED, SAMPLED, TOKENS)}


def assert_empty(llm: LLM) -> None:
    """The drafter remembers nobody."""
    drafter = llm.engine.drafter
    assert drafter.memory_bytes() == 0
    if isinstance(drafter, (DySpec, StaticDrafter)):
        assert not drafter.runner.memory.sequences  # type: ignore[union-attr]
    if isinstance(drafter, DySpec):
        assert not drafter._thresholds
        assert not drafter._drafts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options", [{}, {"max_rows": 3, "max_sequences": 3}, {"kv_tokens": 56, "prefix_cache": False}], ids=["batched", "chunked", "tight"]
)
def test_outputs_are_those_of_plain_decoding(
    pair: tuple[LLM, LLM], plain: dict[str, list[list[int]]], method: str, options: dict[str, int]
) -> None:
    greedy, coupled = make(*pair, method, **options), make(*pair, method, coupled=True, **options)
    assert ids(overbook(greedy), ASKED, GREEDY, TOKENS) == plain["greedy"]
    assert ids(overbook(coupled), ASKED, SAMPLED, TOKENS) == plain["sampled"]
    assert_empty(greedy)
    assert_empty(coupled)


@pytest.mark.parametrize("method", ["dyspec:budget=12", "dyspec:budget=6,mode=budget", "sequoia:nodes=8"])
def test_samples_do_not_depend_on_company(pair: tuple[LLM, LLM], method: str) -> None:
    together = ids(make(*pair, method), ASKED, SAMPLED, TOKENS)
    assert together == [ids(make(*pair, method), [prompt], SAMPLED, TOKENS)[0] for prompt in ASKED]


@pytest.mark.parametrize("method", METHODS)
def test_cancelled_and_preempted_sequences_are_forgotten(pair: tuple[LLM, LLM], method: str) -> None:
    llm = overbook(make(*pair, method, kv_tokens=60, prefix_cache=False))
    stream = llm.stream(ASKED[2], max_tokens=30)
    next(stream)
    stream.close()
    assert_empty(llm)
    llm.generate(ASKED, GREEDY, TOKENS)
    assert_empty(llm)


@pytest.mark.parametrize("method", ["dyspec:budget=0", "dyspec:depth=0", "sequoia:nodes=0"])
def test_budgets_of_nothing_are_plain_decoding(pair: tuple[LLM, LLM], plain: dict[str, list[list[int]]], method: str) -> None:
    llm = make(*pair, method)
    (output,) = llm.generate([ASKED[1]], GREEDY, TOKENS)
    assert output.token_ids == plain["greedy"][1]
    assert output.stats.forwards == len(output.token_ids)
    assert llm.engine.drafter.forwards == 0  # type: ignore[attr-defined]


def test_a_target_drafting_for_itself_is_accepted_whole(pair: tuple[LLM, LLM]) -> None:
    """Page item 4 through the model: the draft memory holds exactly what the target's would."""
    llm = make(pair[0], pair[0], "dyspec:budget=6,temperature=0")
    (output,) = llm.generate([ASKED[1]], GREEDY, 21, ignore_eos=True)
    assert output.stats.forwards == 3
    assert output.stats.accepted == 18


def test_draft_rows_see_their_own_path_only(pair: tuple[LLM, LLM]) -> None:
    """Reading nodes one by one or a layer at a time gives every node the draft law of its path read alone."""
    from paceline.core.request import Request, Sequence
    from paceline.drafting.base import DraftLimits

    draft = make(pair[1], pair[1], "none")
    for options in ("budget=40", "budget=20,mode=budget"):
        drafter = make(*pair, f"dyspec:{options}").engine.drafter
        member = Sequence(0, Request(tuple(ASKED[3]), Sampling(temperature=1.0, seed=3), max_tokens=40))
        (tree,) = drafter.propose([member], [DraftLimits(64, 40)])
        assert tree.proposal is not None
        assert len(tree.proposal.q) > 3
        for node, law in tree.proposal.q.items():
            text = [*ASKED[3], *(tree.token[step] for step in tree.path(node))]
            memory = draft.runner.memory.admit(text)
            rows = len(text) - memory.length
            memory.reserve(rows)
            batch = ForwardBatch(text[-rows:], range(memory.length, len(text)), [Segment(memory, rows)], [rows - 1])
            alone = draft.runner.forward(batch).logits[0].softmax(-1)
            torch.testing.assert_close(law.probs, alone, rtol=0, atol=1e-9)
            draft.runner.memory.release(memory)


def test_node_order_does_not_change_logits(pair: tuple[LLM, LLM]) -> None:
    """Depth first, or breadth first with a mask of its own: the target says the same of every path."""
    tree = TokenTree.from_paths(1, [[2, 3, 4], [2, 5], [6, 3], [6, 8, 9]])
    target = make(*pair, "none").runner
    order = sorted(range(len(tree)), key=lambda node: (tree.depth[node], node))
    index = torch.tensor(order)

    def read(token: list[int], depth: list[int], mask: torch.Tensor) -> torch.Tensor:
        memory = target.memory.admit([5, 4, 3])
        memory.reserve(4)
        target.forward(ForwardBatch([5, 4, 3], range(3), [Segment(memory, 3)]))
        memory.commit(range(3))
        memory.reserve(len(token))
        logits = target.forward(ForwardBatch(token, [3 + level for level in depth], [Segment(memory, len(token), mask)])).logits
        target.memory.release(memory)
        return logits

    mask = tree.ancestors()
    first = read(list(tree.token), list(tree.depth), mask)
    second = read([tree.token[node] for node in order], [tree.depth[node] for node in order], mask[index][:, index])
    torch.testing.assert_close(first[index], second, rtol=0, atol=1e-10)


def test_the_audit_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy_checks, "SAMPLES", 500)
    models = {"model": toy_decoder(8, seed=1), "draft": toy_decoder(8, seed=2, layers=1)}
    certificate = run_audit(**models, method="dyspec:budget=6", prompts=[[1, 2, 3, 1, 2], [5] * 9], max_tokens=10)
    assert certificate.outcome is Outcome.PASSED


def test_the_comparison_measures_acceptance_and_counts_draft_calls(pair: tuple[LLM, LLM]) -> None:
    """What `benchmarks/dyspec.py` reports, with the target drafting for itself: every first child is accepted."""
    acceptance = measure_acceptance(pair[0], pair[0], ASKED[1:3], GREEDY, 12)
    assert acceptance.split("/")[0] == "1"
    assert tree_methods(8, acceptance)[0] == "none"
    methods = ("none", "draft-model:length=3", f"sequoia:nodes=3,acceptance={acceptance}", "dyspec:budget=3,temperature=0")
    rows = compare_trees(pair[0], pair[0], methods, ASKED[1:3], GREEDY, 13, rounds=1)
    plain, chain, planned, grown = rows
    assert (plain["tokens_per_forward"], plain["draft_forwards"], plain["speedup"]) == (1.0, 0.0, 1.0)
    assert chain["tokens_per_forward"] == planned["tokens_per_forward"] == grown["tokens_per_forward"] > 2
    assert chain["draft_forwards"] == grown["draft_forwards"] > 1
