"""Token identity: the method's output against plain decoding's, greedy and with coupled sampling, one by one and batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from paceline.bench.audit.certificate import Check, Difference, Kind, Outcome
from paceline.bench.audit.margins import PlainPath
from paceline.bench.audit.rig import Prompts, Rig, decode
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM

OnOutput = Callable[[], None]
GREEDY_SETTINGS = {
    "greedy": Sampling(),
    "repetition penalty 1.3": Sampling(repetition_penalty=1.3),
    "no-repeat 3-gram": Sampling(no_repeat_ngram=3),
}
SAMPLED_SETTINGS = {
    "temperature 0.8, top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
    "temperature 0.8, top-k 20, presence 0.4": Sampling(temperature=0.8, top_k=20, presence_penalty=0.4),
}


def reference(
    rig: Rig, prompts: Prompts, settings: dict[str, Sampling], max_tokens: int, on_output: OnOutput | None = None
) -> dict[str, list[list[int]]]:
    """Plain decoding of every prompt alone: what everything else is compared with."""
    plain = rig.engine("none", prompts, max_tokens)
    return {
        name: [output.token_ids for output in decode(plain, prompts, sampling, max_tokens, batched=False, on_output=on_output)]
        for name, sampling in settings.items()
    }


def compare(
    path: PlainPath, prompts: Prompts, plain: Sequence[Sequence[int]], found: Sequence[Sequence[int]], sampling: Sampling, setting: str
) -> list[Difference]:
    """The first difference of every output from plain decoding, weighed."""
    differences = []
    for index, (prompt, expected, got) in enumerate(zip(prompts, plain, found, strict=True)):
        if list(expected) == list(got):
            continue
        common = next((at for at, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
        if common in (len(expected), len(got)):
            ends = [tokens[common] if common < len(tokens) else None for tokens in (expected, got)]
            differences.append(Difference(setting, index, common, ends[0], ends[1], None, None, 0.0, Kind.VIOLATION))
            continue
        margin = path.margin(list(prompt), list(expected[:common]), sampling, expected[common], got[common])
        kind = Kind.TIE if margin.is_tie else Kind.VIOLATION
        differences.append(
            Difference(setting, index, common, expected[common], got[common], margin.top2, margin.gap, margin.tolerance, kind)
        )
    return differences


def check_identity(
    name: str,
    rig: Rig,
    llm: LLM,
    prompts: Prompts,
    plain: dict[str, list[list[int]]],
    settings: dict[str, Sampling],
    max_tokens: int,
    *,
    promised: bool,
    ties_allowed: bool = True,
    on_output: OnOutput | None = None,
) -> Check:
    """Decode every prompt with `llm` under every setting, alone and batched, and compare with plain decoding.

    Args:
        promised: whether identity is guaranteed; if not, agreement is only measured.
        ties_allowed: whether rounding is an excuse (not in bit-exact mode).
    """
    path = PlainPath(rig.target.runner.decoder, rig.target.runner.exact)
    differences: list[Difference] = []
    drafted = accepted = forwards = tokens = compared = 0
    for setting, sampling in settings.items():
        for batched in (False, True):
            outputs = decode(llm, prompts, sampling, max_tokens, batched=batched, on_output=on_output)
            label = f"{setting}, {'batched' if batched else 'batch 1'}"
            differences += compare(path, prompts, plain[setting], [output.token_ids for output in outputs], sampling, label)
            compared += len(outputs)
            for output in outputs:
                drafted, accepted = drafted + output.stats.drafted, accepted + output.stats.accepted
                forwards, tokens = forwards + output.stats.forwards, tokens + output.stats.output_tokens
    if not ties_allowed:
        differences = [replace(difference, kind=Kind.VIOLATION, tolerance=0.0) for difference in differences]
    violations = sum(difference.kind is Kind.VIOLATION for difference in differences)
    ties = len(differences) - violations
    numbers = {
        "tokens": tokens,
        "drafted": drafted,
        "accepted": accepted,
        "tokens_per_forward": tokens / max(1, forwards),
        "ties": ties,
        "violations": violations,
        "identical_outputs": compared - len(differences),
    }
    detail = (
        f"{compared - len(differences)} of {compared} outputs identical, {tokens} tokens, {numbers['tokens_per_forward']:.2f} per forward"
    )
    return Check(name, rig.subject, verdict(ties, violations, promised), compared, detail, tuple(differences), numbers)


def verdict(ties: int, violations: int, promised: bool) -> Outcome:
    """How a comparison ends."""
    if not promised:
        return Outcome.MEASURED
    if violations:
        return Outcome.FAILED
    return Outcome.TIES if ties else Outcome.PASSED
