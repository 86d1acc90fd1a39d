"""Checks of the sampling law on toy models, where every output can be enumerated."""

from __future__ import annotations

from collections.abc import Callable

from paceline.bench.audit.certificate import Check, Control, Outcome
from paceline.bench.audit.faults import PlainWalk, Pretender
from paceline.bench.audit.laws import (
    ChiSquare,
    Family,
    LawOf,
    Tokens,
    chi_square,
    count_outputs,
    distance,
    law_of_model,
    plain_law,
    speculative_law,
)
from paceline.bench.audit.rig import Rig
from paceline.bench.audit.rules import BonusFromDraft, DraftNotZeroed, ResidualLeftOut, TextbookRule
from paceline.bench.audit.toy import toy_decoder
from paceline.core.sampling import Sampling
from paceline.drafting.draft_model import DraftModel
from paceline.engine.llm import LLM
from paceline.engine.load import load

VOCABULARY, LENGTH = 5, 3  # 125 outputs
PROMPT: Tokens = (1, 2, 3, 1, 2)
SHARPNESS = 1.2  # close enough to uniform that all outputs happen
TARGET_SEED, DRAFT_SEED = 0, 100  # a pair whose laws are far apart: every fault moves the output law by a fifth or more
EXACT_LIMIT = 1e-9  # total variation distance that rounding may cause in float64
P_LIMIT = 1e-6  # chi-square: a right engine fails once in a million seeds; faults give 1e-20 and less
SAMPLES = 1200
SETTINGS = {"temperature 1": Sampling(temperature=1.0), "temperature 0.7, top-p 0.9": Sampling(temperature=0.7, top_p=0.9)}
SUBJECT = f"toy pair, vocabulary {VOCABULARY}"

FAMILIES = {
    "chain": Family(widths=(1, 1)),
    "tree without replacement": Family(widths=(3, 2)),
    "tree with replacement": Family(widths=(2, 2), replacement=True),
    "chosen candidates": Family(widths=(2, 1), chosen=True),
    "chain, textbook rule": Family(TextbookRule.open, widths=(1, 1)),
    "tree, textbook rule": Family(TextbookRule.open, widths=(3, 2)),
}
FAULTS = {
    "residual left out": Family(ResidualLeftOut.open, widths=(1, 1)),
    "draft law not zeroed after a rejection": Family(DraftNotZeroed.open, widths=(3, 2)),
    "ratio test on chosen candidates": Family(widths=(2, 1), chosen=True, claimed=True),
    "bonus from the draft": Family(BonusFromDraft.open, widths=(1, 1), draft_at_leaves=True),
}


def toy_rig() -> Rig:
    """A toy target with a toy draft model, in float64."""

    def loaded(seed: int, layers: int) -> LLM:
        return load(toy_decoder(VOCABULARY, seed=seed, layers=layers, sharpness=SHARPNESS), "none", device="cpu", pack=False, kv_tokens=64)

    return Rig(loaded(TARGET_SEED, 2), loaded(DRAFT_SEED, 1))


def laws(rig: Rig, sampling: Sampling) -> tuple[LawOf, LawOf]:
    """Next-token laws of target and draft behind the prompt."""
    assert isinstance(rig.draft, LLM)
    return law_of_model(rig.target.runner.decoder, PROMPT, sampling), law_of_model(rig.draft.runner.decoder, PROMPT, sampling)


def check_node_rule(rig: Rig) -> Check:
    """The rule that judges sampled and chosen candidates, by exact enumeration of every draw and every acceptance."""
    worst: dict[str, float] = {}
    for name, sampling in SETTINGS.items():
        target, draft = laws(rig, sampling)
        plain = plain_law(target, VOCABULARY, LENGTH)
        for shape, family in FAMILIES.items():
            worst[f"{shape}, {name}"] = distance(speculative_law(target, draft, LENGTH, family), plain)
    outcome = Outcome.PASSED if max(worst.values()) < EXACT_LIMIT else Outcome.FAILED
    detail = f"laws of {LENGTH} tokens, total variation distance at most {max(worst.values()):.1e} (limit {EXACT_LIMIT:.0e})"
    return Check("node rule, exact law", SUBJECT, outcome, len(worst) * VOCABULARY**LENGTH, detail, (), {"distance": worst})


