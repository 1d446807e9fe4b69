"""Backbone, neck and raw heads as graphs of ``torch.compile``.

What follows them, from assignment to NMS, depends on what was found, and is run as it stands. So is the second stage's
network, whose regions differ in number from step to step, and a flow's decoder, which nobody has compiled yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from detkit.models.detector import ComposedDetector
from detkit.models.heads.dense import DenseHead
from detkit.models.heads.rpn import RPN


def compile_networks(detector: nn.Module, device: torch.device, **options: Any) -> None:
    """Have the networks of ``detector`` compiled where they first train; its weights and their names stay.

    There is one graph for each padded size of the batch, and of a dense head one more for batches without padding.
    After eight graphs torch warns, and runs further sizes as they stand.

    Args:
        device: where it will run.
        options: of ``torch.compile``, such as ``backend``.

    Raises:
        ValueError: the detector is not composed of backbone, neck and head, or no machine code can be made here.
    """
    if not isinstance(detector, ComposedDetector):
        raise ValueError(
            f"a detector of backbone, neck and head can be compiled, and {type(detector).__name__} is none: leave "
            "trainer.compile=false"
        )
    options = {"dynamic": False, **options}
    _try(device, **options)
    detector.neck.compile(**options)  # runs the backbone
    for part in detector.head.modules():
        if isinstance(part, (DenseHead, RPN)):
            part.compile(**options)


@contextmanager
def as_it_stands(detector: nn.Module) -> Iterator[None]:
    """Within the block ``detector`` runs as it did before it was compiled, if it was.

    For evaluations, whose batches would each want a graph of their own, and for who watches its layers.
    """
    is_compiled = any(module._compiled_call_impl is not None for module in detector.modules())
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
        yield


def _try(device: torch.device, **options: Any) -> None:
    """Compile a sum, so that what is missing is told before a training begins.

    Raises:
        ValueError: no machine code can be made here; the message says why.
    """
    try:
        torch.compile(_sum, **options)(torch.ones(4, device=device))
    except Exception as error:  # torch has many for it: no compiler, one that fails, no triton
        wanted = "a C++ compiler (g++, or what CXX names)" if device.type == "cpu" else "triton and a C compiler"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"trainer.compile: torch.compile makes no code for {device} here, it needs {wanted}: install it, or leave "
            f"trainer.compile=false ({reason})"
        ) from error


def _sum(x: torch.Tensor) -> torch.Tensor:
    return (x + 1).sum()
