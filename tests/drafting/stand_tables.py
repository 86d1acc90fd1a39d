"""STAND's tables and drafters, by the kernel or in plain Python."""

from __future__ import annotations

import pytest

from paceline.core.request import Sequence
from paceline.drafting.stand import Stand
from paceline.drafting.stand.compiled import CompiledTable
from paceline.drafting.stand.drafter import memory
from paceline.drafting.stand.draw import Drawing
from paceline.drafting.stand.scope import Spaces
from paceline.drafting.stand.table import Entry
from paceline.kernels.ngrams import ngrams


def compiled_table(lengths: tuple[int, ...], width: int, capacity: int) -> CompiledTable:
    """Skips the test where there are no kernels."""
    kernel = ngrams(lengths, width, capacity)
    if kernel is None:
        pytest.skip("no C compiler on this machine: there are no kernels here")
    return CompiledTable(kernel, lengths)


def interpreted(drafter: Stand, drawing: type[Drawing] = Drawing) -> Stand:
    """The same drafter, which knows nothing yet, with table and draws in plain Python."""
    drafter.table, plain = memory(drafter.config, compiled=False)
    assert isinstance(plain, Drawing)
    drafter._draw = drawing(plain.table, plain._copies is not None)
    drafter._spaces = Spaces(drafter.config.scope, drafter.config.idle, drafter.table.drop)
    return drafter


def teach(drafter: Stand, member: Sequence, laws: dict[tuple[int, ...], dict[int, float]]) -> None:
    """Put laws into the space of a sequence."""
    space = drafter._spaces.enter(member)
    for context, law in laws.items():
        drafter.table.restore(space, context, Entry.of(list(law), list(law.values())))
