"""The choice among drafters: it finds the fastest, notices when that changes, and pays little for asking."""

from __future__ import annotations

from itertools import pairwise

import pytest

from paceline.core.batch import NO_TAPS, Taps
from paceline.core.request import Request, Sequence
from paceline.core.tree import TokenTree
from paceline.core.verdict import Verdict
from paceline.drafting import rest
from paceline.drafting.auto import BURST, LATE, SOON, TRIAL, Auto
from paceline.drafting.base import DraftLimits
from paceline.drafting.rest import CREDIT, REST, SAVINGS, SHARE, Questions, Rest

MANY = DraftLimits(64, 64)


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rest, "perf_counter", clock)
    return clock


class Asking:
    """What questions take."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.asked = clock, seconds, 0

    def spend(self) -> None:
        self.asked += 1
        self.clock.now += self.seconds


class Scripted:
    """A drafter whose steps take a given time and make a given number of tokens."""

    taps = NO_TAPS

    def __init__(self, seconds: float, tokens: int, asking: Asking | None = None) -> None:
        self.asking = asking
        self.seconds, self.tokens, self.steps, self.released, self.forgotten = seconds, tokens, 0, 0, 0
        self.draft: list[int] = []
        self.right = True

    def propose(self, sequences, limits):  # type: ignore[no-untyped-def]
        self.steps += 1
        if self.asking is not None:
            self.asking.spend()
        return [TokenTree.chain(sequence.tokens[-1], self.draft) for sequence in sequences]

    def observe(self, sequences, trees, verdicts, taps) -> None:  # type: ignore[no-untyped-def]
        """Nothing to learn."""

    def release(self, sequence: Sequence) -> None:
        self.released += 1

    def forget(self) -> None:
        self.forgotten += 1

    def memory_bytes(self) -> int:
        return 7


def run(chooser: Auto, clock: Clock, steps: int, batch: int = 1) -> list[int]:
    """Which part ran at each step."""
    members = [Sequence(uid, Request((1, 2), max_tokens=10**6)) for uid in range(batch)]
    for member in members:
        member.tokens.append(3)
    ran = []
    for _ in range(steps):
        trees = chooser.propose(members, [MANY] * batch)
        part = chooser.parts[chooser._running]
        ran.append(chooser._running)
        clock.now += part.seconds  # type: ignore[attr-defined]
        accepted = tuple(range(1, len(trees[0]))) if part.right else ()  # type: ignore[attr-defined]
        tokens = 1 if part.draft and len(trees[0]) == 1 else part.tokens  # type: ignore[attr-defined]
        chooser.observe(members, trees, [Verdict(accepted, (5,) * tokens)] * batch, Taps())
    return ran


def test_the_part_with_the_most_tokens_per_second_runs(clock: Clock) -> None:
    slow, fast = Scripted(1.0, 2), Scripted(0.5, 2)
    ran = run(Auto([slow, fast]), clock, 1000)
    assert ran.count(1) > 950 - TRIAL
    assert run(Auto([fast, slow]), clock, 1000).count(0) > 950 - TRIAL


def test_trials_of_the_slower_part_become_rare(clock: Clock) -> None:
    ran = run(Auto([Scripted(1.0, 2), Scripted(1.2, 2)]), clock, 20_000)
    assert 0 < ran[1000:].count(1) < 0.005 * len(ran)
    assert ran[-LATE - 2 * BURST :].count(1) > 0, "it is never given up"


def test_a_change_is_noticed(clock: Clock) -> None:
    first, second = Scripted(1.0, 1), Scripted(2.0, 1)
    chooser = Auto([first, second])
    run(chooser, clock, 300)
    first.seconds = 4.0  # as when a workload begins that the other drafter knows
    ran = run(chooser, clock, 2000)
    assert ran[500:].count(1) > 1400


def test_sizes_of_the_batch_are_judged_apart(clock: Clock) -> None:
    pays_alone, pays_together = Scripted(1.0, 3), Scripted(1.0, 2)
    chooser = Auto([pays_alone, pays_together])
    run(chooser, clock, 200)
    pays_alone.tokens = 1  # with many sequences there is no room for its drafts
    assert run(chooser, clock, 200, batch=8)[2 * TRIAL + 4 :].count(1) > 150
    pays_alone.tokens = 3
    assert run(chooser, clock, SOON // 2).count(1) <= BURST + 1, "what is known of batch 1 still holds: but for one trial"


def test_a_step_that_reads_a_prompt_or_follows_a_change_is_not_counted(clock: Clock) -> None:
    part, other = Scripted(1.0, 1), Scripted(1.0, 1)
    chooser = Auto([part, other])
    fresh = Sequence(0, Request((1, 2), max_tokens=10))
    trees = chooser.propose([fresh], [MANY])
    clock.now += 100.0
    chooser.observe([fresh], trees, [Verdict((), (5,))], Taps())
    assert chooser._rates[1][0].steps == 0
    ran = run(chooser, clock, 2 * TRIAL + 4)
    assert 0 < chooser._rates[1][1].steps < ran.count(1)
    assert all(rate.value == pytest.approx(1.0) for rate in chooser._rates[1])


@pytest.mark.parametrize("cost", [0.0, SHARE / 2, 4 * SHARE, 10 * SHARE, 3.0])
@pytest.mark.parametrize("draft", [[], [7, 8]])
def test_questions_in_vain_cost_a_small_share_of_the_time(clock: Clock, cost: float, draft: list[int]) -> None:
    """Whether nothing is found or what is found is never right; down to a rate below which a change would go unnoticed."""
    part = Scripted(1.0, 1, asking=(asking := Asking(clock, cost)))
    part.draft, part.right = draft, False
    run(Auto([part]), clock, 3200)
    share = 1.0 if cost <= SHARE else max(1 / REST, SHARE / cost)
    assert asking.asked == pytest.approx(3200 * share + (CREDIT / cost if share < 1 else 0), rel=0.1)


def test_questions_that_bring_tokens_are_asked_at_every_step(clock: Clock) -> None:
    part = Scripted(1.0, 1, asking=Asking(clock, 0.3))
    chooser = Auto([part])
    run(chooser, clock, 160)
    part.draft, part.tokens = [7, 8], 3
    part.steps = 0
    run(chooser, clock, REST + 100)
    assert part.steps >= 100


def test_drafts_that_bring_less_than_they_cost_are_given_up(clock: Clock) -> None:
    part = Scripted(1.0, 2, asking=Asking(clock, 3.0))  # one token more, for the time of three
    part.draft = [7]
    run(Auto([part]), clock, 160)
    assert part.steps < 20


def test_what_is_saved_is_bounded_and_what_is_owed_too() -> None:
    account = Rest()
    for _ in range(1000):
        account.note(0.0, 5.0)
    assert account.balance == SAVINGS
    account.note(50.0, 0.0)
    pause = 0
    while not account.asks():
        pause += 1
    assert pause <= REST
    account.note(50.0, 0.0)
    account.wake()
    assert account.asks()


def test_only_drafting_and_learning_count_as_asking(clock: Clock) -> None:
    clock.now = 100.0
    questions = Questions()
    questions.begin()
    clock.now += 0.5
    questions.drafted()
    clock.now += 8.0  # the forward
    questions.judged()
    clock.now += 1.5
    assert questions.end() == pytest.approx((10.0, 0.25))
    questions.begin()
    clock.now += 4.0
    questions.judged()
    assert questions.end() == pytest.approx((4.0, 0.0)), "nothing was asked"


def test_a_trial_of_one_part_brings_no_questions_to_the_other(clock: Clock) -> None:
    resting, tried = Scripted(1.0, 1, Asking(clock, 0.5)), Scripted(1.2, 1, Asking(clock, 0.5))
    chooser = Auto([resting, tried])
    ran = run(chooser, clock, 4 * SOON)
    resting.steps = tried.steps = 0
    ran = run(chooser, clock, 64 * REST)
    assert ran.count(1) >= BURST, "there were trials"
    assert tried.steps >= sum(before != now == 1 for before, now in pairwise(ran)) > 0, "in which questions were asked"
    assert resting.steps <= ran.count(0) / REST + 2


def test_every_part_is_released_forgets_and_is_counted(clock: Clock) -> None:
    parts = [Scripted(1.0, 1), Scripted(1.0, 1)]
    chooser = Auto(parts)
    chooser.release(Sequence(0, Request((1, 2))))
    chooser.forget()
    assert [(part.released, part.forgotten) for part in parts] == [(1, 1)] * 2
    assert chooser.memory_bytes() == 14
