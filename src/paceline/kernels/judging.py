"""The kernel that walks down a judged tree, as a function on data of the house."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.tree import Distribution, TokenTree
from paceline.kernels.build import library

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
SEED = (1 << 64) - 1
READABLE = (torch.float32, torch.bfloat16)


class CDraft(ctypes.Structure):
    """`draft` of judge.c."""

    _fields_ = (("node", INTEGER), ("ids", POINTER), ("probs", POINTER), ("size", INTEGER), ("wide", INTEGER))


class CQuestion(ctypes.Structure):
    """`question` of judge.c, its options laid out flat."""

    _fields_ = (
        ("logits", POINTER),
        *((name, INTEGER) for name in ("half", "width", "top_k")),
        ("top_p", ctypes.c_double),
        *((name, ctypes.c_float) for name in ("temperature", "min_p")),
        *((name, POINTER) for name in ("token", "parent", "drafts")),
        *((name, INTEGER) for name in ("nodes", "drawn", "replacement", "rejects")),
        ("seed", ctypes.c_uint64),
        ("position", INTEGER),
        *((name, POINTER) for name in ("laws", "reached", "accepted")),
        *((name, INTEGER) for name in ("depth", "token_behind")),
    )


class Walked(NamedTuple):
    """Where a walk came.

    Args:
        accepted: nodes below the root, top down.
        token: that follows them.
        reached: nodes whose laws were worked out.
        laws: of these, if they are kept.
    """

    accepted: tuple[int, ...]
    token: int
    reached: tuple[int, ...]
    laws: Float[Tensor, "reached vocabulary"] | None


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
        rejects: bool,
        keeps: bool,
    ) -> Walked | None:
        """Walk down a tree.

        Args:
            logits: where those of its root stand, rows one after the other on the CPU.
            half: whether they are bfloat16, else float32.
            width: of the vocabulary.
            law: temperature (positive), top-k, top-p and min-p.
            seed: of the sequence's random numbers.
            position: of the token that is decided at the root.
            rejects: judge by recursive rejection, else by sample and match.
            keeps: whether laws are handed back.

        Returns:
            Nothing where something is wrong: with the logits of a node that was reached, or with a draft.
        """
        deep = max(tree.depth) + 1
        # what stands behind pointers must outlive the call, so it has names
        token, parent, out = array("q", tree.token), array("q", tree.parent), array("q", bytes(16 * deep))
        proposal = tree.proposal if rejects else None
        held = [] if proposal is None else [(node, _held(drawn)) for node, drawn in proposal.q.items()]
        drafts = (CDraft * len(held))(*_drafts(held))
        laws = torch.empty(deep, width) if keeps else None
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
            ctypes.addressof(drafts),
            len(token),
            len(held),
            proposal is not None and proposal.replacement,
            rejects,
            seed & SEED,
            position,
            None if laws is None else laws.data_ptr(),
            found,
            found + 8 * deep,
        )
        count = self._judge(ctypes.byref(question))
        if count < 0:
            return None
        reached = question.depth
        return Walked(tuple(out[deep : deep + count]), question.token_behind, tuple(out[:reached]), None if laws is None else laws[:reached])


def _held(drawn: Distribution) -> tuple[Tensor, Tensor | None]:
    """Probabilities and ids as the kernel reads them."""
    probs = drawn.probs if drawn.probs.dtype in (torch.float32, torch.float64) else drawn.probs.float()
    ids = None if drawn.ids is None else drawn.ids.to("cpu", torch.int64).contiguous()
    return probs.cpu().contiguous(), ids


def _drafts(held: Iterable[tuple[int, tuple[Tensor, Tensor | None]]]) -> Iterable[CDraft]:
    for node, (probs, ids) in held:
        yield CDraft(node, None if ids is None else ids.data_ptr(), probs.data_ptr(), len(probs), probs.dtype is torch.float64)


@cache
def judge() -> Judge | None:
    """The kernel, if this machine can have it."""
    path = library("law")
    return None if path is None else Judge(str(path))
