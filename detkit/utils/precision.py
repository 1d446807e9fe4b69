"""The one place where mixed precision ends: assigners, coders, losses and NMS run in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_HALF = (torch.float16, torch.bfloat16)


@contextmanager
def no_autocast() -> Iterator[None]:
    """Switch autocast off inside the block, on every device where it is on."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def widened(x: Tensor) -> Tensor:
    """``x`` in at least float32: half types and whole numbers become float32, float64 stays.

    Half types are too small for arithmetic of boxes: an area of 300 x 300 px exceeds float16's largest number, and
    sums of bfloat16 double the error.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def upcast(value: Any) -> Any:
    """``value`` with every half-precision tensor as float32, also inside lists, tuples and mappings.

    float64 stays, so that a gradient can be checked in it; dataclasses stay as they are: boxes in them are float32.
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(upcast, value))
    if isinstance(value, (list, tuple)):
        return type(value)(map(upcast, value))
    if isinstance(value, Mapping):
        return {key: upcast(item) for key, item in value.items()}
    return value


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: run ``function`` with autocast off and its half-precision arguments as float32, see :func:`upcast`."""

    @functools.wraps(function)
    def in_full_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        with no_autocast():
            return function(*upcast(args), **upcast(kwargs))  # pyright: ignore[reportCallIssue]

    return in_full_precision
