"""What a detector costs: parameters, operations, memory."""

from __future__ import annotations

import sys
from typing import Any

import psutil
import torch

from detkit.analysis.cost import count_flops
from detkit.engine.trainer import Trainer
from detkit.structures import Images


def costs(trainer: Trainer) -> dict[str, Any]:
    """Plain numbers for ``result.json``.

    ``parameters`` and ``trainable``: counts. ``flops``: of detecting in the first validation image, a multiplication
    and an addition counting as two; convolutions, matrix products and attention only. ``memory``: the peak in bytes
    since this process began, of the GPU's allocator or, on the CPU, of the whole process.
    """
    detector = trainer.detector
    return {
        "parameters": sum(p.numel() for p in detector.parameters()),
        "trainable": sum(p.numel() for p in detector.parameters() if p.requires_grad),
        "memory": peak_memory(trainer.device),
        "flops": _flops(trainer),
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that ``device`` has held for this process, or that the process itself has taken."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset  # elsewhere psutil knows what is held at this moment alone
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _flops(trainer: Trainer) -> int | None:
    if trainer.val_loader is None:
        return None
    images = next(iter(trainer.val_loader)).images.to(trainer.device)
    return count_flops(trainer.detector, Images(images.pixels[:1], images.meta[:1]))
