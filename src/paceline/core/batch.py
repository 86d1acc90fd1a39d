"""One forward as data: flat rows without padding, the segments they belong to, and what the caller wants back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paceline.core.transform import Likeliest
from paceline.core.tree import TokenTree

if TYPE_CHECKING:
    from paceline.attention.sparse_pattern import BlockPattern

GUARD = 512  # slots that pools extend behind the last one, so that a view padded or aligned up to this many keys stays inside


class MemoryView(Protocol):
    """What attention needs to know of one sequence's memory: which physical slots hold its logical slots, in order."""

    @property
    def length(self) -> int:
        """Committed logical slots; the rows of a forward are written behind them as scratch."""

    def runs(self, stop: int) -> Sequence[tuple[int, int]]:
        """Physical half-open ranges that hold logical slots `0..stop`, in order; one range means no gather is needed."""


class CrossView(Protocol):
    """The encoded source of a sequence, as the decoder's cross-attention reads it; one entry per decoder layer."""

    @property
    def keys(self) -> Sequence[Float[Tensor, "source kv_heads head_dim"]]:
        """Keys of the source, layer by layer."""

    @property
    def values(self) -> Sequence[Float[Tensor, "source kv_heads head_dim"]]:
        """Values of the source, layer by layer."""


class SegmentAttention(Protocol):
    """Attention of one segment's rows in place of the usual one: patterns of its own, layer by layer and head by head."""

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "rows heads head_dim"],
        keys: Float[Tensor, "keys kv_heads head_dim"],
        values: Float[Tensor, "keys kv_heads head_dim"],
        scale: float,
    ) -> Float[Tensor, "rows heads head_dim"]:
        """What the rows read; keys in logical order, rotated, those of the rows included."""

    def pattern(self, layer: int, length: int) -> BlockPattern | None:
        """The blocks that rows of a canvas of this length read, where that is all there is to it: then nobody need call."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The consecutive rows of one sequence inside a forward.

    Args:
        memory: where the sequence's past lives; row j is written to logical slot `memory.length + offsets[j]`.
        rows: number of rows, all with slots reserved.
        mask: which scratch slots each row sees; with neither mask nor tree it is causal over the rows of the segment. Committed slots
            are visible to every row (subject to a layer's window, counted in positions).
        offsets: scratch offset of each row, strictly increasing; `None` is `0..rows`. Given when a tree grows by layers over
            earlier scratch rows, or when a range of layers computes only some rows. Unless `mask` says otherwise, scratch slots
            of absent rows stay invisible.
        scratch_positions: position of every scratch slot of the span, where `offsets` leaves some of them to earlier forwards;
            layers with a window need it.
        canvas: every row sees every scratch slot below this, before and behind it, written by this forward or an earlier one; `mask` is
            then `None`. Bidirectional models keep their whole canvas there.
        cross: the source that an encoder-decoder's rows read beside their own past.
        attention: replaces the usual attention; with `canvas` only, in layers without window or soft cap.
        tree: whose nodes the last rows are, behind causal ones: a node sees its ancestors and all that stands before the root. Instead of
            `mask`, without `offsets`.
    """

    memory: MemoryView
    rows: int
    mask: Bool[Tensor, "rows span"] | None = None
    offsets: Sequence[int] | None = None
    scratch_positions: Sequence[int] | None = None
    canvas: int | None = None
    cross: CrossView | None = None
    attention: SegmentAttention | None = None
    tree: TokenTree | None = None

    @property
    def span(self) -> int:
        """Scratch slots the segment reaches over."""
        if self.canvas is not None:
            return self.canvas
        return self.rows if self.offsets is None else self.offsets[-1] + 1

    @property
    def parents(self) -> list[int]:
        """The row that each row of a segment with a tree continues; -1 for the first."""
        assert self.tree is not None
        lead = self.rows - len(self.tree)
        return [*range(-1, lead), *(lead + parent for parent in self.tree.parent[1:])]

    def visible(self) -> Bool[Tensor, "rows span"] | None:
        """Which scratch slots each row sees, where that is neither causal nor all of a canvas."""
        if self.tree is None:
            return self.mask
        lead = self.rows - len(self.tree)
        mask = torch.ones(self.rows, self.rows, dtype=torch.bool).tril()
        mask[lead:, lead:] = self.tree.ancestors()
        return mask


