"""Negative controls on the audited model itself: a known-good loop is broken in one place, and the identity check must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline.bench.audit.agreement import NOISE_FACTOR, Yardstick, keep_row
from paceline.bench.audit.bits import digest, plain_digests
from paceline.bench.audit.certificate import Check, Control, Kind
from paceline.bench.audit.faults import DroppedRow, LeakingMask, MadeUpBonus, NudgedBit, StalePositions, WrongPath
from paceline.bench.audit.identity import compare, verdict
from paceline.bench.audit.listen import listen
from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.oracle import OracleDrafter
from paceline.bench.audit.rig import Prompts, Rig
from paceline.core.sampling import Sampling
from paceline.drafting.none import NoDraft
from paceline.engine.llm import LLM
from paceline.engine.runner import Runner
from paceline.verification.verifier import Verifier

GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken part of the loop.

    Args:
        name, what: for the certificate.
        runner: kind of runner. verifier: kind of judge.
        branches: whether drafts are trees; some faults show only there.
    """

    name: str
    what: str
    runner: type[Runner] = Runner
    verifier: type[Verifier] | None = None
    branches: bool = False


FAULTS = (
    Fault("stale positions", "every tree node has its root's position", runner=StalePositions),
    Fault("leaking mask", "tree nodes see the siblings drafted before them", runner=LeakingMask, branches=True),
    Fault("dropped row", "the newest committed token is missing from memory", runner=DroppedRow),
    Fault("wrong row committed", "a rejected node's memory is kept in place of an accepted one's", verifier=WrongPath, branches=True),
    Fault("made-up bonus", "the token behind a fully accepted draft does not come from the target", verifier=MadeUpBonus),
)


def oracle_engine(rig: Rig, prompts: Prompts, plain: list[list[int]], max_tokens: int, fault: Fault) -> LLM:
    """An engine whose drafts are plain decoding's output with planned mistakes, broken as the fault says."""
    drafter = OracleDrafter(dict(zip(prompts, plain, strict=True)), rig.target.vocabulary, branches=fault.branches)
    llm = rig.wired(drafter, prompts, max_tokens, fault.runner)
    if fault.verifier is not None:
        llm.engine.verifier = fault.verifier()
    return llm


def check_oracle(rig: Rig, prompts: Prompts, measure: Yardstick, max_tokens: int) -> tuple[Check, dict[bool, float]]:
    """The loop with nothing broken: drafts of known quality must leave the output unchanged.

    Returns:
        The check, and how far rounding moved logits: with chains (False) and with trees (True).
    """
    path = PlainPath(rig.target.runner.decoder, rig.target.runner.exact)
    differences, drift = [], {}
    for branches in (False, True):
        llm = oracle_engine(rig, prompts, measure.outputs, max_tokens, Fault("none", "", branches=branches))
        listener, outputs = listen(llm, prompts, max_tokens, keep_row, batched=True)
        differences += compare(path, prompts, measure.outputs, outputs, GREEDY, f"known drafts, {'trees' if branches else 'chains'}")
        drift[branches] = measure.largest(prompts, outputs, listener.heard)
    violations = sum(difference.kind is Kind.VIOLATION for difference in differences)
    total = 2 * len(prompts)
    detail = f"{total - len(differences)} of {total} outputs identical; logits moved by up to {max(drift.values()):.2g}"
    outcome = verdict(len(differences) - violations, violations, promised=True)
    numbers = {"drift_chains": drift[False], "drift_trees": drift[True]}
    return Check("loop under known drafts", rig.subject, outcome, total, detail, tuple(differences), numbers), drift


def loop_controls(
    rig: Rig, prompts: Prompts, measure: Yardstick, drift: dict[bool, float], max_tokens: int, on_control: Callable[[], None] | None = None
) -> list[Control]:
    """Every fault, one at a time; caught if it causes a violation (not merely ties), or moves logits much more than the sound loop did."""
    path = PlainPath(rig.target.runner.decoder, rig.target.runner.exact)
    controls = []
    for fault in FAULTS:
        llm = oracle_engine(rig, prompts, measure.outputs, max_tokens, fault)
        listener, outputs = listen(llm, prompts, max_tokens, keep_row, batched=True)
        differences = compare(path, prompts, measure.outputs, outputs, GREEDY, fault.name)
        violations = sum(difference.kind is Kind.VIOLATION for difference in differences)
        moved, limit = measure.largest(prompts, outputs, listener.heard), NOISE_FACTOR * drift[fault.branches]
        detail = f"{violations} of {len(prompts)} outputs in violation, logits moved by up to {moved:.2g} (limit {limit:.2g})"
        seen = [name for name, saw in (("greedy identity", violations > 0), ("logit agreement", moved > limit)) if saw]
        controls.append(Control(fault.name, fault.what, " and ".join(seen) or "nothing", bool(seen), detail))
        if on_control is not None:
            on_control()
    return controls


def bit_control(rig: Rig, prompts: Prompts, max_tokens: int) -> Control:
    """Bit-exact mode: one logit of every row changed in its last bit."""
    plain = plain_digests(rig, prompts, max_tokens)
    nudged = listen(rig.wired(NoDraft(), prompts, max_tokens, NudgedBit), prompts, max_tokens, digest, batched=False)[0].heard
    both = plain.keys() & nudged.keys()
    moved = sum(plain[place] != nudged[place] for place in both)
    caught = bool(both) and moved == len(both)
    return Control(
        "nudged bit", "one logit of every row is off by its last bit", "bit identity", caught, f"{moved} of {len(both)} rows differ"
    )
