"""The number types that a network may run in."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that ``device`` cannot run.

    Raises:
        ValueError: fp16 away from CUDA, where nothing is gained by it and no gradient scaler is at hand.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision 'fp16' needs a CUDA device; on {device.type!r} it is one of 'fp32', 'bf16'")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a detector runs in ``precision``."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")
