"""The number types that a network may run in."""

from __future__ import annotations

import functools
import platform
from typing import Literal

import torch

from detkit.utils.log import logger

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


#: What PyTorch calls x86 processors that can only imitate bf16. Others may be slow too: it does not say of which.
_WITHOUT_BF16 = frozenset({"NO AVX", "AVX2"})


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that ``device`` cannot run, and warn of one that only slows it down.

    Raises:
        ValueError: fp16 away from CUDA, where nothing is gained by it and no gradient scaler is at hand.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision 'fp16' needs a CUDA device; on {device.type!r} it is one of 'fp32', 'bf16'")
    if precision == "bf16" and device.type == "cpu":
        _warn_if_imitated(torch.backends.cpu.get_cpu_capability(), platform.machine())


@functools.cache  # once for a process
def _warn_if_imitated(capability: str, machine: str) -> None:
    if capability in _WITHOUT_BF16 and machine.lower() in ("x86_64", "amd64"):
        logger.warning(
            "this processor has no bf16 (%s), which takes many times as long here as precision=fp32", capability
        )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a detector runs in ``precision``."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
