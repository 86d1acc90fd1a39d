"""Prompts an audit decodes: text where there is a tokenizer, random ids always, with id 0 and end-of-sequence ids in awkward places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paceline.core.errors import UsageError
from paceline.core.rng import key
from paceline.engine.llm import LLM
from paceline.engine.prompts import Prompt, prompt_ids

TEXTS, RANDOM = 12, 4
LENGTHS = (7, 24, 60, 150)  # tokens kept of successive prompts, so that batches are ragged


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as ids.

    Args:
        ids: of each prompt.
        source: where they came from, for the certificate.
    """

    ids: tuple[tuple[int, ...], ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Source, count, lengths and digest of the ids."""
        digest = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()
        return {"source": self.source, "count": len(self.ids), "tokens": [len(ids) for ids in self.ids], "sha256": digest}


def audit_prompts(llm: LLM, given: Sequence[Prompt] | None, max_tokens: int, seed: int) -> PromptSet:
    """The prompts of an audit.

    Args:
        llm: the audited model.
        given: the user's prompts; `None` takes held-out Python text (with a tokenizer) and random ids.
        max_tokens: how far each will be continued; prompts are cut so that this fits the context.

    Raises:
        UsageError: if there are no prompts, or one does not fit.
    """
    room = llm.engine.context - max_tokens - 1
    if room < 2:
        raise UsageError(f"max_tokens={max_tokens} leaves no room for a prompt in the model's context of {llm.engine.context}; lower it")
    if given is not None:
        if not given:
            raise UsageError("the list of prompts is empty; give at least one, or leave it out")
        ids = tuple(prompt_ids(prompt, llm.tokenizer, llm.prompt_vocabulary) for prompt in given)
        longest = max(map(len, ids))
        if longest > room:
            raise UsageError(f"a prompt has {longest} tokens, but with max_tokens={max_tokens} the context leaves room for {room}")
        return PromptSet(ids, "given")
    random = random_prompts(llm, RANDOM if llm.tokenizer is not None else TEXTS + RANDOM, room, seed)
    if llm.tokenizer is None:
        return PromptSet(random, f"random ids, seed {seed}")
    from paceline.zoo.prompts import held_out_prompts

    texts = []
    for at, prompt in enumerate(held_out_prompts(TEXTS)):
        whole = tuple(llm.tokenizer.encode(prompt.prefix))
        texts.append(whole[-min(LENGTHS[at % len(LENGTHS)], room) :])
    return PromptSet((*texts, *random), f"held-out files of the Python standard library, and random ids, seed {seed}")


def random_prompts(llm: LLM, count: int, room: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Random ids; every prompt but the first holds id 0 and every end-of-sequence id somewhere in the middle."""
    special = (0, *sorted(llm.engine.eos))
    prompts = []
    for index in range(count):
        length = min(LENGTHS[index % len(LENGTHS)], room)
        ids = [key(seed, index, at) % llm.prompt_vocabulary for at in range(length)]
        if index:
            for at, token in enumerate(special):
                ids[key(seed, index, length + at) % length] = token
        prompts.append(tuple(ids))
    return tuple(prompts)
