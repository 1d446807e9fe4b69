"""Tensors of files of unknown origin: which of them can stand for weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_MOST_NAMED = 5


def form_of(tensor: Tensor) -> str:
    """What ``tensor`` is, where its values do not lie one beside the other in memory; empty where they do."""
    if tensor.is_meta:
        return "a shape without values"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "quantized" if tensor.is_quantized else ""


def unfit_type(tensor: Tensor, own: Tensor) -> str:
    """What ``tensor`` is, where copied to ``own`` its values would be others; empty where it fits."""
    if own.is_floating_point() and not tensor.is_floating_point():
        return str(tensor.dtype).removeprefix("torch.")
    return form_of(tensor)


def check_dense(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that nothing can be computed with.

    Raises:
        ValueError: the message names the first of them.
    """
    for name, tensor in tensors.items():
        if form := form_of(tensor):
            raise ValueError(f"the tensor {name} is {form}, not dense")


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Words for each of the named ``tensors`` with values that are nan or infinite, and how many there are more."""
    lost = ((name, t) for name, t in tensors if t.is_floating_point() and not t.isfinite().all())
    bad = [f"{name} has {count_not_finite(t)}" for name, t in lost]
    more = [f"and {len(bad) - _MOST_NAMED} more tensors"] if len(bad) > _MOST_NAMED else []
    return bad[:_MOST_NAMED] + more


def count_not_finite(tensor: Tensor) -> str:
    """How many values of ``tensor`` are nan or infinite, in words."""
    return f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values not finite"
