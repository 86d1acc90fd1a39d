"""STAND's tables on disk: plain arrays in a zip (npz), never pickle, written beside the file and renamed over it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.core.errors import UsageError
from paceline.drafting.array_file import write_arrays
from paceline.drafting.stand.scope import Space, Spaces
from paceline.drafting.stand.table import Context, Entry, Table

FORMAT = 1
NOBODY = -1  # stands for a sequence of an earlier process


@dataclass(frozen=True, slots=True)
class SavedSpace:
    """One share of a table.

    Args:
        name: whose it is, as `scope.Spaces` names it.
        seeds: of the sequences that fed it.
        contexts, counts, ids, probs: its entries, the least recently used first; rows of `ids` and `probs` end in zero probabilities.
    """

    name: Hashable
    seeds: tuple[int, ...]
    contexts: list[Context]
    counts: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float64]


def kept(spaces: Spaces, table: Table, width: int) -> list[SavedSpace]:
    """All spaces of a table, ready to be written.

    Args:
        width: most tokens of an entry.
    """
    found = []
    for name, space in spaces.named():
        contexts = table.contexts(space)
        ids, probs = np.zeros((len(contexts), width), np.int32), np.zeros((len(contexts), width))
        for at, (_, entry) in enumerate(contexts):
            ids[at, : len(entry.ids)], probs[at, : len(entry.ids)] = entry.ids, entry.probs
        counts = np.array([entry.count for _, entry in contexts], np.int32)
        found.append(SavedSpace(name, tuple(space.seeds), [context for context, _ in contexts], counts, ids, probs))
    return found


def restore(saved: list[SavedSpace], spaces: Spaces, table: Table) -> None:
    """Put spaces back in place; one that is known already is replaced. Their seeds count as used."""
    for each in saved:
        space = Space(seeds=dict.fromkeys(each.seeds, NOBODY))
        spaces.adopt(each.name, space)
        for at, context in enumerate(each.contexts):
            table.restore(space, context, Entry.of(each.ids[at].tolist(), each.probs[at].tolist(), int(each.counts[at])))


def write_tables(path: Path, spaces: list[SavedSpace], vocabulary: int, width: int, scope: str) -> None:
    """Write all spaces.

    Raises:
        UsageError: if the file cannot be written.
    """
    head = {
        "format": FORMAT,
        "vocabulary": vocabulary,
        "width": width,
        "scope": scope,
        "spaces": [{"name": space.name, "seeds": space.seeds} for space in spaces],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"head": np.array(json.dumps(head))}
    for number, space in enumerate(spaces):
        arrays[f"{number}_length"] = np.array([len(context) for context in space.contexts], np.int32)
        arrays[f"{number}_context"] = np.array([token for context in space.contexts for token in context], np.int32)
        arrays |= {f"{number}_count": space.counts, f"{number}_ids": space.ids, f"{number}_probs": space.probs}
    write_arrays(path, arrays)


def read_tables(path: Path, vocabulary: int, width: int, scope: str) -> list[SavedSpace]:
    """The spaces of a file made by `write_tables`.

    Raises:
        UsageError: if the file is missing, damaged, or of another format, vocabulary, width or scope.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays["head"]))
        for name, wanted in (("format", FORMAT), ("vocabulary", vocabulary), ("width", width), ("scope", scope)):
            if head[name] != wanted:
                raise UsageError(
                    f"stand: option table: {path} has {name} {head[name]!r}, not {wanted!r}; use the same options, or save anew"
                )
        return [_space(entry, arrays, number, vocabulary, width) for number, entry in enumerate(head["spaces"])]
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"stand: option table: cannot read {path}: {error.strerror or 'not a table file'}") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"stand: option table: {path} is no table file or is damaged ({error}); save it anew") from error


def _space(entry: dict[str, Any], arrays: dict[str, npt.NDArray[Any]], number: int, vocabulary: int, width: int) -> SavedSpace:
    length, flat, count, ids, probs = (arrays[f"{number}_{name}"] for name in ("length", "context", "count", "ids", "probs"))
    if ids.shape != (len(length), width) or probs.shape != ids.shape or count.shape != length.shape or length.sum() != len(flat):
        raise ValueError("arrays of different length")
    if len(length) and (length.min() < 1 or count.min() < 1 or ids.min() < 0 or ids.max() >= vocabulary):
        raise ValueError("ids or counts out of range")
    sane = np.isfinite(probs).all() and (probs >= 0).all() and (probs[:, :1] > 0).all() and (probs.sum(-1) <= 1.001).all()
    if not sane or (np.diff(probs, axis=-1) > 0).any():
        raise ValueError("rows that are no probabilities, largest first")
    ends = length.cumsum().tolist()
    tokens = flat.tolist()
    contexts = [tuple(tokens[end - size : end]) for end, size in zip(ends, length.tolist(), strict=True)]
    return SavedSpace(_frozen(entry["name"]), tuple(map(int, entry["seeds"])), contexts, count, ids, probs)


def _frozen(value: Any) -> Hashable:
    """JSON lists as the tuples they were."""
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
