"""ReLU6 that keeps one copy of its map for the gradients, where torch's in-place form keeps two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeanReLU6(nn.ReLU6):
    """min(max(x, 0), 6), in place where ``inplace`` says so (Howard et al., MobileNets, 2017), of any shape.

    ``nn.ReLU6(inplace=True)`` copies its input for the backward pass before it overwrites it. The gradient is 0 where
    the *result* is 0 or 6, too, so the result will do: the same numbers with a copy and its memory less.
    """

    def forward(self, input: Tensor) -> Tensor:
        keeps = self.inplace and torch.is_grad_enabled() and input.requires_grad
        if torch.compiler.is_compiling() or not keeps:
            return F.relu6(input, inplace=self.inplace)
        return _KeepsResult.apply(input)


class _KeepsResult(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        result = F.relu6(x, inplace=True)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, result, 0.0, 6.0)


def use_lean_relu6(module: nn.Module) -> None:
    """Replace every in-place ``nn.ReLU6`` below ``module``; it has no parameters, so that no name changes."""
    for child in module.modules():
        for name, layer in child.named_children():
            if type(layer) is nn.ReLU6 and layer.inplace:
                setattr(child, name, LeanReLU6(inplace=True))
