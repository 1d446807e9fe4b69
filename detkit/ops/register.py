"""Ops known to torch, and so to autograd and ``torch.compile``, by the plain parts of ``torch.library``.

Its ``custom_op`` takes lists of tensors apart and together in Python, and looks for aliases in each call: on the host
that costs more than all that is done to launch a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("detkit", "FRAGMENT")


class Op:
    """``torch.ops.detkit.NAME``, which makes new tensors of what it is given and changes nothing.

    Args:
        name: of the op.
        schema: its arguments and result as torch writes them, without defaults.
        run: what is done on every device.
    """

    def __init__(self, name: str, schema: str, run: Callable[..., Any]) -> None:
        self.name = name
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")

    def register_fake(self, fake: Callable[..., Any]) -> None:
        """``fake`` makes tensors of the result's shapes, types and strides."""
        torch.library.register_fake(f"detkit::{self.name}", fake, lib=_LIBRARY)

    def register_autograd(
        self,
        differentiate: Callable[..., Sequence[Tensor | None]],
        *,
        setup_context: Callable[..., None],
        inputs: Callable[..., Sequence[Tensor | None]],
    ) -> None:
        """Make the op differentiable, once.

        Args:
            differentiate: of a context and the gradient of the result, the gradients of ``inputs``.
            setup_context: keeps in a context what ``differentiate`` needs of (all arguments, result).
            inputs: of all arguments, those that have a gradient.
        """
        op = getattr(torch.ops.detkit, self.name).default
        function = _function(op, differentiate, setup_context)

        def run(keyset: Any, *arguments: Any) -> Any:
            below, tensors = keyset & torch._C._after_autograd_keyset, inputs(*arguments)
            if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
                return function.apply(below, arguments, *tensors)
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(below, *arguments)

        _LIBRARY.impl(self.name, run, "Autograd", with_keyset=True)


def registered(name: str, schema: str) -> Callable[[Callable[..., Any]], Op]:
    """:class:`Op` as a decorator of what it runs."""
    return lambda run: Op(name, schema, run)


def _function(op: Any, differentiate: Callable[..., Any], setup_context: Callable[..., None]) -> Any:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, below: Any, arguments: tuple[Any, ...], *tensors: Tensor | None) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                result = op.redispatch(below, *arguments)
            setup_context(ctx, arguments, result)
            return result

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return (None, None, *differentiate(ctx, grad))

    return Differentiable
