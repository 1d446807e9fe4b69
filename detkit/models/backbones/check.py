"""What a backbone declares against what it gives, told once when a detector is built."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detkit.structures import FeatureSpec

#: Loaders pad images to this by default.
_LEAST_STEP = 32


def check_spec(backbone: nn.Module, spec: FeatureSpec, name: str, size: tuple[int, int] | None = None) -> None:
    """Compare the channels and strides of ``spec`` with the maps that ``backbone`` makes of one small image.

    A map at stride s must have ceil(H / s) x ceil(W / s) cells: else what its cells see lies elsewhere than heads take
    it to be. Modes, random state and running statistics are as before; parameters on the meta device are not looked at.

    Args:
        name: of the backbone, for the message.
        size: (H, W) px of the image; None for :func:`example_size`.

    Raises:
        ValueError: they differ, or the backbone fails; the message has ``name``, what was declared and what was found.
    """
    if _device_of(backbone).type == "meta":
        return
    h, w = size or example_size(spec.strides)
    try:
        maps = try_maps(backbone, (h, w))
    except Exception as error:  # whatever a backbone of others raises, it cannot be trained
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(f"{name} fails on an image of {h} x {w} px: {reason}") from error
    compare_maps(maps, spec, name, (h, w))


def compare_maps(maps: Sequence[Any], spec: FeatureSpec, name: str, size: tuple[int, int]) -> None:
    """Refuse ``maps`` of an image of ``size`` (H, W) px that are not as ``spec`` declares; see :func:`check_spec`."""
    h, w = size
    declared = [(c, math.ceil(h / s), math.ceil(w / s)) for c, s in zip(*spec, strict=True)]
    found = [tuple(m.shape[1:]) if isinstance(m, Tensor) else type(m).__name__ for m in maps]
    if found != declared:
        strides = ", ".join(f"{s:g}" for s in spec.strides)
        raise ValueError(
            f"{name} declares channels {', '.join(map(str, spec.channels))} at strides {strides}, which of an image of "
            f"{h} x {w} px is {_shapes(declared)}; its maps are {_shapes(found)} (channels x height x width)"
        )


def example_size(strides: Sequence[float]) -> tuple[int, int]:
    """(H, W) px of a small image that every stride divides where it is a whole power of two, and that is not square."""
    step = max(_LEAST_STEP, math.ceil(max(strides)))
    return 2 * step, 3 * step


def try_maps(backbone: nn.Module, size: tuple[int, int]) -> list[Any]:
    """The maps of one blank image (1, 3, *size), with nothing changed by it."""
    pixels = torch.zeros(1, 3, *size, device=_device_of(backbone))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _evaluating(backbone):
        return list(backbone(pixels))


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def _shapes(shapes: Sequence[Any]) -> str:
    return ", ".join("x".join(map(str, s)) if isinstance(s, tuple) else s for s in shapes)
