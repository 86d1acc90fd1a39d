"""LocalLeap: the closed form of the rule, the decoders it becomes at its limits, and what it never does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diffusion_models import Make

from paceline.core.errors import UsageError
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.guesses import Guesses
from paceline.denoising.localleap import Leap, LocalLeapConfig, distances
from paceline.denoising.localleap_calibration import (
    Predictions,
    Setting,
    Watch,
    best_setting,
    by_distance,
    consistency,
    joined,
    predictions,
    suggested,
)
from paceline.denoising.rules import Threshold
from paceline.engine.llm import LLM
from paceline.engine.output import Output
from paceline.training.localleap import watch

PROMPTS = [list(range(3, 13)), [4, 9], [30, 31, 32, 5, 6]]
EOS = 2


def state(random: np.random.Generator, prompt: int = 3, block: int = 12, blocks: int = 3) -> tuple[Guesses, Canvas]:
    """A random state in the middle block, with some of it decided, and guesses for its open positions."""
    canvas = Canvas.start([5] * prompt, block * blocks, block=block, mask=45)
    canvas.commit(np.arange(prompt, prompt + block), np.full(block, 6))
    canvas.advance()
    done = canvas.low + np.flatnonzero(random.random(block) < random.random())[: block - 1]
    canvas.commit(done, np.full(len(done), 7))
    positions = canvas.open_in_block()
    chance = np.log(random.beta(2, 1, len(positions)))
    tokens = random.integers(2, 6, len(positions))
    return Guesses(positions, tokens, chance, chance, chance[:0], np.ones(len(positions), dtype=bool)), canvas


def slowly(rule: Leap, guesses: Guesses, canvas: Canvas) -> set[int]:
    """The definition, position by position."""
    chance = {int(at): float(np.exp(value)) for at, value in zip(guesses.positions, guesses.logprob, strict=True)}
    token = dict(zip(guesses.positions.tolist(), guesses.tokens.tolist(), strict=True))
    anchors = {at for at in chance if chance[at] >= rule.threshold and token[at] not in rule.never}
    sources = set(anchors)
    if rule.given_anchor:
        sources |= {at for at in range(canvas.length) if not canvas.open[at]}
    chosen = set(anchors)
    for at in chance:
        for anchor in sources:
            away = abs(at - anchor)
            bar = rule.relaxed
            if rule.decay and rule.radius:
                bar += (rule.threshold - rule.relaxed) * (max(1, away) - 1) / rule.radius
            if away <= rule.radius and chance[at] >= bar:
                chosen.add(at)
    return chosen | {max(chance, key=lambda at: (chance[at], -at))}


def marked(flags: Flags, guesses: Guesses) -> set[int]:
    return set(guesses.positions[flags].tolist())


@pytest.mark.parametrize("options", [{}, {"decay": True}, {"given_anchor": True}, {"never": (EOS,)}])
def test_the_vectorised_rule_is_the_double_loop(options: dict[str, object]) -> None:
    random = np.random.default_rng(0)
    several = wrong = 0
    for _ in range(1000):
        guesses, canvas = state(random)
        threshold = float(random.uniform(0.4, 1.05))
        rule = Leap(threshold, threshold * float(random.uniform(0.3, 1)), int(random.integers(0, 8)), **options)  # type: ignore[arg-type]
        chosen, expected = marked(rule.choose(guesses, canvas), guesses), slowly(rule, guesses, canvas)
        assert chosen == expected
        assert all(canvas.low <= at < canvas.high and canvas.open[at] for at in chosen)
        several += len(chosen) > 1
        index = np.arange(len(guesses.positions))  # distances counted among open positions would be another rule
        by_rank = Guesses(index, guesses.tokens, guesses.logprob, guesses.score, guesses.entropy, guesses.open)
        ranks = set(np.searchsorted(guesses.positions, sorted(chosen)).tolist())
        wrong += not rule.given_anchor and marked(rule.choose(by_rank, canvas), by_rank) != ranks
    assert several > 300
    assert rule.given_anchor or wrong > 20


def test_one_step_grows_with_radius_and_falling_thresholds() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        guesses, canvas = state(random)
        threshold, relaxed, radius = float(random.uniform(0.5, 1)), float(random.uniform(0.1, 0.5)), int(random.integers(0, 6))
        chosen = marked(Leap(threshold, relaxed, radius).choose(guesses, canvas), guesses)
        for larger in (
            Leap(threshold, relaxed, radius + 1),
            Leap(threshold, relaxed * 0.7, radius),
            Leap(threshold * 0.9, relaxed, radius),
        ):
            assert chosen <= marked(larger.choose(guesses, canvas), guesses)
        assert marked(Threshold(threshold).choose(guesses, canvas), guesses) <= chosen
        assert marked(Leap(threshold, relaxed, radius, decay=True).choose(guesses, canvas), guesses) <= chosen


def test_what_is_near_an_anchor_does_not_become_one() -> None:
    """Sure, moderate, moderate, at distances 1 and 2 with radius 1: the last one stays open."""
    chance = np.log(np.array([0.95, 0.8, 0.8]))
    canvas = Canvas.start([5], 3, block=3, mask=45)
    guesses = Guesses(np.arange(1, 4), np.full(3, 6), chance, chance, chance[:0], np.ones(3, dtype=bool))
    assert Leap(radius=1).choose(guesses, canvas).tolist() == [True, True, False]
    canvas.commit(np.array([1, 2]), np.array([6, 6]))
    rest = Guesses(np.array([3]), np.array([6]), chance[2:], chance[2:], chance[:0], np.ones(1, dtype=bool))
    assert Leap(radius=1).choose(rest, canvas).tolist() == [True]  # the last one is decided, for there is no better


def test_distances() -> None:
    assert distances(np.arange(7), np.array([2, 5])).tolist() == [2, 1, 0, 1, 1, 0, 1]
    assert distances(np.arange(2), np.array([], dtype=np.int64)).tolist() == [np.inf, np.inf]


def run(make: Make, layout: str, method: str, prompts: list[list[int]] = PROMPTS) -> list[Output]:
    tail = "" if layout == "sdar" else ",block=8"
    found: list[Output] = make(layout, method + tail, prefix_cache=False).generate(prompts, max_tokens=16, ignore_eos=True)
    return found


def facts(outputs: list[Output]) -> list[tuple[list[int], int]]:
    return [(output.token_ids, output.stats.forwards) for output in outputs]


@pytest.mark.parametrize("cache", ["none", "dual"])
@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_limits(make: Make, layout: str, cache: str) -> None:
    """Radius 0 and equal thresholds are threshold decoding, a threshold above 1 is static decoding, 0 a block per forward."""
    if layout == "sdar" and cache == "dual":
        pytest.skip("block-causal models store blocks exactly")

    def equal(options: str, other: str) -> None:
        mine, plain = (facts(run(make, layout, f"{method},cache={cache}")) for method in (f"localleap:{options}", other))
        assert mine == plain

    equal("threshold=0.3,relaxed=0.1,radius=0", "threshold:threshold=0.3")
    equal("threshold=0.3,relaxed=0.3,radius=5", "threshold:threshold=0.3")
    equal("threshold=1.5,relaxed=0.1,radius=5", "static:per_step=1")
    equal("threshold=0,relaxed=0,radius=2", "threshold:threshold=0")
    leaping = run(make, layout, f"localleap:threshold=0.3,relaxed=0.05,radius=8,cache={cache}")
    plain = run(make, layout, f"threshold:threshold=0.3,cache={cache}")
    assert sum(output.stats.forwards for output in leaping) < sum(output.stats.forwards for output in plain)
    assert all(output.stats.forwards <= len(output.canvas or []) for output in leaping)


@pytest.mark.parametrize("layout", ["llada", "dream", "sdar"])
def test_a_batch_changes_nothing(make: Make, layout: str) -> None:
    method = "localleap:threshold=0.3,relaxed=0.1,radius=2"
    assert facts(run(make, layout, method)) == [fact for prompt in PROMPTS for fact in facts(run(make, layout, method, [prompt]))]


def test_margins_and_ends_of_text(make: Make) -> None:
    outputs = run(make, "llada", "localleap:by=margin,threshold=0.2,relaxed=0.02,radius=4")
    probability = run(make, "llada", "localleap:threshold=0.2,relaxed=0.02,radius=4")
    assert facts(outputs) != facts(probability)
    assert make("llada", "localleap:eos_anchor=false,block=8").engine.denoiser.rule.never == (EOS,)  # type: ignore[union-attr]
    assert make("llada", "localleap:block=8").engine.denoiser.rule.never == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"threshold": -0.1}, {"relaxed": 0.95}, {"relaxed": -1.0}, {"radius": -1}])
def test_options_that_do_not_fit(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        LocalLeapConfig(**options)  # type: ignore[arg-type]


def test_a_random_order_is_not_offered(make: Make) -> None:
    """Thresholds would be applied to random numbers."""
    with pytest.raises(UsageError, match="algorithm"):
        make("llada", "localleap:algorithm=random")


def test_a_watched_rule_decides_as_it_would(make: Make) -> None:
    """Watching changes nothing; what was shown is compared with the final tokens, and sure predictions last the longest."""
    llm = make("llada", "static:block=8")
    plain = llm.generate(PROMPTS, max_tokens=16, ignore_eos=True)
    watch = Watch(llm.engine.denoiser.rule)
    llm.engine.denoiser = replace(llm.engine.denoiser, rule=watch)
    outputs = llm.generate(PROMPTS, max_tokens=16, ignore_eos=True)
    assert facts(outputs) == facts(plain)
    found = predictions(watch.seen, 0.3)
    assert len(found.final) == len(PROMPTS) * 2 * sum(range(1, 9))
    assert found.final[found.distance == np.inf].any()
    assert 0 < found.final.mean() < 1
    cells = consistency(found, 7, (0.0, 0.2, 1.0))
    assert len(cells) == 14
    assert sum(cell.count for cell in cells) == int(((found.distance >= 1) & (found.distance <= 7)).sum())
    assert by_distance(found, 7) == pytest.approx(
        [float(found.final[found.distance == away].mean()) if (found.distance == away).any() else np.nan for away in range(1, 8)],
        nan_ok=True,
    )


def test_a_radius_of_a_whole_block_relaxes_all_of_it_or_nothing() -> None:
    """Wherever an anchor is, the relaxed threshold holds for the block; without one, one token is decided."""
    random = np.random.default_rng(3)
    seen = set()
    for _ in range(200):
        guesses, canvas = state(random)
        threshold = float(random.uniform(0.6, 1.0))
        anchored = bool((np.exp(guesses.logprob) >= threshold).any())
        seen.add(anchored)
        expected = Threshold(0.5 * threshold) if anchored else Threshold(2.0)
        assert (Leap(threshold, 0.5 * threshold, 12).choose(guesses, canvas) == expected.choose(guesses, canvas)).all()
    assert seen == {False, True}


@pytest.mark.parametrize("layout", ["llada", "sdar"])
def test_what_is_watched_does_not_depend_on_the_batch(loaded: dict[str, LLM], layout: str) -> None:
    done: list[int] = []
    block = None if layout == "sdar" else 8
    together = watch(loaded[layout], PROMPTS, 16, block=block, anchor=0.3, batch=2, report=done.append)
    alone = joined([watch(loaded[layout], [prompt], 16, block=block, anchor=0.3) for prompt in PROMPTS])
    assert done == [2, 3]
    assert sorted(together.distance) == sorted(alone.distance)
    np.testing.assert_allclose(np.sort(together.confidence), np.sort(alone.confidence), atol=1e-12)
    assert together.final.sum() == alone.final.sum()
    with pytest.raises(UsageError, match="leaves no room for 300 more"):
        watch(loaded[layout], PROMPTS, 300)


def test_the_best_setting() -> None:
    """Reliable next to anchors alone, or everywhere, or nowhere."""
    chance, away = np.tile(np.linspace(0.5, 0.89, 40), 2), np.repeat([1.0, 2.0], 40)
    near, everywhere = away == 1, np.ones(80, dtype=bool)
    assert best_setting(Predictions(chance, away, near), 0.9, 0.0) == Setting(1, 0.5, 40, 0.0)
    assert best_setting(Predictions(chance, away, everywhere), 0.9, 0.0) == Setting(2, 0.5, 80, 0.0)
    assert best_setting(Predictions(chance, away, ~everywhere), 0.9, 0.0) is None
    found = best_setting(Predictions(chance, away, near | (chance > 0.7)), 0.9, 0.1)
    assert found is not None
    assert (found.radius, found.count, found.wrong) == (2, 46, 4 / 46)  # 38 above 0.7, then pairs of which one is wrong


def test_suggested_thresholds() -> None:
    """Ten predictions at distance 1, wrong below 0.5; at distance 2 too few to judge."""
    confidence = np.array([0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.99])
    final = np.array([True] * 7 + [False] * 3 + [True])
    found = Predictions(confidence, np.array([1.0] * 10 + [2.0]), final)
    assert suggested(found, 0.0, 3, least=5) == [0.5, 1.0, 1.0]
    assert suggested(found, 0.125, 1, least=5) == [0.4]
    assert suggested(found, 0.3, 1, least=5) == [0.2]
    assert suggested(Predictions(confidence[:2] * 0 + 0.5, np.ones(2), np.array([True, False])), 0.1, 1, least=1) == [1.0]
