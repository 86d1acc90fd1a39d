"""`run_audit`: which checks a method's guarantee calls for, run on one model, with the controls that prove the checks can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from torch import nn

from paceline.bench.audit import controls as faulty
from paceline.bench.audit import toy_checks
from paceline.bench.audit.agreement import Yardstick, check_agreement, yardstick
from paceline.bench.audit.bits import check_bits
from paceline.bench.audit.certificate import Certificate, Check, Control, Outcome
from paceline.bench.audit.denoising import audit_denoising
from paceline.bench.audit.identity import GREEDY_SETTINGS, SAMPLED_SETTINGS, check_identity, reference
from paceline.bench.audit.prompts import PromptSet, audit_prompts
from paceline.bench.audit.rig import Prompts, Rig
from paceline.bench.audit.weights import weights_digest
from paceline.bench.machine import describe_machine
from paceline.bench.report import command_line, public_name
from paceline.core import registry
from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.sampling import Sampling
from paceline.engine.draft_network import open_network
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.prompts import Prompt
from paceline.models.nat import NatDrafter

Progress = Callable[[str, int, int], None]
FEW_PROMPTS = 6  # whose logits are kept, and on which the loop is broken
STRENGTH = (Guarantee.BOUNDED, Guarantee.OWN_WEIGHTS, Guarantee.DISTRIBUTION_IDENTICAL, Guarantee.TOKEN_IDENTICAL)


def run_audit(
    model: Any,
    method: str,
    draft: Any = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    exact: bool = False,
    batching: str = "ragged",
    prompts: Sequence[Prompt] | None = None,
    max_tokens: int = 64,
    sampling_checks: bool = True,
    controls: bool = True,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Certificate:
    """Check that a method keeps the guarantee it declares on a model.

    Args:
        model, method, draft: as for `paceline.load`.
        dtype: of weights and KV; float32 by default, where only near-ties can differ, or bfloat16 with `exact`.
        device: where to run.
        exact: bit-exact mode: logits must be identical bit for bit, and no tie is excused.
        batching: how the audited engine puts sequences into one forward; the plain decoding it is compared with uses token slots.
        prompts: what to decode; held-out Python text and random ids by default.
        max_tokens: tokens per output. End-of-sequence ids do not end an output.
        sampling_checks: check sampling as well as greedy decoding.
        controls: break the loop on purpose and see that the checks notice.
        seed: of random prompts and samples.
        on_progress: called with the stage, steps done and steps in all.

    Returns:
        The certificate; `Certificate.require` raises `AuditFailure` if the guarantee was broken.

    Raises:
        UsageError: for options that do not fit together.
        CheckpointError: for models that cannot be read.
    """
    if method == "none" and batching != "ragged":
        raise UsageError(f"batching={batching!r} is compared with method 'none' over token slots; name another method, as draft-model")
    chosen = dtype or ("bfloat16" if exact else "float32")
    audited = _Audit(model, method, draft, chosen, device, exact, batching, max_tokens, seed, on_progress)
    return audited.run(prompts, sampling_checks, controls)


def guarantee_of(method: str) -> dict[str, Guarantee]:
    """What a method string declares: for methods joined by `+`, the weakest of each mode."""
    greedy, sampling = zip(*(choice.guarantees for choice in registry.parse(method)), strict=True)
    return {"greedy": min(greedy, key=STRENGTH.index), "sampling": min(sampling, key=STRENGTH.index)}


@dataclass(slots=True)
class _Audit:
    model: Any
    method: str
    draft: Any
    dtype: str
    device: str | None
    exact: bool
    batching: str
    max_tokens: int
    seed: int
    on_progress: Progress | None
    checks: list[Check] = field(default_factory=list)
    found: list[Control] = field(default_factory=list)

    def run(self, prompts: Sequence[Prompt] | None, sampling_checks: bool, controls: bool) -> Certificate:
        start = perf_counter()
        promise = guarantee_of(self.method)
        self._tell("loading", 0, 1)
        rig = self._rig()
        chosen = audit_prompts(rig.target, prompts, self.max_tokens, self.seed)
        if rig.target.denoises:
            lossless, tell = promise["greedy"].lossless, self._tell
            self.checks, self.found = audit_denoising(
                rig, self.method, chosen.ids, self.max_tokens, promised=lossless, controls=controls, tell=tell
            )
            return self._certificate(rig, chosen, promise, sampling_checks, controls, perf_counter() - start)
        measure, drift = self._greedy(rig, chosen.ids, promise["greedy"].lossless)
        if sampling_checks:
            self._sampling(rig, chosen.ids, promise["sampling"].lossless)
        if controls:
            self._controls(rig, chosen.ids, measure, drift, sampling_checks)
        return self._certificate(rig, chosen, promise, sampling_checks, controls, perf_counter() - start)

    def _rig(self) -> Rig:
        """Load target and draft once. Their own memories are tiny; every check brings an engine with its own."""
        target = load(self.model, "none", dtype=self.dtype, device=self.device, exact=self.exact, kv_tokens=2, prefix_cache=False)
        network = open_network(self.draft, target.runner.decoder, target.ledger)
        if network is not None or self.draft is None:
            return Rig(target, network, self.exact, self.batching)
        draft = load(self.draft, "none", dtype=self.dtype, device=self.device, kv_tokens=2, prefix_cache=False)
        return Rig(target, draft, self.exact, self.batching)

    def _greedy(self, rig: Rig, prompts: Prompts, promised: bool) -> tuple[Yardstick, dict[bool, float]]:
        """Greedy identity, logit agreement, and bit identity in bit-exact mode. Returns what the controls are measured by."""
        ties = True
        if self.exact:
            self._tell("bit identity", 0, 1)
            check = check_bits(rig, rig.engine(self.method, prompts, self.max_tokens), prompts, self.max_tokens, promised=promised)
            self.checks.append(check)
            ties = not check.numbers["promised"]  # equal bits leave no room for ties
        self._identity("greedy identity", rig, prompts, GREEDY_SETTINGS, promised, coupled=False, ties=ties)
        self._tell("logit agreement", 0, 1)
        few = _few(prompts)
        measure = yardstick(rig, few, self.max_tokens)
        llm = rig.engine(self.method, few, self.max_tokens)
        self.checks.append(check_agreement(rig, llm, few, self.max_tokens, measure, promised=promised))
        self._tell("loop under known drafts", 0, 1)
        check, drift = faulty.check_oracle(rig, few, measure, self.max_tokens)
        self.checks.append(check)
        return measure, drift

    def _sampling(self, rig: Rig, prompts: Prompts, promised: bool) -> None:
        """Coupled identity on the model, laws on toy models."""
        settings = {name: replace(sampling, seed=self.seed) for name, sampling in SAMPLED_SETTINGS.items()}
        self._identity("coupled sampling identity", rig, prompts, settings, promised, coupled=True, ties=True)
        toys = toy_checks.toy_rig()
        self._tell("node rule", 0, 1)
        self.checks.append(toy_checks.check_node_rule(toys))
        untrained = next((choice.method.trains for choice in registry.parse(self.method) if choice.method.trains), "")
        if untrained:
            reason = f"{self.method} needs {untrained}, which the toy models lack"
            self.checks.append(Check("law of the loop", toy_checks.SUBJECT, Outcome.SKIPPED, detail=reason))
            return
        steps = self._stage("law of the loop", len(toy_checks.SETTINGS))
        self.checks.append(toy_checks.check_loop_law(toys, self.method, self.seed, promised=promised, on_sample=steps))

    def _identity(
        self, name: str, rig: Rig, prompts: Prompts, settings: dict[str, Sampling], promised: bool, *, coupled: bool, ties: bool
    ) -> None:
        step = self._stage(name, 3 * len(settings) * len(prompts))
        plain = reference(rig, prompts, settings, self.max_tokens, step)
        # With the prefix cache, as users run it: what an earlier request left behind must not show either.
        llm = rig.engine(self.method, prompts, self.max_tokens, coupled=coupled, prefix_cache=True)
        self.checks.append(
            check_identity(name, rig, llm, prompts, plain, settings, self.max_tokens, promised=promised, ties_allowed=ties, on_output=step)
        )

    def _controls(self, rig: Rig, prompts: Prompts, measure: Yardstick, drift: dict[bool, float], sampling: bool) -> None:
        few = _few(prompts)
        step = self._stage("controls", len(faulty.FAULTS))
        self.found += faulty.loop_controls(rig, few, measure, drift, self.max_tokens, step)
        if self.exact:
            self.found.append(faulty.bit_control(rig, few, self.max_tokens))
        if sampling:
            toys = toy_checks.toy_rig()
            self._tell("controls of the law", 0, 1)
            self.found += [*toy_checks.rule_controls(toys), *toy_checks.loop_controls(toys, self.seed)]

    def _certificate(
        self, rig: Rig, prompts: PromptSet, promise: dict[str, Guarantee], sampling: bool, controls: bool, seconds: float
    ) -> Certificate:
        decoder = rig.target.runner.decoder
        return Certificate(
            model=rig.subject,
            weights_sha256=weights_digest(self.model, decoder),
            draft=None if rig.draft is None else public_name(rig.draft.name if isinstance(rig.draft, LLM) else str(self.draft)),
            draft_sha256=None if rig.draft is None else weights_digest(self.draft, _network(rig.draft)),
            method=self.method,
            guarantee={mode: str(guarantee) for mode, guarantee in promise.items()},
            settings={
                "dtype": str(decoder.dtype).removeprefix("torch."),
                "device": str(decoder.device),
                "exact": self.exact,
                "batching": self.batching,
                "max_tokens": self.max_tokens,
                "seed": self.seed,
                "sampling_checks": sampling,
                "controls": controls,
            },
            prompts=prompts.to_dict(),
            machine=describe_machine(str(decoder.device)),
            checks=tuple(self.checks),
            controls=tuple(self.found),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 1),
            command=command_line(),
        )

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)

    def _stage(self, stage: str, total: int) -> Callable[[], None]:
        """A callback that counts the steps of a stage."""
        done = 0
        self._tell(stage, 0, total)

        def step() -> None:
            nonlocal done
            done += 1
            self._tell(stage, done, total)

        return step


def _network(draft: LLM | NatDrafter) -> nn.Module:
    """The weights of a draft."""
    return draft.runner.decoder if isinstance(draft, LLM) else draft


def _few(prompts: Prompts) -> Prompts:
    """A few prompts of every kind."""
    return prompts[:: max(1, len(prompts) // FEW_PROMPTS)][:FEW_PROMPTS]
