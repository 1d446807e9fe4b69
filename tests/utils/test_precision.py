"""Where mixed precision ends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.utils.precision import full_precision, no_autocast, upcast


class Pair(NamedTuple):
    a: Tensor
    b: int


def test_upcast_goes_through_containers() -> None:
    half, bf16 = torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.bfloat16)
    double, whole = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64)
    found = upcast([half, (bf16, {"x": [half], "y": 3}), Pair(half, 2), double, whole, "text", None])
    assert found[0].dtype == torch.float32
    assert isinstance(found[1], tuple)
    assert found[1][0].dtype == found[1][1]["x"][0].dtype == torch.float32
    assert isinstance(found[2], Pair)
    assert found[2].a.dtype == torch.float32
    assert found[3] is double, "a gradient check needs float64"
    assert found[4] is whole
    assert found[5:] == ["text", None]


@full_precision
def product(a: Tensor, *, b: list[Tensor]) -> Tensor:
    """Docstring."""
    return a @ b[0]


def test_a_function_runs_in_float32_under_autocast() -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        found = product(a.bfloat16(), b=[b])
        assert (a @ b).dtype == torch.bfloat16, "autocast goes on afterwards"
    assert found.dtype == torch.float32
    assert torch.equal(found, a.bfloat16().float() @ b)
    assert product.__doc__ == "Docstring."
    assert product.__name__ == "product"


def test_gradients_come_back_in_the_precision_of_the_argument() -> None:
    a = torch.randn(3, 4, dtype=torch.bfloat16, requires_grad=True)
    product(a, b=[torch.randn(4, 2)]).sum().backward()
    assert a.grad is not None
    assert a.grad.dtype == torch.bfloat16


def test_autocast_comes_back_after_an_error() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            with no_autocast():
                assert not torch.is_autocast_enabled("cpu")
                raise KeyError
        except KeyError:
            pass
        assert torch.is_autocast_enabled("cpu")
    with no_autocast():
        assert not torch.is_autocast_enabled("cpu")
