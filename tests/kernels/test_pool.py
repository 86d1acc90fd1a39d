"""The threads behind the kernels: any number of them, several callers at once, and forked children."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from paceline.kernels.build import library
from paceline.kernels.fused import Fused, Panels, fused

pytestmark = pytest.mark.skipif(library("decode-f32") is None, reason="no C compiler on this machine: there are no kernels here")


@pytest.fixture(autouse=True)
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job() -> tuple[Fused, Tensor, Panels, Tensor]:
    kernels = fused(torch.float32, torch.device("cpu"))
    assert kernels is not None
    made = torch.Generator().manual_seed(1)
    weight, x = torch.randn(1000, 256, generator=made), torch.randn(9, 256, generator=made)
    panels = Panels.of(weight, None)
    return kernels, x, panels, kernels.product(x, panels)


def test_many_products_in_a_row(job: tuple[Fused, Tensor, Panels, Tensor]) -> None:
    """A piece done twice, not at all, or after its phase had ended would show."""
    kernels, x, panels, expected = job
    for _ in range(3000):
        assert torch.equal(kernels.product(x, panels), expected)


def test_several_callers_at_once(job: tuple[Fused, Tensor, Panels, Tensor]) -> None:
    """Helpers serve one caller at a time; the others work alone meanwhile."""
    kernels, x, panels, expected = job
    with ThreadPoolExecutor(4) as callers:
        found = callers.map(lambda _: [kernels.product(x, panels) for _ in range(200)], range(8))
        assert all(torch.equal(one, expected) for many in found for one in many)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_makes_its_own_helpers(job: tuple[Fused, Tensor, Panels, Tensor]) -> None:
    kernels, x, panels, expected = job
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that waits for helpers it does not have must not wait for ever
        os._exit(0 if all(torch.equal(kernels.product(x, panels), expected) for _ in range(50)) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
