"""FreeDave: tokens of static decoding in no more forwards, for every layout, cache, block, number of drafts and way of running them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusion_models import Make

from paceline.core.batch import ForwardBatch
from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.sampling import Sampling
from paceline.denoising import freedave_decoder
from paceline.denoising.base import canvases
from paceline.denoising.canvas import Canvas
from paceline.denoising.freedave import FreeDaveConfig
from paceline.denoising.freedave_chain import Match, Transition, stepped, walk
from paceline.denoising.freedave_decoder import DraftAndVerify, DraftTask
from paceline.denoising.guesses import Guesses
from paceline.engine.denoise import _batch
from paceline.engine.output import Output

CACHES = [*((layout, cache) for layout in ("llada", "dream") for cache in ("none", "prefix", "dual")), ("sdar", "none")]
BLOCKS, DRAFTS = (1, 4, 8, 32), (1, 2, 3, 4, 8, 16)
PROMPTS = [np.random.default_rng(seed).integers(3, 44, 2 + 3 * seed).tolist() for seed in range(3)]
SAMPLED = Sampling(temperature=0.7, seed=11)


def run(
    make: Make, layout: str, method: str, block: int = 8, length: int = 16, sampling: Sampling | None = None, **options: object
) -> list[Output]:
    tail = "" if layout == "sdar" else f"block={block}"
    separator = "," if ":" in method and tail else ":" if tail else ""
    llm = make(layout, f"{method}{separator}{tail}", **{"prefix_cache": False, "kv_tokens": 4096, **options})
    found: list[Output] = llm.generate(PROMPTS, sampling or Sampling(), max_tokens=length, ignore_eos=True)
    return found


def ids(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


def forwards(outputs: list[Output]) -> list[int]:
    return [output.stats.forwards for output in outputs]


@pytest.mark.parametrize(("layout", "cache"), CACHES)
def test_tokens_of_static_decoding_in_no_more_forwards(make: Make, layout: str, cache: str) -> None:
    for block in BLOCKS[:1] if layout == "sdar" else BLOCKS:
        length, saved = max(16, block), 0
        static = run(make, layout, f"static:cache={cache}", block, length)
        for drafts in DRAFTS:
            found = run(make, layout, f"freedave:cache={cache},drafts={drafts}", block, length)
            assert ids(found) == ids(static), (drafts, block)
            assert all(mine <= plain for mine, plain in zip(forwards(found), forwards(static), strict=True))
            if drafts == 1:
                assert forwards(found) == forwards(static)
                assert [output.stats.rows for output in found] == [output.stats.rows for output in static]
            saved += sum(forwards(static)) - sum(forwards(found))
        assert (saved > 0) is (layout == "sdar" or block > 1)  # in blocks of one there is nothing to draft


@pytest.mark.parametrize(("layout", "cache"), CACHES)
def test_the_ways_of_sharing_a_forward_are_equal(make: Make, layout: str, cache: str) -> None:
    batch, tree, one = (run(make, layout, f"freedave:cache={cache},drafts=4,mode={mode}") for mode in ("batch", "tree", "sequential"))
    assert ids(batch) == ids(tree) == ids(one)
    assert forwards(batch) == forwards(tree)
    rows = [[output.stats.rows for output in outputs] for outputs in (batch, tree, one)]
    assert rows[0] == rows[1]
    assert layout == "sdar" or rows[0] == rows[2]
    assert all(apart > together for apart, together in zip(forwards(one), forwards(batch), strict=True))


@pytest.mark.parametrize("store", ["joined", "own"])
def test_blocks_stored_in_forwards_of_their_own(make: Make, store: str) -> None:
    static = run(make, "sdar", f"static:store={store}")
    for options in ("eager=false", "eager=true", "eager=true,mode=tree", "eager=true,mode=sequential"):
        found = run(make, "sdar", f"freedave:drafts=8,store={store},{options}")
        assert ids(found) == ids(static)
        assert "sequential" in options or max(np.subtract(forwards(found), forwards(static))) <= 0


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_drafts_beyond_the_block(make: Make, layout: str) -> None:
    static = run(make, layout, "static", 4, 24)
    near, far = (run(make, layout, f"freedave:drafts=8,eager={flag}", 4, 24) for flag in ("false", "true"))
    assert ids(near) == ids(far) == ids(static)
    assert sum(forwards(far)) < sum(forwards(near))
    assert all(eager <= lazy for eager, lazy in zip(forwards(far), forwards(near), strict=True))


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_several_tokens_per_step(make: Make, layout: str) -> None:
    """Static decoding of two or three tokens per step, the last step of a block shorter where they do not divide it."""
    for count in (2, 3):
        static = run(make, layout, f"static:per_step={count}")
        found = run(make, layout, f"freedave:per_step={count},drafts=3")
        assert ids(found) == ids(static)
        assert all(mine <= plain for mine, plain in zip(forwards(found), forwards(static), strict=True))


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_from_left_to_right(make: Make, layout: str) -> None:
    static = run(make, layout, "static:algorithm=sequential")
    found = run(make, layout, "freedave:algorithm=sequential")
    assert ids(found) == ids(static)
    assert sum(forwards(found)) < sum(forwards(static))
    assert FreeDaveConfig(algorithm="sequential").guarantees is not None


@pytest.mark.parametrize(("layout", "cache"), CACHES)
def test_samples_of_static_decoding(make: Make, layout: str, cache: str) -> None:
    static = run(make, layout, f"static:cache={cache}", sampling=SAMPLED)
    assert ids(run(make, layout, f"freedave:cache={cache}", sampling=SAMPLED)) == ids(static)
    assert ids(run(make, layout, f"freedave:cache={cache}", sampling=replace(SAMPLED, seed=12))) != ids(static)


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_a_batch_and_a_full_memory_change_nothing(make: Make, layout: str) -> None:
    eager = "freedave:drafts=4,eager=true"
    alone = run(make, layout, eager, max_sequences=1)
    for options in ({"max_sequences": 2, "max_rows": 24}, {"kv_tokens": 140}):
        found = run(make, layout, eager, **options)
        assert ids(found) == ids(alone)
        assert forwards(found) == forwards(alone)


def test_answers_end_where_they_end(make: Make) -> None:
    whole = run(make, "sdar", "static", length=16)
    end = whole[0].token_ids[5]
    for eager in ("false", "true"):
        llm = make("sdar", f"freedave:drafts=8,eager={eager}")
        (found,) = llm.generate(PROMPTS[:1], max_tokens=16, ignore_eos=True, stop_ids=[end])
        assert found.token_ids == whole[0].token_ids[: whole[0].token_ids.index(end) + 1]


class Scripted(DraftAndVerify):
    """Predictions are a function of the state: token 3 + position % 40, confidences by the number of decided positions."""

    __slots__ = ()

    def absorb(self, tasks: object, logits: torch.Tensor) -> None:
        rows = []
        for task in tasks:  # type: ignore[attr-defined]
            assert isinstance(task, DraftTask)
            for state in task.fed:
                for at in task.asked.tolist():
                    row = torch.zeros(logits.shape[1], dtype=logits.dtype)
                    row[3 + at % 40] = self.confidence(state.committed, at)
                    rows.append(row)
        DraftAndVerify.absorb(self, tasks, torch.stack(rows))  # type: ignore[arg-type]

    @staticmethod
    def confidence(decided: int, at: int) -> float:
        return 5 + (at * 37 % 101) / 101


class Restless(Scripted):
    """The order is turned round by every commit."""

    __slots__ = ()

    @staticmethod
    def confidence(decided: int, at: int) -> float:
        return 5 + (at if decided % 2 else -at) / 100


def scripted(make: Make, kind: type[Scripted], drafts: int, block: int) -> list[int]:
    llm = make("llada", f"freedave:drafts={drafts},block={block}", kv_tokens=4096)
    plain = llm.engine.denoiser
    llm.engine.denoiser = kind(**{name: getattr(plain, name) for name in DraftAndVerify.__dataclass_fields__})
    outputs = llm.generate(PROMPTS[:2], max_tokens=32, ignore_eos=True)
    for prompt, output in zip(PROMPTS, outputs, strict=False):
        assert output.token_ids == [3 + at % 40 for at in range(len(prompt), len(prompt) + 32)]
    return forwards(outputs)


@pytest.mark.parametrize(("drafts", "block"), [(1, 8), (2, 8), (3, 8), (4, 32), (8, 32), (16, 4)])
def test_the_fewest_forwards(make: Make, drafts: int, block: int) -> None:
    """Predictions that never change: `1 + ceil((block - 1) / drafts)` per block; with ones that always do: one per token."""
    blocks = 32 // block
    assert scripted(make, Scripted, drafts, block) == [blocks * (1 - -(block - 1) // drafts)] * 2
    assert scripted(make, Restless, drafts, block) == [32] * 2


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_a_branch_does_not_see_the_others(make: Make, cache: str) -> None:
    llm = make("llada", f"freedave:mode=tree,drafts=3,block=8,cache={cache}", kv_tokens=512)
    engine = llm.engine
    engine.submit(llm.request(PROMPTS[1], max_tokens=8, ignore_eos=True))
    engine.step()
    resident = engine.scheduler.running[0]
    task = engine._task(resident)
    assert (len(task.looks), len(task.states)) == (1, 3)
    batch = _batch([task], engine.denoiser)
    before = engine.runner.forward(batch).logits
    changed = list(batch.ids)
    width = len(changed) // 3
    changed[2 * width - 1] = (changed[2 * width - 1] + 7) % 40  # the last row of the second branch
    after = engine.runner.forward(ForwardBatch(changed, batch.positions, batch.segments, batch.logit_rows)).logits
    count = len(task.asked)
    same = [torch.equal(before[count * index : count * (index + 1)], after[count * index : count * (index + 1)]) for index in range(3)]
    assert same == [True, False, True]


def test_what_is_promised() -> None:
    assert FreeDaveConfig().guarantees is None
    approximate: tuple[dict[str, object], ...] = ({"guidance": 1.0}, {"attention": "sparsed"}, {"filter": "f"}, {"per_step": 2})
    for options in (*approximate, {"threshold": 0.9}, {"cache": "dual"}, {"threshold": 0.9, "match": "exact"}):
        assert FreeDaveConfig(**options).guarantees == (Guarantee.BOUNDED, Guarantee.BOUNDED)
    assert FreeDaveConfig(threshold=0.9).twin is None
    assert FreeDaveConfig(filter="f").twin is None
    assert FreeDaveConfig(filter="f", drafts=1).twin == FreeDaveConfig(filter="f", match="exact").twin is not None
    assert [canvases(f"freedave:{options}") for options in ("drafts=4", "drafts=4,guidance=1", "drafts=4,mode=sequential")] == [4, 8, 1]
    assert [canvases(method) for method in ("static", "static:guidance=1")] == [1, 2]
    for options in ({}, {"cache": "dual"}, {"threshold": 0.9, "match": "exact"}, {"threshold": 0.9, "drafts": 1}):
        assert FreeDaveConfig(**options).twin is not None


@pytest.mark.parametrize(
    "options",
    [{"drafts": 0}, {"per_step": 0}, {"per_step": 2, "threshold": 0.9}, {"threshold": -1.0}, {"radius": 2}, {"match": "subset"},
     {"algorithm": "sequential", "threshold": 0.9},
     {"cache": "dual", "refresh": 2}, {"cache": "dkv-decode"}, {"eager": True, "cache": "dual"}, {"eotp": "committed"},
     {"mode": "tree", "attention": "sparsed"}, {"filter": "f", "per_step": 2}, {"filter": "f", "threshold": 1.5},
     {"filter": "f", "algorithm": "sequential"}, {"filter": "f", "threshold": 0.9, "radius": 2},
     {"radius": 2, "threshold": 0.5, "relaxed": 0.7}],
)  # fmt: skip
def test_options_that_do_not_fit(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="|".join(options)):
        FreeDaveConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("layout", "cache"), CACHES)
def test_drafting_on_top_of_a_threshold(make: Make, layout: str, cache: str) -> None:
    """One draft is threshold decoding; exact matches keep its tokens; subsets take the fewest forwards."""
    plain = run(make, layout, f"threshold:threshold=0.3,cache={cache}")
    one = run(make, layout, f"freedave:threshold=0.3,drafts=1,cache={cache}")
    assert (ids(one), forwards(one)) == (ids(plain), forwards(plain))
    exact = run(make, layout, f"freedave:threshold=0.3,drafts=4,match=exact,cache={cache}")
    assert ids(exact) == ids(plain)
    assert all(mine <= other for mine, other in zip(forwards(exact), forwards(plain), strict=True))
    near = run(make, layout, f"freedave:threshold=0.3,drafts=4,cache={cache}")
    assert sum(forwards(near)) < sum(forwards(plain))


def test_drafting_on_top_of_local_leaps(make: Make) -> None:
    leaping = run(make, "llada", "localleap:threshold=0.2,relaxed=0.1,radius=2")
    one = run(make, "llada", "freedave:threshold=0.2,relaxed=0.1,radius=2,drafts=1")
    exact = run(make, "llada", "freedave:threshold=0.2,relaxed=0.1,radius=2,match=exact")
    assert ids(one) == ids(exact) == ids(leaping)
    assert forwards(one) == forwards(leaping)
    assert forwards(run(make, "llada", "freedave:threshold=0.2,relaxed=0.1,radius=0")) != forwards(one)


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_no_token_is_kept_that_the_target_contradicts(make: Make, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Subset matches: everything in the next kept state is what the decoder makes of the one before it, at once."""
    jumps = []

    def watched(states: Many[Canvas], found: Many[Guesses], transition: Transition, match: Match) -> list[int]:
        path = walk(states, found, transition, match)
        for before, after in pairwise(path):
            target, kept = stepped(states[before], found[before], transition), states[after]
            assert (target.ids[~kept.open] == kept.ids[~kept.open]).all()
            jumps.append(after - before)
        return path

    monkeypatch.setattr(freedave_decoder, "walk", watched)
    run(make, layout, "freedave:threshold=0.3,drafts=6")
    assert max(jumps) > (layout == "llada")


def test_hooks_see_every_step_of_static_decoding(make: Make) -> None:
    """Whatever a forward verifies, steps are shown one by one, each with the canvas as it then was."""

    class Listener:
        def __init__(self) -> None:
            self.steps: list[tuple[int | None, list[int]]] = []

        def tokens(self, step: int | None, canvas: Canvas) -> None:
            self.steps.append((step, canvas.ids.tolist()))

        def logits(self, step: int, canvas: Canvas, logits: torch.Tensor) -> torch.Tensor:
            return logits

    heard = []
    for method in ("static:block=8", "freedave:block=8,drafts=4"):
        llm, listener = make("llada", method), Listener()
        llm.engine.denoiser = replace(llm.engine.denoiser, hooks=listener)
        llm.generate(PROMPTS[:1], max_tokens=16, ignore_eos=True)
        heard.append(listener.steps)
    assert heard[0] == heard[1]
    assert len(heard[0]) == 17
