"""The kernel that walks down a judged tree, as a function on data of the house."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.tree import Distribution, TokenTree
from paceline.kernels.build import library

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64
READABLE = (torch.float32, torch.bfloat16)


class CDraft(ctypes.Structure):
    """`draft` of judge.c."""

    _fields_ = (("node", INTEGER), ("ids", POINTER), ("probs", POINTER), ("size", INTEGER), ("wide", INTEGER))


class COptions(ctypes.Structure):
    """`options` of law.h."""

    _fields_ = (("top_k", INTEGER), ("top_p", ctypes.c_double), ("temperature", ctypes.c_float), ("min_p", ctypes.c_float))


class CQuestion(ctypes.Structure):
    """`question` of judge.c."""

    _fields_ = (
        *((name, kind) for name, kind in (("logits", POINTER), ("half", INTEGER), ("width", INTEGER), ("asked", COptions))),
        *((name, POINTER) for name in ("token", "parent", "drafts")),
        *((name, INTEGER) for name in ("nodes", "drawn", "replacement", "rejects")),
        *((name, kind) for name, kind in (("seed", ctypes.c_uint64), ("position", INTEGER))),
        *((name, POINTER) for name in ("laws", "reached", "accepted")),
        *((name, INTEGER) for name in ("depth", "token_behind")),
    )


@dataclass(frozen=True, slots=True)
class Walked:
    """Where a walk came.

    Args:
        accepted: nodes below the root, top down.
        token: that follows them.
        reached: nodes whose laws were worked out.
        laws: of these.
    """

    accepted: tuple[int, ...]
    token: int
    reached: tuple[int, ...]
    laws: Float[Tensor, "reached vocabulary"]


class Judge:
    """The kernel of `judge.c`."""

    def __init__(self, path: str) -> None:
        self._judge = ctypes.CDLL(path).judge
        self._judge.argtypes, self._judge.restype = [POINTER], INTEGER

    def __call__(
        self,
        tree: TokenTree,
        logits: Float[Tensor, "nodes vocabulary"],
        law: tuple[float, int, float, float],
        seed: int,
        position: int,
        rejects: bool,
    ) -> Walked | None:
        """Walk down a tree.

        Args:
            logits: of its nodes, float32 or bfloat16, on the CPU, rows one after the other.
            law: temperature (positive), top-k, top-p and min-p.
            seed: of the sequence's random numbers.
            position: of the token that is decided at the root.
            rejects: judge by recursive rejection, else by sample and match.

        Returns:
            Nothing where something is wrong: with the logits of a node that was reached, or with a draft.
        """
        nodes, width, deep = len(tree.token), logits.shape[-1], max(tree.depth) + 1
        laws = torch.empty(deep, width)
        token, parent = (INTEGER * nodes)(*tree.token), (INTEGER * nodes)(*tree.parent)
        reached, accepted = (INTEGER * deep)(), (INTEGER * deep)()
        temperature, top_k, top_p, min_p = law
        asked = COptions(top_k if top_k < width else 0, top_p, temperature, min_p)
        proposal = tree.proposal if rejects else None
        # the tensors behind the pointers must outlive the call, so they have names
        held = [] if proposal is None else [(node, _held(drawn)) for node, drawn in proposal.q.items()]
        drafts = (CDraft * len(held))(*_drafts(held))
        question = CQuestion(logits.data_ptr(), logits.dtype is torch.bfloat16, width, asked)
        question.token, question.parent, question.drafts = map(ctypes.addressof, (token, parent, drafts))
        question.nodes, question.drawn, question.rejects = nodes, len(held), rejects
        question.replacement = proposal is not None and proposal.replacement
        question.seed, question.position = seed & ((1 << 64) - 1), position
        question.laws, question.reached, question.accepted = laws.data_ptr(), ctypes.addressof(reached), ctypes.addressof(accepted)
        count = self._judge(ctypes.byref(question))
        if count < 0:
            return None
        deep = question.depth
        return Walked(tuple(accepted[:count]), question.token_behind, tuple(reached[:deep]), laws[:deep])


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
