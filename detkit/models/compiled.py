"""Backbone, neck and raw heads as whole graphs of ``torch.compile``.

What follows them, from assignment to NMS, depends on what was found, and is run as it stands. So is the second stage's
network, whose regions differ in number from step to step.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from detkit.models.detector import ComposedDetector
from detkit.models.heads.dense import DenseHead
from detkit.models.heads.rpn import RPN


def compile_networks(detector: nn.Module, **options: Any) -> None:
    """Have the networks of ``detector`` compiled where they first run; its weights and their names stay.

    There is one graph for each padded size of the batch, and of a dense head one more for batches without padding.

    Args:
        options: of ``torch.compile``, such as ``backend``.

    Raises:
        ValueError: the detector is not composed of backbone, neck and head.
    """
    if not isinstance(detector, ComposedDetector):
        raise ValueError(
            f"a detector of backbone, neck and head can be compiled, and {type(detector).__name__} is none: leave "
            "trainer.compile=false"
        )
    detector.neck.compile(fullgraph=True, **options)  # runs the backbone
    for part in detector.head.modules():
        if isinstance(part, (DenseHead, RPN)):
            part.compile(fullgraph=True, **options)
