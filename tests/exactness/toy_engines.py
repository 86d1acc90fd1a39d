"""Engines on toy decoders in float64, and a tokenizer whose tokens are single characters."""

from __future__ import annotations

from typing import Any

from paceline.bench.audit.toy import toy_decoder
from paceline.core.sampling import Sampling
from paceline.engine.llm import LLM
from paceline.engine.load import load
from paceline.engine.prompts import Tokenizer

VOCABULARY = 24
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
METHODS = (
    "none",
    "prompt-lookup",
    "iad",
    "draft-model:length=3",
    "draft-model:length=3,branching=3x2x1",
    "prompt-lookup+draft-model:length=2,branching=2x2",
    "auto",
    "stand",
    "lookahead",
)
DRAFTING = METHODS[1:]


class Letters:
    """Token i is the i-th letter."""

    def encode(self, text: str) -> list[int]:
        return [ALPHABET.index(letter) for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(ALPHABET[token] for token in ids)


def toy_llm(seed: int = 1, *, layers: int = 2, eos: tuple[int, ...] = (), window: int | None = None) -> LLM:
    """A toy target (or draft) with letters as tokens; other engines are made on its weights."""
    decoder = toy_decoder(VOCABULARY, seed=seed, layers=layers, eos=eos, window=window, max_positions=160)
    llm = load(decoder, "none", device="cpu", kv_tokens=4, pack=False)
    llm.tokenizer = Tokenizer(Letters())
    llm.name = "toy"
    return llm


def make(target: LLM, draft: LLM, method: str, **options: Any) -> LLM:
    """An engine with a method on the target's weights; roomy unless told otherwise."""
    options = {"kv_tokens": 2000, "max_sequences": 16} | options
    return load(target, method, draft=draft, device="cpu", **options)


def overbook(llm: LLM) -> LLM:
    """Make the scheduler expect outputs of no length at all, as after many requests that stopped at once: it admits too many."""
    llm.engine.scheduler._expected_share = 0.0
    return llm


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    """Ragged prompts with repeated stretches, so that looking back finds something; ids 0 and 2 (end of sequence) occur in them."""
    made = []
    for index in range(count):
        length = 1 + (7 * index + 5) % longest
        period = 3 + index % 5
        made.append([(at % period * (index + 3) + 2 * (at // 11)) % VOCABULARY for at in range(length)])
    return made


def ids(llm: LLM, asked: list[list[int]], sampling: Sampling | None = None, max_tokens: int = 20, **options: Any) -> list[list[int]]:
    """Output ids of all prompts, batched."""
    return [output.token_ids for output in llm.generate(asked, sampling, max_tokens, **options)]
