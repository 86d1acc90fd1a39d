"""The state of one answer while it is denoised: the canvas, which of its positions are open, and the block being decided."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]

GIVEN = -1  # in `decided`: a token of the prompt


@dataclass(slots=True, eq=False)
class Canvas:
    """A prompt followed by positions to fill, decided block by block from left to right.

    A row of its own in every batch: its block, its step and its forwards are nobody else's. Positions count from the start of the prompt.

    Args:
        ids: token of every position; the mask id where it is open.
        open: positions that are not decided yet.
        prompt: length of the prompt.
        block: positions per block.
        aligned: blocks are cut at multiples of `block` from position 0 (block-causal models) instead of from the end of the prompt; the
            first one may then begin with the rest of the prompt.
        mask: id of open positions.
        seed: key of the randomness of this answer.
    """

    ids: Ints
    open: Flags
    prompt: int
    block: int
    aligned: bool
    mask: int
    seed: int
    wanted: int = field(init=False)  # length asked for; a canvas that was cut is shorter
    low: int = field(init=False)  # the current block is low..high; everything before it is decided
    high: int = field(init=False)
    opened: int = field(init=False)  # open positions of the block when it began
    step: int = 0  # forwards that decided, in this block
    steps: int = 0  # the same over all blocks
    committed: int = 0  # tokens decided over all blocks
    forwards: int = 0  # forwards so far, those that only stored keys and values included
    decided: Ints = field(init=False)  # number of the forward that decided each position
    patterns: dict[int, Any] = field(default_factory=dict)  # what its rows see, by memory, where attention is sparse
    memo: Any = None  # what a decoder remembers of this answer from one forward to the next, where it must (drafts, traces)
    scratch: int = 0  # slots that a decoder uses behind those of the canvas, in each of its memories (drafts of other states)

    def __post_init__(self) -> None:
        self.decided = np.full(len(self.ids), GIVEN)
        self.wanted = len(self.ids)
        self._enter(self.prompt // self.block * self.block if self.aligned else self.prompt)

    @classmethod
    def start(cls, prompt: Sequence[int], generate: int, *, block: int, mask: int, seed: int = 0, aligned: bool = False) -> Canvas:
        """A canvas with `generate` open positions behind the prompt; an aligned one is filled up to a whole block."""
        length = len(prompt) + generate
        if aligned:
            length = -(-length // block) * block
        ids = np.full(length, mask, dtype=np.int64)
        ids[: len(prompt)] = prompt
        return cls(ids, np.arange(length) >= len(prompt), len(prompt), block, aligned, mask, seed)

    @property
    def length(self) -> int:
        """Positions, prompt included."""
        return len(self.ids)

    @property
    def slots(self) -> int:
        """Slots of a memory."""
        return self.length + self.scratch

    @property
    def blocks(self) -> int:
        """Blocks that hold positions to fill, or did before a cut: schedules are shared among them."""
        first = self.prompt // self.block * self.block if self.aligned else self.prompt
        return -(-(self.wanted - first) // self.block)

    @property
    def finished(self) -> bool:
        """Whether every block is decided."""
        return self.low >= self.length

    def copy(self) -> Canvas:
        """The same state, to go on with independently; what is remembered is shared."""
        twin = copy.copy(self)
        twin.ids, twin.open, twin.decided = self.ids.copy(), self.open.copy(), self.decided.copy()
        return twin

    def open_in_block(self) -> Ints:
        """Open positions of the current block, ascending."""
        return self.low + np.flatnonzero(self.open[self.low : self.high])

    def commit(self, positions: Ints, tokens: Ints) -> None:
        """Decide open positions. One that is given the mask id stays open."""
        self.ids[positions] = tokens
        settled = positions[tokens != self.mask]
        self.open[settled] = False
        self.decided[settled] = self.forwards
        self.committed += len(settled)

    def advance(self) -> None:
        """Go on to the next block."""
        self._enter(self.high)

    def cut(self, length: int) -> None:
        """Drop the positions from `length` on, which lies behind the current block's start; `fill` brings them back."""
        self.ids, self.open, self.decided = self.ids[:length].copy(), self.open[:length].copy(), self.decided[:length].copy()
        self.high = min(self.high, length)

    def fill(self, token: int) -> None:
        """Decide everything that is still open, or was cut off, without a forward."""
        missing = self.wanted - self.length
        self.ids = np.append(self.ids, np.full(missing, token))
        self.open = np.append(self.open, np.zeros(missing, dtype=bool))
        self.decided = np.append(self.decided, np.full(missing, self.forwards))
        self.ids[self.open] = token
        self.open[:] = False
        self._enter(self.length)

    def _enter(self, low: int) -> None:
        self.low, self.high, self.step = low, min(low + self.block, self.length), 0
        self.opened = int(self.open[self.low : self.high].sum())
