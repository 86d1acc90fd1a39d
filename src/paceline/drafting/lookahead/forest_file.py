"""Outputs on disk: plain arrays in a zip (npz), never pickle, written beside the file and renamed over it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from paceline.core.errors import UsageError
from paceline.drafting.array_file import write_arrays
from paceline.drafting.lookahead.branch_table import BranchTable
from paceline.drafting.lookahead.trie import Forest

Store: TypeAlias = Forest | BranchTable
Arrays: TypeAlias = "dict[str, npt.NDArray[Any]]"

FORMAT = 1
ROOT = -1


def write_forest(path: Path, stores: Mapping[str, Store], vocabulary: int) -> None:
    """Write all scopes.

    Raises:
        UsageError: if the file cannot be written.
    """
    arrays: Arrays = {"format": np.array(FORMAT), "vocabulary": np.array(vocabulary), "scopes": np.array(list(stores), dtype=np.str_)}
    for number, store in enumerate(stores.values()):
        packed = _pack_trie(store) if isinstance(store, Forest) else _pack_table(store)
        arrays |= {f"{number}_{name}": array for name, array in packed.items()}
    write_arrays(path, arrays)


def read_forest(path: Path, new_store: Callable[[], Store], vocabulary: int) -> dict[str, Store]:
    """The scopes of a file made by `write_forest`.

    Args:
        new_store: makes an empty store of the configured kind.
        vocabulary: of the target; a file of another one belongs to another model.

    Raises:
        UsageError: if the file is missing, damaged, of another format, kind or vocabulary.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if int(arrays["format"]) != FORMAT:
            raise UsageError(f"{path} has format {int(arrays['format'])}, this version reads {FORMAT}; warm up again")
        if int(arrays["vocabulary"]) != vocabulary:
            raise UsageError(f"{path} is for a vocabulary of {int(arrays['vocabulary'])}, the model has {vocabulary}; warm up again")
        stores: dict[str, Store] = {}
        for number, scope in enumerate(arrays["scopes"].tolist()):
            part = {name.partition("_")[2]: array for name, array in arrays.items() if name.startswith(f"{number}_")}
            stores[str(scope)] = _unpack(new_store(), part, vocabulary)
    except UsageError as error:
        raise UsageError(f"lookahead: option forest: {error}") from None
    except OSError as error:
        raise UsageError(f"lookahead: option forest: cannot read {path}: {error.strerror or 'not a forest file'}") from error
    except (ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"lookahead: option forest: {path} is no forest file or is damaged ({error}); warm up again") from error
    return stores


def _pack_trie(forest: Forest) -> Arrays:
    """Nodes of all trees, parents before children, siblings oldest first."""
    token: list[int] = []
    parent: list[int] = []
    freq: list[float] = []
    for root in forest.trees:
        first = len(token)
        for node, above, count in forest.nodes(root):
            token.append(node)
            parent.append(ROOT if above < 0 else first + above)
            freq.append(count)
    return {"token": np.array(token, np.int32), "parent": np.array(parent, np.int64), "freq": np.array(freq, np.float64)}


def _pack_table(table: BranchTable) -> Arrays:
    """The used slots."""
    slot = np.flatnonzero(table.freq)
    shape = np.array([len(table.freq), table.length, table.bucket])
    return {"shape": shape, "slot": slot, "slot_freq": table.freq[slot], "branch": table.branch[slot]}


def _unpack(store: Store, part: Arrays, vocabulary: int) -> Store:
    """Fill an empty store.

    Raises:
        UsageError: if the file holds the other kind of store, or a table of another shape.
        ValueError: if the arrays contradict one another.
    """
    if isinstance(store, BranchTable):
        if "slot" not in part:
            raise UsageError("the file holds a trie; use store=trie")
        shape = [len(store.freq), store.length, store.bucket]
        if part["shape"].tolist() != shape:
            raise UsageError(f"the file's table has shape {part['shape'].tolist()}, the options make {shape}; use the same options")
        slot, freq, branch = part["slot"], part["slot_freq"], part["branch"]
        if branch.shape != (len(slot), store.length) or freq.shape != slot.shape or not np.isfinite(freq).all() or (freq < 0).any():
            raise ValueError("slots contradict one another")
        if len(slot) and (slot.min() < 0 or branch.min() < -1 or branch.max() >= vocabulary):
            raise ValueError("ids outside the vocabulary")
        store.freq[slot], store.branch[slot] = freq, branch
        return store
    if "token" not in part:
        raise UsageError("the file holds a table; use store=table")
    token, parent, freq = part["token"], part["parent"], part["freq"]
    if not token.shape == parent.shape == freq.shape or token.ndim != 1 or token.dtype.kind != "i" or parent.dtype.kind != "i":
        raise ValueError("arrays of different length")
    if len(token) and (token.min() < 0 or token.max() >= vocabulary or not np.isfinite(freq).all() or freq.min() < 0):
        raise ValueError("ids or counts out of range")
    if (parent >= np.arange(len(parent))).any() or (parent < ROOT).any():
        raise ValueError("a node stands before its parent")
    return _plant(store, token.tolist(), parent.tolist(), freq.tolist())


def _plant(forest: Forest, token: list[int], parent: list[int], freq: list[float]) -> Forest:
    """Trees from their nodes: what a node counts beyond what follows it ends there.

    Raises:
        ValueError: if a token stands twice at one place.
    """
    below: list[list[int]] = [[] for _ in range(len(token) + 1)]  # the last entry belongs to the roots
    for node, above in enumerate(parent):
        below[above].append(node)
    if any(len({token[node] for node in siblings}) < len(siblings) for siblings in below):
        raise ValueError("a token stands twice at one place")
    for root in below[ROOT]:
        path: list[int] = []
        stack = [(node, 0) for node in reversed(below[root])]
        while stack:
            node, depth = stack.pop()
            path[depth:] = [token[node]]
            ending = freq[node] - sum(freq[child] for child in below[node])
            if ending > 0:
                forest.plant(token[root], path, ending)
            stack.extend((child, depth + 1) for child in reversed(below[node]))
    return forest
