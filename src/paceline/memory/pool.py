"""The tensors behind the slots: one pool of keys and values per layer, moved between slots all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paceline.core.batch import GUARD
from paceline.core.errors import UsageError
from paceline.memory.runs import Run, paired, size

ALIGNMENT = 64  # bytes; one cache line, and the widest vector load


@dataclass(frozen=True, slots=True)
class KVLayout:
    """What one token slot holds.

    Args:
        layers: (KV heads, head width) of each layer.
        dtype, device: of the pools.

    Raises:
        UsageError: for a layer without heads or width.
    """

    layers: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        for layer, (heads, width) in enumerate(self.layers):
            if heads < 1 or width < 1:
                raise UsageError(f"KV layout: layer {layer} has {heads} heads of width {width}; both must be positive")

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * sum(heads * width for heads, width in self.layers) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class KVSnapshot:
    """Keys and values of a sequence, apart from any pool.

    Args:
        stores: one tensor per distinct layer shape, keys and values of its layers alternating.
        length: tokens held.
    """

    stores: tuple[Float[Tensor, "planes tokens heads width"], ...]
    length: int

    @property
    def bytes(self) -> int:
        """Bytes of the copy."""
        return sum(store.nbytes for store in self.stores)


class KVPool:
    """Keys and values of `slots` token slots, finite from the start, with guard slots behind them.

    Layers of one shape live in one tensor, so that moving a slot is one copy for all of them.

    Args:
        layout: what a slot holds.
        slots: how many there are.
    """

    def __init__(self, layout: KVLayout, slots: int) -> None:
        self.layout, self.slots = layout, slots
        self.trash = slots + GUARD  # behind everything a padded view can reach
        length = self.trash + 1
        members: dict[tuple[int, int], int] = {}
        places = []
        for shape in layout.layers:
            places.append((shape, members.get(shape, 0)))
            members[shape] = places[-1][1] + 1
        stores = {shape: _zeros((2 * count, length, *shape), layout) for shape, count in members.items()}
        self._stores: list[Float[Tensor, "planes slots heads width"]] = list(stores.values())
        self.keys: list[Float[Tensor, "slots heads width"]] = [stores[shape][2 * at] for shape, at in places]
        self.values: list[Float[Tensor, "slots heads width"]] = [stores[shape][2 * at + 1] for shape, at in places]

    @property
    def bytes(self) -> int:
        """Bytes of all pools, guard included."""
        return sum(store.nbytes for store in self._stores)

    def move(self, source: Sequence[Run], target: Sequence[Run]) -> None:
        """Copy the slots of one run list over those of another of the same size, in order, in every layer.

        Safe if each target slot comes, in logical order, no later than the source slot it overwrites: that is how commits compact.
        """
        for start, to, count in paired(list(source), list(target)):
            for store in self._stores:
                rows = store[:, start : start + count]
                overlapping = abs(start - to) < count
                store[:, to : to + count] = rows.clone() if overlapping else rows

    def read(self, runs: Sequence[Run]) -> KVSnapshot:
        """A copy of the slots of a run list."""
        stores = tuple(torch.cat([store[:, :0], *(store[:, low:high] for low, high in runs)], dim=1) for store in self._stores)
        return KVSnapshot(stores, size(runs))

    def write(self, runs: Sequence[Run], snapshot: KVSnapshot) -> None:
        """Fill the slots of a run list from a snapshot.

        Raises:
            UsageError: if the snapshot is of another layout.
        """
        if [_plane(store) for store in snapshot.stores] != [_plane(store) for store in self._stores]:
            raise UsageError(
                "the snapshot was taken from a KV memory of another layout; both need the same layers, heads, widths and dtype"
            )
        at = 0
        for low, high in runs:
            for store, saved in zip(self._stores, snapshot.stores, strict=True):
                store[:, low:high] = saved[:, at : at + high - low]
            at += high - low


def _plane(store: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    """What two stores must share for their slots to be interchangeable."""
    return len(store), store.shape[2:], store.dtype


def _zeros(shape: tuple[int, ...], layout: KVLayout) -> Tensor:
    """Zeros that may be written inside and outside inference mode; on CPU, pages cost nothing before they are touched."""
    with torch.inference_mode(False):
        if layout.device.type != "cpu":
            return torch.zeros(shape, dtype=layout.dtype, device=layout.device)
        count = int(np.prod(shape)) * layout.dtype.itemsize
        raw = np.zeros(count + ALIGNMENT, dtype=np.uint8)
        skip = -raw.ctypes.data % ALIGNMENT
        return torch.from_numpy(raw[skip : skip + count]).view(layout.dtype).view(shape)
