"""The vocabulary of a byte-level BPE `tokenizer.json`, as GGUF wants it: token strings, types, merges, special ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.core.errors import CheckpointError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of GGUF

GPT2 = {"type": "ByteLevel", "use_regex": True}
# Splitters that llama.cpp knows under a name, as the parts of a tokenizer.json that mean the same.
SPLITTERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT2],
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer to be written into a GGUF file.

    Args:
        tokens, types: of every id, in order; ids beyond the tokenizer are padded with unused tokens.
        merges: pairs joined by a space, best first.
        splitter: name under which llama.cpp knows the pre-tokenizer.
        exact: whether that splitter cuts text as the tokenizer does. Where it does not, give llama.cpp ids, never text.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    splitter: str
    exact: bool


def read_vocabulary(folder: Path, size: int) -> Vocabulary | None:
    """The vocabulary of a checkpoint folder, padded to `size` ids; `None` if the folder has no tokenizer.

    Raises:
        CheckpointError: if `tokenizer.json` is not a byte-level BPE or has more ids than the model.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    described = json.loads(path.read_text())
    parts = _parts(described.get("pre_tokenizer"))
    if described["model"].get("type") != "BPE" or not any(part["type"] == "ByteLevel" for part in parts):
        raise CheckpointError(f"{path} is not a byte-level BPE, the only kind exported to GGUF; remove it to export the weights alone")
    added = {token["id"]: token for token in described.get("added_tokens", [])}
    by_id = {index: token for token, index in described["model"]["vocab"].items()} | {
        index: token["content"] for index, token in added.items()
    }
    if max(by_id) >= size:
        raise CheckpointError(f"{path} has token id {max(by_id)} but the model's vocab_size is {size}")
    types = [
        (CONTROL if added[index]["special"] else USER_DEFINED) if index in added else NORMAL if index in by_id else UNUSED
        for index in range(size)
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    known = next((name for name, splitter in SPLITTERS.items() if _same(parts, splitter)), None)
    tokens = [by_id.get(index, f"<|unused_{index}|>") for index in range(size)]
    return Vocabulary(tokens, types, merges, known or "gpt-2", known is not None)


def _parts(splitter: dict[str, Any] | None) -> list[dict[str, Any]]:
    if splitter is None:
        return []
    return list(splitter["pretokenizers"]) if splitter["type"] == "Sequence" else [splitter]


def _same(parts: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Whether the parts agree with the wanted ones in everything the latter mention (`use_regex` is true where it is left out)."""
    return len(parts) == len(wanted) and all(
        want.items() <= ({"use_regex": True} | part).items() for part, want in zip(parts, wanted, strict=True)
    )
