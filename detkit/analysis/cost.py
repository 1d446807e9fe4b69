"""What a detector costs: parameters, and operations of one forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from detkit.models.detector import ComposedDetector
from detkit.structures import Images


class Cost(NamedTuple):
    """``parameters``, how many of them are ``trainable``, and ``flops`` (a multiply-add counts as two)."""

    parameters: int
    trainable: int
    flops: int


def count_flops(detector: nn.Module, images: Images) -> int:
    """Floating-point operations of ``detector(images)``."""
    counter = FlopCounterMode(display=False)
    was_training = detector.training
    detector.eval()
    with torch.no_grad(), counter:
        detector(images)
    detector.train(was_training)
    return counter.get_total_flops()


def measure_cost(detector: ComposedDetector, images: Images) -> tuple[dict[str, Cost], tuple[str, ...]]:
    """The cost of backbone, neck, head and all, for the detections of ``images``.

    Operations are those that PyTorch's counter knows: convolutions, matrix products and attention. Pointwise ones,
    pooling, RoIAlign and NMS are left out.

    Returns:
        Part -> cost, and the custom operations (not PyTorch's own) that ran and are not counted.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _CustomOps() as custom, counter:
        detector(images)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    backbone, neck = (by_module.get(f"{type(detector).__name__}.{part}", 0) for part in ("backbone", "neck"))
    total = counter.get_total_flops()
    flops = {"backbone": backbone, "neck": neck - backbone, "head": total - neck}  # the neck runs the backbone
    parts: dict[str, Cost] = {name: _cost(getattr(detector, name), flops[name]) for name in flops}
    parts["total"] = _cost(detector, total)
    return parts, tuple(sorted(custom.seen))


class _CustomOps(TorchDispatchMode):
    """Remembers the names of operations without a formula that are not of PyTorch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        foreign = (
            func.namespace not in ("aten", "prim", "prims", "profiler") and func._schema.name != "torchvision::nms"
        )
        if foreign and func._overloadpacket not in flop_registry:
            self.seen.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def _cost(module: nn.Module, flops: int) -> Cost:
    parameters = list(module.parameters())
    return Cost(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad), flops)