def check_loop_law(rig: Rig, method: str, seed: int, *, promised: bool, on_sample: Callable[[], None] | None = None) -> Check:
    """Outputs of the whole loop with a method, counted over many seeds, against the enumerated law of plain sampling."""
    results: dict[str, ChiSquare] = {}
    for name, sampling in SETTINGS.items():
        llm = rig.engine(method, [PROMPT] * 64, LENGTH)
        results[name] = measure_engine(rig, llm, sampling, seed)
        if on_sample is not None:
            on_sample()
    lowest = min(result.p_value for result in results.values())
    outcome = Outcome.MEASURED if not promised else Outcome.PASSED if lowest > P_LIMIT else Outcome.FAILED
    detail = f"{SAMPLES} samples of {LENGTH} tokens per setting, lowest chi-square p-value {lowest:.2g} (limit {P_LIMIT:.0e})"
    numbers = {
        name: {"statistic": r.statistic, "freedom": r.freedom, "p_value": r.p_value, "cells": r.cells} for name, r in results.items()
    }
    return Check("law of the loop", SUBJECT, outcome, SAMPLES * len(SETTINGS), detail, (), numbers)


def measure_engine(rig: Rig, llm: LLM, sampling: Sampling, seed: int) -> ChiSquare:
    """Chi-square of an engine's outputs against plain sampling's law."""
    target, _ = laws(rig, sampling)
    return chi_square(count_outputs(llm.engine, PROMPT, sampling, LENGTH, SAMPLES, seed), plain_law(target, VOCABULARY, LENGTH))


def rule_controls(rig: Rig) -> list[Control]:
    """Faulty node rules, which exact enumeration must notice."""
    target, draft = laws(rig, SETTINGS["temperature 1"])
    plain = plain_law(target, VOCABULARY, LENGTH)
    found = []
    for name, family in FAULTS.items():
        moved = distance(speculative_law(target, draft, LENGTH, family), plain)
        found.append(Control(name, _fault(family), "node rule, exact law", moved > EXACT_LIMIT, f"total variation distance {moved:.3f}"))
    return found


def _fault(family: Family) -> str:
    owner = getattr(family.rule, "__self__", None)
    return "chosen candidates judged by min(1, p/q)" if family.claimed else str(getattr(owner, "__doc__", "")).removeprefix("Fault: ")


def loop_controls(rig: Rig, seed: int) -> list[Control]:
    """The same faults inside a running engine, which counting must notice."""
    prompts = [PROMPT] * 64
    sampling = SETTINGS["temperature 1"]
    pretender = rig.wired(Pretender(_chain_drafter(rig)), prompts, LENGTH)
    left_out = rig.wired(_chain_drafter(rig), prompts, LENGTH)
    left_out.engine.verifier = PlainWalk(ResidualLeftOut.open)
    found = []
    for name, fault, llm in (
        ("residual left out", "after a rejection, the engine samples from the target's own law", left_out),
        ("ratio test on chosen candidates", "a drafter chooses the likeliest token and claims to have drawn it", pretender),
    ):
        result = measure_engine(rig, llm, sampling, seed)
        found.append(Control(f"{name}, whole loop", fault, "law of the loop", result.p_value < P_LIMIT, f"p-value {result.p_value:.1e}"))
    return found


def _chain_drafter(rig: Rig) -> DraftModel:
    """The toy draft model, drafting chains of two."""
    return DraftModel(DraftModel.Config(length=2), rig.draft_runner([PROMPT] * 64, LENGTH), frozenset())
