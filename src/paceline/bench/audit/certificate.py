"""What an audit found, as data: checks, differences, controls, and the verdict that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from paceline.core.errors import AuditFailure

FORMAT = 1  # raised when a field changes meaning


class Kind(StrEnum):
    """How a difference from plain decoding is explained."""

    TIE = "tie"  # rounding within the documented tolerance can explain it
    VIOLATION = "violation"


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    TIES = "passed with ties"
    MEASURED = "measured"  # the method promises nothing here; the number is the result
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token at which an output departs from plain decoding; everything behind it has another history and is not compared.

    Args:
        setting: which sampling settings and batch.
        prompt: index of the prompt.
        position: index in the output, from 0.
        plain, method: the two tokens; `None` where one output ended before the other.
        margin: difference of the two largest logits of the plain path, penalties applied.
        gap: by how much logits would have to be off for plain decoding to choose the method's token.
        tolerance: the gap that rounding may explain.
        kind: tie (`gap <= tolerance`) or violation.
    """

    setting: str
    prompt: int
    position: int
    plain: int | None
    method: int | None
    margin: float | None
    gap: float | None
    tolerance: float
    kind: Kind

    def describe(self) -> str:
        """One line for a terminal."""
        where = f"{self.setting}: prompt {self.prompt}, position {self.position}: plain {self.plain}, method {self.method}"
        if self.gap is None or self.margin is None:
            return f"{where}; one output ended early: {self.kind}"
        return f"{where}; top-2 margin {self.margin:.3g}, gap {self.gap:.3g}, tolerance {self.tolerance:.3g}: {self.kind}"


@dataclass(frozen=True, slots=True)
class Check:
    """One question the audit asked.

    Args:
        name: of the check.
        subject: what it was asked of: the audited model, or a toy model on which everything can be enumerated.
        outcome: the answer.
        compared: how many outputs (or cells of a law, or rows of logits) were compared.
        detail: one line: numbers that a reader wants at a glance, or why it was skipped.
        differences: departures from plain decoding, at most one per output.
        numbers: everything measured.
    """

    name: str
    subject: str
    outcome: Outcome
    compared: int = 0
    detail: str = ""
    differences: tuple[Difference, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Control:
    """A deliberately wrong component, and whether the audit noticed it.

    Args:
        name: of the fault.
        fault: what was broken.
        check: the check that failed, or should have.
        caught: whether it did.
        detail: the evidence.
    """

    name: str
    fault: str
    check: str
    caught: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of `run_audit`, with everything needed to repeat it.

    Args:
        model, weights_sha256: what was audited; `draft` and `draft_sha256` name the draft model.
        method: the method string.
        guarantee: what it declares for greedy decoding and for sampling.
        settings: options of the audit.
        prompts: where they came from, how many, and their digest.
        machine: see `describe_machine`; versions are in `packages`.
        checks, controls: the findings.
        date: UTC, ISO 8601. seconds: how long it took. command: how to repeat it.
    """

    model: str
    weights_sha256: str | None
    draft: str | None
    draft_sha256: str | None
    method: str
    guarantee: Mapping[str, str]
    settings: Mapping[str, Any]
    prompts: Mapping[str, Any]
    machine: Mapping[str, Any]
    checks: Sequence[Check]
    controls: Sequence[Control]
    date: str
    seconds: float
    command: str

    @property
    def violations(self) -> list[Difference]:
        """Differences that rounding cannot explain, in checks that failed."""
        return [
            difference
            for check in self.checks
            if check.outcome is Outcome.FAILED
            for difference in check.differences
            if difference.kind is Kind.VIOLATION
        ]

    @property
    def missed(self) -> list[Control]:
        """Controls that passed unnoticed: the audit was blind to a fault, so that its other findings mean little."""
        return [control for control in self.controls if not control.caught]

    @property
    def outcome(self) -> Outcome:
        """Failed if any check failed or any control was missed; otherwise the weakest finding."""
        found = {check.outcome for check in self.checks}
        if Outcome.FAILED in found or self.missed:
            return Outcome.FAILED
        for weaker in (Outcome.MEASURED, Outcome.TIES, Outcome.PASSED):
            if weaker in found:
                return weaker
        return Outcome.SKIPPED

    def require(self) -> None:
        """Do nothing if the guarantee held.

        Raises:
            AuditFailure: naming the first failed check or missed control.
        """
        failed = [check for check in self.checks if check.outcome is Outcome.FAILED]
        if failed:
            first = failed[0]
            evidence = next((item.describe() for item in first.differences if item.kind is Kind.VIOLATION), first.detail)
            raise AuditFailure(f"method {self.method!r} on {self.model}: check {first.name!r} failed: {evidence}")
        if self.missed:
            control = self.missed[0]
            raise AuditFailure(f"the audit did not notice the fault {control.name!r} ({control.detail}); use more prompts or tokens")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "verdict": str(self.outcome),
            **{name: asdict_value(getattr(self, name)) for name in self.__dataclass_fields__},
        }


def asdict_value(value: Any) -> Any:
    """Plain data of a field: dataclasses become dicts, infinities become `None`, which JSON lacks."""
    if isinstance(value, (Check, Control, Difference)):
        return asdict_value(asdict(value))
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): asdict_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [asdict_value(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
