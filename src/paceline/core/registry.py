"""The method table: one row per method, as data. Implementations load only when a method is used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from paceline.core.errors import UsageError
from paceline.core.guarantee import Guarantee
from paceline.core.options import read_options, split_options

EXACT = (Guarantee.TOKEN_IDENTICAL, Guarantee.DISTRIBUTION_IDENTICAL)


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the registry.

    Args:
        name: what users write in `--method`.
        room: the decision it changes (a folder of the package).
        summary: one line for `paceline methods`.
        greedy, sampling: what it guarantees in each mode.
        target: `module:class` of the implementation; the class has a frozen dataclass `Config` and a `build(config, context)`.
        paper: where it is from.
        needs: what the user must bring ("draft model"), or nothing.
        trains: what must be trained first, or nothing.
    """

    name: str
    room: str
    summary: str
    greedy: Guarantee
    sampling: Guarantee
    target: str
    paper: str = ""
    needs: str = ""
    trains: str = ""

    def load(self) -> Any:
        """Import the implementation class."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


METHODS: tuple[Method, ...] = (
    Method("none", "drafting", "plain decoding: every draft is empty", *EXACT, "paceline.drafting.none:NoDraft"),
    Method(
        "prompt-lookup",
        "drafting",
        "copies what followed the last n-gram earlier in the context",
        *EXACT,
        "paceline.drafting.prompt_lookup:PromptLookup",
        paper="Saxena 2023, Prompt Lookup Decoding",
    ),
    Method(
        "draft-model",
        "drafting",
        "a smaller model of the same vocabulary drafts a chain or a static tree",
        *EXACT,
        "paceline.drafting.draft_model:DraftModel",
        paper="Leviathan et al. 2023, arXiv 2211.17192; Miao et al. 2024 (SpecInfer), arXiv 2305.09781",
        needs="draft model",
    ),
    Method(
        "dyspec",
        "drafting",
        "a smaller model drafts a tree that grows, per context, where verification is most likely to come by",
        *EXACT,
        "paceline.drafting.dyspec:DySpec",
        paper="Xiong et al. 2024 (DySpec), arXiv 2410.11744",
        needs="draft model",
    ),
    Method(
        "sequoia",
        "drafting",
        "a smaller model drafts the static tree that measured acceptance makes the best",
        *EXACT,
        "paceline.drafting.sequoia:Sequoia",
        paper="Chen et al. 2024 (Sequoia), arXiv 2402.12374",
        needs="draft model",
    ),
    Method(
        "stand",
        "drafting",
        "samples drafts from the target's own probabilities at recently seen n-grams",
        *EXACT,
        "paceline.drafting.stand:Stand",
        paper="Accelerated Test-Time Scaling with Model-Free Speculative Sampling 2025, arXiv 2506.04708",
    ),
    Method(
        "lookahead",
        "drafting",
        "drafts many branches from a trie of the prompt and of all earlier outputs",
        *EXACT,
        "paceline.drafting.lookahead:Lookahead",
        paper="Zhao et al. 2023, Lookahead, arXiv 2312.12728",
    ),
    Method(
        "gad",
        "drafting",
        "encoder-decoders: a non-autoregressive drafter fills a block of the output in one pass (beta above 1: approximate)",
        *EXACT,
        "paceline.drafting.gad:Gad",
        paper="Ge et al. 2022, arXiv 2205.10350; Xia et al. 2022, arXiv 2203.16487",
        needs="non-autoregressive drafter",
        trains="a non-autoregressive drafter",
    ),
    Method(
        "iad",
        "drafting",
        "copies the rest of the source, and finds its place again after every edit (correction, simplification)",
        *EXACT,
        "paceline.drafting.iad:IAD",
        paper="Ge et al. 2022, Aggressive Decoding, arXiv 2205.10350",
    ),
    Method(
        "auto",
        "drafting",
        "runs the drafter that measures fastest here, with drafts sized by measured cost and acceptance, down to none",
        *EXACT,
        "paceline.drafting.auto:Auto",
    ),
    Method(
        "static",
        "denoising",
        "diffusion models: a fixed number of positions per step; one per step is the plain decoding that others are measured by",
        *EXACT,
        "paceline.denoising.static:Static",
        paper="Nie et al. 2025 (LLaDA), arXiv 2502.09992; Ye et al. 2025 (Dream), arXiv 2508.15487",
    ),
    Method(
        "threshold",
        "denoising",
        "diffusion models: every position that is likely enough is decided at once",
        Guarantee.BOUNDED,
        Guarantee.BOUNDED,
        "paceline.denoising.threshold:Threshold",
        paper="Wu et al. 2025 (Fast-dLLM), arXiv 2505.22618; SDAR 2025, arXiv 2510.06303",
    ),
    Method(
        "factor",
        "denoising",
        "diffusion models: as many positions at once as their joint prediction is still safe for",
        Guarantee.BOUNDED,
        Guarantee.BOUNDED,
        "paceline.denoising.factor:Factor",
        paper="Wu et al. 2025 (Fast-dLLM), arXiv 2505.22618",
    ),
    Method(
        "freedave",
        "denoising",
        "diffusion models: verifies several steps of static decoding per forward and keeps its tokens (with a threshold: approximate)",
        *EXACT,
        "paceline.denoising.freedave:FreeDave",
        paper="Wu & Zhang 2025 (FreeDave), arXiv 2510.00294",
    ),
    Method(
        "localleap",
        "denoising",
        "diffusion models: near positions that are very sure, moderately sure ones are decided as well",
        Guarantee.BOUNDED,
        Guarantee.BOUNDED,
        "paceline.denoising.localleap:LocalLeap",
        paper="Kong et al. 2025 (LocalLeap), arXiv 2510.07081",
    ),
    Method(
        "learn2pd",
        "denoising",
        "diffusion models: a trained filter says which predictions of a block are final, and decides those at once",
        Guarantee.BOUNDED,
        Guarantee.BOUNDED,
        "paceline.denoising.learn2pd:Learn2PD",
        paper="Learning to Parallel (Learn2PD) 2025, arXiv 2509.25188",
        needs="filter file beside the model, or named",
        trains="a filter (paceline train learn2pd)",
    ),
)


def find(name: str) -> Method:
    """The row called `name`.

    Raises:
        UsageError: for an unknown name, listing the known ones.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise UsageError(f"unknown method {name!r}; known: {', '.join(method.name for method in METHODS)}")


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """A parsed `NAME[:key=value,...]`."""

    method: Method
    options: dict[str, str]

    def config(self) -> Any:
        """The method's `Config` with the options applied, each converted to its field's type.

        Raises:
            UsageError: for an unknown option or a value of the wrong type, naming both.
        """
        return read_options(self.method.load().Config, self.options, f"method {self.method.name!r}")

    @property
    def guarantees(self) -> tuple[Guarantee, Guarantee]:
        """What the method promises with these options, greedy and sampling: less than its row says where its `Config` says so."""
        weakened: tuple[Guarantee, Guarantee] | None = getattr(self.config(), "guarantees", None)
        return (self.method.greedy, self.method.sampling) if weakened is None else weakened


def parse(text: str) -> tuple[MethodChoice, ...]:
    """Parse a method string such as `draft-model:length=4+prompt-lookup`.

    Raises:
        UsageError: for unknown methods or malformed options.
    """
    if not isinstance(text, str):
        raise UsageError(f"method={text!r} must be a text, as in 'draft-model:length=4'; 'none' decodes plainly")
    choices = []
    for part in text.split("+"):
        name, options = split_options(part, "method")
        choices.append(MethodChoice(find(name), options))
    return tuple(choices)
