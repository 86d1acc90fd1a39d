"""The audit of masked diffusion models: identity to plain denoising, written down once more, and independence of the batch.

Plain denoising decides one position per forward, the likeliest first, and computes the whole canvas every time, one answer at a time, in a
memory of its own. It shares the network with the audited engine, and nothing else.

A difference is a *tie* where some step of the plain path was nearly undecided (its two best positions, or the two best tokens of the best
one, closer than rounding can explain) and everything decided before that step is the same; otherwise it is a violation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from paceline.bench.audit.certificate import Check, Control, Difference, Kind, Outcome
from paceline.bench.audit.identity import verdict
from paceline.bench.audit.margins import tolerance
from paceline.bench.audit.rig import Prompts, Rig, decode
from paceline.core import registry
from paceline.core.sampling import Sampling
from paceline.denoising.canvas import Canvas, Flags
from paceline.denoising.denoiser import Denoiser, Task
from paceline.denoising.freedave_decoder import DraftAndVerify, DraftTask
from paceline.denoising.guesses import Guesses
from paceline.denoising.rules import Static
from paceline.engine.canvas_logits import canvas_logits
from paceline.engine.llm import LLM
from paceline.engine.output import Output

FEW_PROMPTS = 4  # on which the engine is broken
SETTINGS = {"greedy": Sampling(), "temperature 0.8": Sampling(temperature=0.8, seed=1)}


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """One answer of plain denoising.

    Args:
        tokens: in order of position.
        order: index of the position decided in each step.
        margins: how clearly each step was decided, in nats or logits, whichever is closer.
        slack: what rounding can explain in each step.
    """

    tokens: tuple[int, ...]
    order: tuple[int, ...]
    margins: tuple[float, ...]
    slack: tuple[float, ...]

    def explain(self, found: Sequence[int]) -> tuple[Kind, float, float]:
        """What a difference is, with margin and tolerance of the step that decides about it."""
        for at, margin, slack in zip(self.order, self.margins, self.slack, strict=True):
            if margin <= slack:
                return Kind.TIE, margin, slack
            if at < len(found) and found[at] != self.tokens[at]:
                return Kind.VIOLATION, margin, slack
        return Kind.VIOLATION, min(self.margins), max(self.slack)


def plain_answer(llm: LLM, prompt: Sequence[int], max_tokens: int) -> PlainAnswer:
    """Denoise one prompt plainly.

    Args:
        llm: whose network, block size and forbidden ids are used.
    """
    runner, denoiser = llm.runner, llm.engine.denoiser
    spec, banned = denoiser.spec, list(denoiser.reading.banned)
    block = denoiser.block or max_tokens
    aligned = spec.block is not None
    first = len(prompt)
    total = -(-(first + max_tokens) // block) * block if aligned else first + max_tokens
    ids = torch.tensor([*prompt, *[spec.mask] * (total - first)])
    order, margins, slack = [], [], []
    for low in range(first // block * block if aligned else first, total, block):
        waiting = list(range(max(low, first), min(low + block, total)))
        while waiting:
            logits = canvas_logits(runner, ids[None])[0].to("cpu", torch.float64, copy=True)
            room = tolerance(logits[waiting].flatten(), runner.decoder.dtype)
            logits[:, banned] = -torch.inf
            law = logits[waiting].log_softmax(-1)
            best, token = law.max(-1)
            at = int(best.argmax())  # the first of equal ones
            pair = logits[waiting[at]].topk(2).values
            others = torch.cat([best[:at], best[at + 1 :]])
            lead = float(best[at] - others.max()) if len(others) else float("inf")
            margins.append(min(lead, float(pair[0] - pair[1])))
            slack.append(2 * room)  # two confidences, or two logits, may both be off
            position = waiting.pop(at)
            order.append(position - first)
            ids[position] = token[at]
    return PlainAnswer(tuple(ids[first:].tolist()), tuple(order), tuple(margins), tuple(slack))


def audit_denoising(
    rig: Rig,
    method: str,
    prompts: Prompts,
    max_tokens: int,
    *,
    promised: bool,
    controls: bool,
    tell: Callable[[str, int, int], None],
) -> tuple[list[Check], list[Control]]:
    """Checks of a denoising method, and the controls that prove that they can see.

    Args:
        rig: of the model.
        method: audited.
        prompts, max_tokens: what is decoded.
        promised: whether the method promises plain denoising's tokens; if not, agreement is measured.
        controls: break the engine on purpose.
        tell: progress.
    """
    llm = rig.engine(method, prompts, max_tokens)
    plain = []
    for index, prompt in enumerate(prompts):
        tell("plain denoising", index, len(prompts))
        plain.append(plain_answer(llm, prompt, max_tokens))
    tell("greedy identity", 0, 1)
    checks = [_identity(rig, llm, prompts, plain, max_tokens, promised=promised)]
    tell("independence of the batch", 0, 1)
    checks.append(_independence(rig, llm, prompts, max_tokens))
    twin = _twin(method)
    same: list[Output] = []
    if twin is not None:
        tell("identity to the static decoder", 0, 1)
        same = decode(rig.engine(twin, prompts, max_tokens), prompts, Sampling(), max_tokens, batched=False)
        checks.append(_same_decoder(rig, llm, same, prompts, max_tokens))
    if not controls:
        return checks, []
    few = prompts[:FEW_PROMPTS]
    found = []
    for index, (name, (fault, broken)) in enumerate(FAULTS.items()):
        tell("controls", index, len(FAULTS))
        engine = rig.engine("static", few, max_tokens)
        engine.engine.denoiser = broken(replace(engine.engine.denoiser, block=llm.engine.denoiser.block))
        check = _identity(rig, engine, few, plain[:FEW_PROMPTS], max_tokens, promised=True)
        caught = check.outcome is Outcome.FAILED
        found.append(Control(name, fault, check.name, caught, check.detail))
    for name, (fault, broken) in _draft_faults(llm).items():
        engine = rig.engine(method, few, max_tokens)
        engine.engine.denoiser = broken(engine.engine.denoiser)
        check = _same_decoder(rig, engine, same[:FEW_PROMPTS], few, max_tokens)
        found.append(Control(name, fault, check.name, check.outcome is not Outcome.PASSED, check.detail))
    return checks, found


def _twin(method: str) -> str | None:
    """The decoder whose tokens a method promises, where that is not plain decoding (a cache, a threshold)."""
    (choice,) = registry.parse(method)
    found: str | None = getattr(choice.config(), "twin", None)
    return found


def _draft_faults(llm: LLM) -> dict[str, tuple[str, Callable[[Denoiser], Denoiser]]]:
    """Ways to break a decoder that verifies drafts by exact matches; drafts with a forward of their own have no branches to cross."""
    denoiser = llm.engine.denoiser
    if not isinstance(denoiser, DraftAndVerify) or denoiser.match != "exact" or denoiser.drafts == 1:
        return {}
    return {name: fault for name, fault in DRAFT_FAULTS.items() if denoiser.mode != "sequential" or name != "crossed branches"}


def _same_decoder(rig: Rig, llm: LLM, plain: Sequence[Output], prompts: Prompts, max_tokens: int) -> Check:
    """Tokens of the decoder whose steps a method verifies, with the same cache, in no more forwards. Rounding may differ but in float64."""
    found = decode(llm, prompts, Sampling(), max_tokens, batched=False)
    pairs = list(zip(found, plain, strict=True))
    same = sum(mine.token_ids == other.token_ids for mine, other in pairs)
    denoiser = llm.engine.denoiser
    shared = not (isinstance(denoiser, DraftAndVerify) and denoiser.mode == "sequential")  # a forward per draft saves none
    more = sum(mine.stats.forwards > other.stats.forwards for mine, other in pairs) if shared else 0
    forwards = [sum(output.stats.forwards for output in outputs) for outputs in (found, plain)]
    exact = rig.target.runner.decoder.dtype is torch.float64
    right = same == len(pairs) and not more
    outcome = Outcome.PASSED if right else Outcome.FAILED if exact else Outcome.MEASURED
    detail = f"{same} of {len(pairs)} outputs identical, {forwards[0]} forwards for {forwards[1]}"
    detail += f", {more} with more forwards" * bool(more) + " (rounding may; --dtype fp64 decides)" * (not right and not exact)
    numbers = {"identical_outputs": same, "forwards": forwards[0], "plain_forwards": forwards[1], "with_more_forwards": more}
    return Check("identity to the decoder drafted for", rig.subject, outcome, len(pairs), detail, numbers=numbers)


def _identity(rig: Rig, llm: LLM, prompts: Prompts, plain: Sequence[PlainAnswer], max_tokens: int, *, promised: bool) -> Check:
    differences: list[Difference] = []
    forwards = rows = tokens = agreed = 0
    for batched in (False, True):
        label = f"greedy, {'batched' if batched else 'batch 1'}"
        for index, output in enumerate(decode(llm, prompts, Sampling(), max_tokens, batched=batched)):
            forwards, rows, tokens = forwards + output.stats.forwards, rows + output.stats.rows, tokens + len(output.token_ids)
            expected = plain[index].tokens[: len(output.token_ids)]
            equal = np.array(expected) == np.array(output.token_ids)
            agreed += int(equal.sum())
            if equal.all():
                continue
            at = int(equal.argmin())
            kind, margin, slack = plain[index].explain(output.token_ids)
            differences.append(Difference(label, index, at, expected[at], output.token_ids[at], margin, margin, slack, kind))
    violations = sum(difference.kind is Kind.VIOLATION for difference in differences)
    ties = len(differences) - violations
    compared = 2 * len(prompts)
    numbers = {
        "tokens": tokens,
        "tokens_per_forward": tokens / max(1, forwards),
        "rows": rows,
        "token_agreement": agreed / max(1, tokens),
        "ties": ties,
        "violations": violations,
        "identical_outputs": compared - len(differences),
    }
    detail = (
        f"{compared - len(differences)} of {compared} outputs identical, {numbers['token_agreement']:.1%} of {tokens} tokens, "
        f"{numbers['tokens_per_forward']:.2f} per forward"
    )
    outcome = verdict(ties, violations, promised)
    return Check("greedy identity", rig.subject, outcome, compared, detail, tuple(differences), numbers)


def _independence(rig: Rig, llm: LLM, prompts: Prompts, max_tokens: int) -> Check:
    """Whatever a method promises, an answer must not depend on those beside it. Only float64 leaves rounding no say in it."""
    same = 0
    for sampling in SETTINGS.values():
        alone, together = (decode(llm, prompts, sampling, max_tokens, batched=batched) for batched in (False, True))
        same += sum(one.token_ids == other.token_ids for one, other in zip(alone, together, strict=True))
    compared = len(SETTINGS) * len(prompts)
    exact = rig.target.runner.decoder.dtype is torch.float64
    outcome = Outcome.PASSED if same == compared else Outcome.FAILED if exact else Outcome.MEASURED
    detail = f"{same} of {compared} outputs do not depend on the batch" + ("" if exact else " (rounding may; --dtype fp64 decides)")
    return Check("independence of the batch", rig.subject, outcome, compared, detail, numbers={"identical_outputs": same})


@dataclass(frozen=True, slots=True)
class StaleInput(Denoiser):
    """Feeds the token that was decided last as a mask."""

    def ids(self, task: Task, look: int) -> list[int]:
        ids = Denoiser.ids(self, task, look)
        canvas = task.canvas
        late = set(np.flatnonzero((canvas.decided == canvas.forwards) & (canvas.decided > 0)).tolist())
        return [canvas.mask if at in late else token for at, token in zip(task.looks[look].positions, ids, strict=True)]


@dataclass(frozen=True, slots=True)
class LostPrompt(Denoiser):
    """Does not see the last token of the prompt."""

    def ids(self, task: Task, look: int) -> list[int]:
        ids = Denoiser.ids(self, task, look)
        lost = task.canvas.prompt - 1
        return [task.canvas.mask if at == lost else token for at, token in zip(task.looks[look].positions, ids, strict=True)]


@dataclass(frozen=True, slots=True)
class WrongRow(Denoiser):
    """Reads every prediction one row off."""

    def logit_rows(self, task: Task, look: int) -> list[int]:
        last = len(task.looks[look].positions) - 1
        return [row - 1 if row else last for row in Denoiser.logit_rows(self, task, look)]


@dataclass(frozen=True, slots=True)
class CausalAttention(Denoiser):
    """Lets no position see those behind it."""

    def task(self, canvas: Canvas, views: Any, sampling: Sampling, room: int) -> Task:
        task = Denoiser.task(self, canvas, views, sampling, room)
        looks = tuple(replace(look, segment=replace(look.segment, mask=None, canvas=None)) for look in task.looks)
        return replace(task, looks=looks)


@dataclass(frozen=True, slots=True)
class WorstFirst(Static):
    """Decides the least likely position."""

    def choose(self, guesses: Guesses, canvas: Canvas) -> Flags:
        return guesses.best(1, -guesses.score)


@dataclass(frozen=True, slots=True)
class Credulous(DraftAndVerify):
    """Keeps every draft."""

    def accepted(self, states: Sequence[Canvas], found: Sequence[Guesses]) -> list[int]:
        return list(range(len(states)))


@dataclass(frozen=True, slots=True)
class OwnGuesses(DraftAndVerify):
    """Takes what the first branch says for what all of them say."""

    def accepted(self, states: Sequence[Canvas], found: Sequence[Guesses]) -> list[int]:
        return DraftAndVerify.accepted(self, states, [found[0]] * len(states))


@dataclass(frozen=True, slots=True)
class CrossedBranches(DraftAndVerify):
    """Lets branches write the slots of the canvas itself, or, as rows of one segment, see one another."""

    def task(self, canvas: Canvas, views: Any, sampling: Sampling, room: int) -> DraftTask:
        task = DraftAndVerify.task(self, canvas, views, sampling, room)
        if task.count == 1:
            return task
        segments = [replace(look.segment, memory=views[0]) for look in task.looks]
        if len(segments) == 1 and segments[0].mask is not None:
            segments = [replace(segments[0], mask=torch.ones_like(segments[0].mask))]
        looks = tuple(replace(look, segment=segment) for look, segment in zip(task.looks, segments, strict=True))
        return replace(task, looks=looks)


def _as(kind: type[Denoiser]) -> Callable[[Denoiser], Denoiser]:
    """The same decoder with another class."""
    return lambda decoder: kind(**{entry.name: getattr(decoder, entry.name) for entry in fields(decoder)})


DRAFT_FAULTS: dict[str, tuple[str, Callable[[Denoiser], Denoiser]]] = {
    "credulous": ("every draft is kept", _as(Credulous)),
    "own guesses": ("drafts are verified by what the canvas itself says", _as(OwnGuesses)),
    "crossed branches": ("drafts overwrite one another's keys and values", _as(CrossedBranches)),
}
FAULTS: dict[str, tuple[str, Callable[[Denoiser], Denoiser]]] = {
    "stale input": ("the token decided last is fed as a mask", _as(StaleInput)),
    "lost prompt": ("the last token of the prompt is fed as a mask", _as(LostPrompt)),
    "wrong row": ("predictions are read one row off", _as(WrongRow)),
    "causal attention": ("no position sees those behind it", _as(CausalAttention)),
    "worst first": ("the least likely position is decided first", lambda decoder: replace(decoder, rule=WorstFirst())),
}