@dataclass(frozen=True, slots=True)
class TapRequest:
    """What a method asks a forward to hand back besides logits. Nothing is computed or kept unless asked for.

    Args:
        final_hidden: hidden states behind the final norm, of every row.
        layer_inputs: layers whose input hidden states (residual stream) are wanted.
        queries: layers whose rotated queries are wanted.
        keys: layers whose keys *before* rotation are wanted.
        keys_values: layers whose rotated keys and values are wanted.
        lse: layers whose attention log-sum-exp is wanted.
        logits: the target's logits at every node of the judged trees; the loop hands them over, a forward has nothing to do for it.
        prompt_logits: those at tokens that are read before a tree, mostly of the prompt; they cost a row of logits each.
        likeliest: how many likeliest tokens of every law that judging a tree works out on its way; 0 for none.
    """

    final_hidden: bool = False
    layer_inputs: frozenset[int] = frozenset()
    queries: frozenset[int] = frozenset()
    keys: frozenset[int] = frozenset()
    keys_values: frozenset[int] = frozenset()
    lse: frozenset[int] = frozenset()
    logits: bool = False
    prompt_logits: bool = False
    likeliest: int = 0

    @property
    def layers(self) -> frozenset[int]:
        """Layers that something is wanted of."""
        return self.layer_inputs | self.queries | self.keys | self.keys_values | self.lse

    def __or__(self, other: TapRequest) -> TapRequest:
        return TapRequest(
            self.final_hidden or other.final_hidden,
            self.layer_inputs | other.layer_inputs,
            self.queries | other.queries,
            self.keys | other.keys,
            self.keys_values | other.keys_values,
            self.lse | other.lse,
            self.logits or other.logits,
            self.prompt_logits or other.prompt_logits,
            max(self.likeliest, other.likeliest),
        )


NO_TAPS = TapRequest()


@dataclass(slots=True)
class Taps:
    """The tapped tensors of one forward, keyed by layer; rows are those of the batch.

    Args:
        logits: rows are those of the judged trees instead, one tree after the other in node order; after bias, penalties and bans for the
            history that leads to each node, before temperature and filters. Possibly the forward's own tensor: not to be modified.
        likeliest: by row of `logits`, the likeliest tokens of the law that the node was judged by, temperature and filters included. A
            by-product: greedy sequences and nodes off the accepted path may have none, and `core.transform` gives the same bits.
    """

    final_hidden: Float[Tensor, "rows width"] | None = None
    layer_inputs: dict[int, Float[Tensor, "rows width"]] = field(default_factory=dict)
    queries: dict[int, Float[Tensor, "rows heads head_dim"]] = field(default_factory=dict)
    keys: dict[int, Float[Tensor, "rows kv_heads head_dim"]] = field(default_factory=dict)
    keys_values: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    lse: dict[int, Float[Tensor, "rows heads"]] = field(default_factory=dict)
    logits: Float[Tensor, "nodes vocabulary"] | None = None
    likeliest: Mapping[int, Likeliest] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Rows of many sequences, one after the other, as one forward computes them.

    Args:
        ids: token id of each row, on the host; ignored where `embeddings` is given.
        positions: position of each row, on the host. Data, never derived from a slot.
        segments: whose rows these are, in row order.
        logit_rows: rows that need logits; `None` means all.
        embeddings: input vectors in place of token embeddings (every row).
        taps: intermediate results to hand back.

    Raises:
        ValueError: if rows, positions and segments disagree.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    segments: Sequence[Segment]
    logit_rows: Sequence[int] | None = None
    embeddings: Float[Tensor, "rows width"] | None = None
    taps: TapRequest = NO_TAPS

    def __post_init__(self) -> None:
        rows = sum(segment.rows for segment in self.segments)
        if len(self.positions) != rows:
            raise ValueError(f"{len(self.positions)} positions but segments of {rows} rows")
        given = len(self.ids) if self.embeddings is None else len(self.embeddings)
        if given != rows:
            raise ValueError(f"{given} inputs but segments of {rows} rows")

    @property
    def rows(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What one forward handed back.

    Args:
        logits: one row per requested logit row, in their order.
        taps: the tapped tensors.
        mask_bytes: of the attention masks that were made for it.
    """

    logits: Float[Tensor, "logit_rows vocabulary"]
    taps: Taps
    mask_bytes: int = 0
