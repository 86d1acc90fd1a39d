"""The kernel that walks down a judged tree, as a function on data of the house."""

from __future__ import annotations

import ctypes
from array import array
from enum import IntEnum
from functools import cache
from typing import NamedTuple

import torch

from paceline.core.transform import Likeliest
from paceline.core.tree import TokenTree
from paceline.kernels.build import library
from paceline.kernels.drafts import records

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
SEED = (1 << 64) - 1
READABLE = (torch.float32, torch.bfloat16)


class Rule(IntEnum):
    """How a tree is judged, as in judge.c."""

    MATCH = 0
    REJECT = 1
    GREEDY = 2


class CQuestion(ctypes.Structure):
    """`question` of judge.c, its options laid out flat."""

    _fields_ = (
        ("logits", POINTER),
        *((name, INTEGER) for name in ("half", "width", "top_k")),
        ("top_p", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("temperature", "min_p")),
        *((name, POINTER) for name in ("token", "parent", "drafts")),
        *((name, INTEGER) for name in ("nodes", "drawn", "replacement", "rule")),
        ("seed", ctypes.c_uint64),
        ("position", INTEGER),
        *((name, POINTER) for name in ("reached", "accepted")),
        *((name, INTEGER) for name in ("depth", "token_behind", "wanted")),
        *((name, POINTER) for name in ("found", "ids", "probs")),
    )


class Walked(NamedTuple):
    """Where a walk came.

    Args:
        accepted: nodes below the root, top down.
        token: that follows them.
        likeliest: of each node whose law was worked out, its likeliest tokens, if any are wanted.
    """

    accepted: tuple[int, ...]
    token: int
    likeliest: dict[int, Likeliest]


class Judge:
    """The kernel of `judge.c`."""

    def __init__(self, path: str) -> None:
        self._judge = ctypes.CDLL(path).judge
        self._judge.argtypes, self._judge.restype = [POINTER], INTEGER

    def __call__(
        self,
        tree: TokenTree,
        logits: int,
        half: bool,
        width: int,
        law: tuple[float, int, float, float],
        seed: int,
        position: int,
        rule: Rule,
        wanted: int,
    ) -> Walked | None:
        """Walk down a tree.

        Args:
            logits: where those of its root stand, rows one after the other on the CPU.
            half: whether they are bfloat16, else float32.
            width: of the vocabulary.
            law: temperature (positive unless greedy), top-k, top-p and min-p.
            seed: of the sequence's random numbers.
            position: of the token that is decided at the root.
            rule: whether tokens are the likeliest, or samples, or trees are judged by recursive rejection.
            wanted: how many likeliest tokens of each law are handed back.

        Returns:
            Nothing where something is wrong: with the logits of a node that was reached, or with a draft.
        """
        deep = max(tree.depth) + 1
        # what stands behind pointers must outlive the call, so it has names
        token, parent, out = array("q", tree.token), array("q", tree.parent), array("q", bytes(8 * deep * (3 + wanted)))
        probs = array("f", bytes(4 * deep * wanted))
        proposal = tree.proposal if rule is Rule.REJECT else None
        drafts, drawn, _held = (0, 0, None) if proposal is None else records(proposal.q)
        found = out.buffer_info()[0]
        temperature, top_k, top_p, min_p = law
        question = CQuestion(
            logits,
            half,
            width,
            top_k if top_k < width else 0,
            top_p,
            temperature,
            min_p,
            token.buffer_info()[0],
            parent.buffer_info()[0],
            drafts,
            len(token),
            drawn,
            proposal is not None and proposal.replacement,
            rule,
            seed & SEED,
            position,
            found,
            found + 8 * deep,
            0,
            0,
            wanted,
            found + 16 * deep,
            found + 24 * deep,
            probs.buffer_info()[0],
        )
        count = self._judge(ctypes.byref(question))
        if count < 0:
            return None
        likeliest: dict[int, Likeliest] = {}
        for at in range(question.depth if wanted else 0):
            first, size = 3 * deep + at * wanted, out[2 * deep + at]
            likeliest[out[at]] = out[first : first + size].tolist(), probs[at * wanted : at * wanted + size].tolist()
        return Walked(tuple(out[deep : deep + count]), question.token_behind, likeliest)


@cache
def judge() -> Judge | None:
    """The kernel, if this machine can have it."""
    path = library("law")
    return None if path is None else Judge(str(path))
