"""All layers of a decoder in one kernel call on a CPU: the arithmetic of `layers.py`, without an operator to call.

A row's bits depend on the row and its path alone. Layers that need more than this covers (norms behind the mixer, experts, taps inside a
layer) run in `layers.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import Array, addressof
from dataclasses import dataclass
from weakref import ref

import torch
from jaxtyping import Float
from torch import Tensor

from paceline.attention.gangs import Gangs, gangs
from paceline.attention.paths import Paths, paths
from paceline.attention.sparse_pattern import BlockPattern
from paceline.core.batch import TapRequest
from paceline.kernels.fused import LANES, WIDEST_HEAD, CEnds, CLayer, CLinear, CPath, CPattern, CStep, CTurn, Fused
from paceline.models.config import DecoderConfig
from paceline.models.layers import Attention, FeedForward, RMSNorm, Step
from paceline.models.linear import Linear

NOBODY = Gangs(torch.empty(0, 4, dtype=torch.int64), ())  # all rows read all of their paths


def fusable(config: DecoderConfig) -> bool:
    """Whether every layer of this decoder is covered."""
    return all(
        not layer.post_norms
        and layer.mixer.rope is not None
        and layer.mixer.head_dim % LANES == 0
        and layer.mixer.head_dim <= WIDEST_HEAD
        and layer.feed_forward.experts == 0
        and layer.feed_forward.activation == "silu"
        for layer in config.layers
    )


@dataclass(frozen=True, slots=True)
class Views:
    """What the rows of a step see.

    Args:
        paths: of each window.
        gangs: rows that see some blocks of theirs only.
    """

    paths: Sequence[Paths]
    gangs: Gangs


@dataclass(frozen=True, slots=True)
class Ends:
    """What stands before the layers and behind them, as the kernel takes it.

    Args:
        table: of embeddings.
        struct: pointers to it, to the final norm and to the head.
    """

    table: Float[Tensor, "vocabulary width"]
    struct: CEnds

    @classmethod
    def of(cls, table: Float[Tensor, "vocabulary width"], norm: RMSNorm, head: Linear) -> Ends:
        """Of packed parts."""
        return cls(table, CEnds(table.data_ptr(), _gain(norm), _struct(head), norm.floor_square))


class Stack:
    """All layers of a packed decoder, laid out for the kernels once.

    Args:
        kernels: of the decoder's type.
        layers: norm, mixer, norm, feed-forward of each.
        turns: which table of rotations each layer uses.
    """

    def __init__(self, kernels: Fused, layers: Sequence[tuple[RMSNorm, Attention, RMSNorm, FeedForward]], turns: Sequence[int]) -> None:
        self.kernels = kernels
        self.windows = list({mixer.spec.window: None for _, mixer, _, _ in layers})
        self.layers: Array[CLayer] = (CLayer * len(layers))()
        for filled, parts, turn in zip(self.layers, layers, turns, strict=True):
            _fill(filled, *parts)
            filled.path, filled.turn = self.windows.index(parts[1].spec.window), turn
        self._last: tuple[ref[Tensor] | None, Array[CLayer]] = None, self.layers
        width = self.layers[0].qkv.inputs
        plain = self.windows == [None] and not any(layer.softcap for layer in self.layers)
        self.patterned = plain and all(kernels.gangs(layer.dim) for layer in self.layers)  # whether rows may follow patterns
        self.work = 2 * width + max(max(layer.out.inputs, layer.down.inputs) for layer in self.layers)
        self.work += max(max(layer.qkv.outputs, layer.gate_up.outputs) for layer in self.layers)

    def views(self, step: Step) -> Views | None:
        """What the step's rows see, or `None` where only the usual layers can do what is asked."""
        if _inside(step.wanted):
            return None
        some = NOBODY
        if step.plan.own:
            found_gangs = gangs(step.plan.segments, len(self.layers)) if self.patterned else None
            if found_gangs is None:
                return None
            some = found_gangs
        found = []
        for window in self.windows:
            seen = paths(step.plan.segments, step.plan.positions, window)
            if seen is None:
                return None
            found.append(seen)
        return Views(found, some)

    def logits(self, ids: Sequence[int], wanted: Sequence[int], step: Step, views: Views, ends: Ends) -> Float[Tensor, "wanted vocabulary"]:
        """From ids to the logits of wanted rows, which there must be.

        Raises:
            IndexError: for an id outside the table.
        """
        table, head = ends.table, ends.struct.head
        if min(ids) < 0 or max(ids) >= len(table):
            raise IndexError(f"token ids from {min(ids)} to {max(ids)}; those of this model are 0 to {len(table) - 1}")
        hidden, logits = table.new_empty(len(ids), table.shape[1]), table.new_empty(len(wanted), head.outputs)
        given, places = array("q", ids), array("q", wanted)
        at = (addressof(ends.struct), given.buffer_info()[0], places.buffer_info()[0], len(places), logits.data_ptr())
        self._run(hidden, step, views, range(len(self.layers)), at)
        return logits

    def run(self, hidden: Float[Tensor, "rows width"], step: Step, views: Views, chosen: range) -> Float[Tensor, "rows width"]:
        """Hidden states behind the chosen layers; inputs of layers are tapped on the way."""
        hidden = hidden.clone(memory_format=torch.contiguous_format)  # updated in place
        self._run(hidden, step, views, chosen)
        return hidden

    def _run(
        self, hidden: Float[Tensor, "rows width"], step: Step, views: Views, chosen: range, ends: tuple[int, ...] = (0, 0, 0, 0, 0)
    ) -> None:
        """Run layers in place on hidden states.

        Args:
            ends: the last fields of `CStep`.
        """
        rows, write = len(hidden), step.plan.write
        layers = self._bound(step.keys, step.values)
        slots = array("q", range(write.start, write.stop) if isinstance(write, slice) else write.tolist())
        longest = max(view.longest for view in views.paths)
        # what stands behind pointers must outlive the call, so it has names
        work = hidden.new_empty(rows * self.work)
        seen = (CPath * len(views.paths))(*(CPath(view.first.buffer_info()[0], view.runs.buffer_info()[0]) for view in views.paths))
        kinds = views.gangs.kinds
        follow = [_pattern(own[layer]) for layer in range(len(self.layers)) for own in kinds]
        patterns = (CPattern * len(follow))(*follow)
        factors = [table.factors for table in step.tables]
        turns = (CTurn * len(factors))(*(CTurn(turn.cos.data_ptr(), turn.sin.data_ptr(), turn.cos.shape[-1]) for turn in factors))
        where = slots.buffer_info()[0]
        given = CStep(hidden.data_ptr(), work.data_ptr(), where, step.positions.data_ptr(), addressof(seen), addressof(turns))
        given.gangs, given.patterns = views.gangs.rows.data_ptr(), addressof(patterns)
        given.rows, given.real, given.width, given.longest = rows, len(slots), hidden.shape[1], longest
        given.ganged, given.kinds = len(views.gangs.rows), len(kinds)
        given.ends, given.ids, given.wanted, given.asked, given.logits = ends
        start = chosen.start
        for index in sorted(step.wanted.layer_inputs.intersection(chosen)):
            self.kernels.run(layers, range(start, index), given)
            step.taps.layer_inputs[index] = hidden.clone()
            start = index
        self.kernels.run(layers, range(start, chosen.stop), given)

    def _bound(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Array[CLayer]:
        """The layers with pools to read and write. Most steps have those of the step before."""
        pool, layers = self._last
        if pool is not None and pool() is keys[0]:
            return layers
        layers = type(self.layers).from_buffer_copy(self.layers)  # other steps may run at the same time
        for layer, own_keys, own_values in zip(layers, keys, values, strict=True):
            layer.keys, layer.values, layer.slot_stride = own_keys.data_ptr(), own_values.data_ptr(), own_keys.stride(0)
        self._last = ref(keys[0]), layers
        return layers


def _fill(layer: CLayer, mixer_norm: RMSNorm, mixer: Attention, feed_norm: RMSNorm, feed: FeedForward) -> None:
    """What the kernels need of a packed layer."""
    spec = mixer.spec
    layer.qkv, layer.out, layer.gate_up, layer.down = (_struct(part) for part in (mixer.qkv, mixer.o, feed.gate_up, feed.down))
    layer.mixer_gain, layer.mixer_floor = _gain(mixer_norm), mixer_norm.floor_square
    layer.feed_gain, layer.feed_floor = _gain(feed_norm), feed_norm.floor_square
    if spec.qk_norm:
        layer.query_gain, layer.key_gain, layer.head_floor = _gain(mixer.q_norm), _gain(mixer.k_norm), mixer.q_norm.floor_square
    layer.heads, layer.kv_heads, layer.dim = spec.heads, spec.kv_heads, spec.head_dim
    layer.scale, layer.softcap = spec.scale, spec.softcap or 0.0


def _pattern(pattern: BlockPattern) -> CPattern:
    _, blocks, most = pattern.index.shape
    return CPattern(pattern.index.data_ptr(), pattern.counts.data_ptr(), blocks, most, pattern.tile)


def _struct(part: Linear | None) -> CLinear:
    assert part is not None
    assert part.panels is not None
    return part.panels.struct


def _gain(norm: RMSNorm) -> int:
    assert norm.packed is not None
    return norm.packed.data_ptr()


def _inside(wanted: TapRequest) -> bool:
    """Whether something inside a layer is tapped."""
    return bool(wanted.queries or wanted.keys or wanted.keys_values or wanted.lse)
