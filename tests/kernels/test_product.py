"""The packed product is the linear layer, and a row's bits depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paceline.kernels.build import library
from paceline.kernels.fused import Fused, Panels, fused, packable
from paceline.models.linear import Linear

pytestmark = pytest.mark.skipif(library("decode-f32") is None, reason="no C compiler on this machine: there are no kernels here")
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # relative to the sum of magnitudes: float32 sums, stored in the type


def kernels(dtype: torch.dtype) -> Fused:
    found = fused(dtype, CPU)
    assert found is not None
    return found


def weight_of(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs * inputs)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (31, 6), (32, 16), (33, 64), (200, 130), (384, 48), (70, 256)])
def test_equals_the_product_in_double_precision(outputs: int, inputs: int, bias: bool, dtype: torch.dtype) -> None:
    weight = weight_of(outputs, inputs, dtype)
    added = weight_of(outputs, 1, dtype)[:, 0] if bias else None
    panels = Panels.of(weight, added)
    for rows in (1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 23, 24, 25, 32, 33, 40, 100):
        x = weight_of(rows, inputs, dtype)
        exact = x.double() @ weight.double().T + (0 if added is None else added.double())
        scale = x.double().abs() @ weight.double().abs().T + 1
        assert float(((kernels(dtype).product(x, panels).double() - exact).abs() / scale).max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_depend_on_nothing_but_the_row(dtype: torch.dtype) -> None:
    panels, x = Panels.of(weight_of(170, 96, dtype), None), weight_of(80, 96, dtype)
    alone = torch.cat([kernels(dtype).product(x[row : row + 1], panels) for row in range(80)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for rows in (2, 3, 4, 5, 8, 12, 13, 16, 17, 24, 32, 33, 40, 80):
                assert torch.equal(kernels(dtype).product(x[:rows], panels), alone[:rows])
    finally:
        torch.set_num_threads(before)


def test_another_order_of_summation_has_other_bits() -> None:
    """The negative control of the equality above."""
    weight, x = weight_of(170, 96, torch.float32), weight_of(40, 96, torch.float32)
    product = kernels(torch.float32).product
    assert not torch.equal(product(x.flip(1), Panels.of(weight.flip(1), None)), product(x, Panels.of(weight, None)))


def test_a_panel_in_the_wrong_place_is_noticed() -> None:
    """The negative control of the comparison above."""
    weight, x = weight_of(64, 32, torch.float32), weight_of(3, 32, torch.float32)
    panels = Panels.of(weight, None)
    panels.weight.copy_(panels.weight.flip(0))
    assert (kernels(torch.float32).product(x, panels) - x @ weight.T).abs().max() > 0.1


def test_odd_inputs_are_left_to_torch_in_bf16() -> None:
    assert packable(torch.float32, CPU, 7)
    assert not packable(torch.bfloat16, CPU, 7)
    layer = Linear.over(weight_of(5, 7, torch.bfloat16))
    layer.pack()
    assert layer.panels is None
    x = weight_of(2, 7, torch.bfloat16)
    torch.testing.assert_close(layer(x), x @ weight_of(5, 7, torch.bfloat16).T)


def test_rows_of_any_shape_and_layout() -> None:
    weight = weight_of(40, 16, torch.float32)
    panels, x = Panels.of(weight, None), weight_of(6, 32, torch.float32)[:, ::2]
    torch.testing.assert_close(kernels(torch.float32).product(x, panels), x @ weight.T, atol=1e-5, rtol=1e-5)
    assert kernels(torch.float32).product(x.reshape(2, 3, 16), panels).shape == (2, 3, 40)
