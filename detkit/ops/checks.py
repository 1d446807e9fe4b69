"""Checks of what a sampling op is given, by shape, type and device alone: no value is read, no GPU is waited for.

A kernel reads as many channels, images and bytes of each map as the first one has: of another map it would read past
the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_WHOLE = (torch.int64, torch.int32)


def check_maps(features: Sequence[Tensor]) -> None:
    """Refuse maps that are not all (B, C, H_l, W_l), of one floating type, on one device, in strided memory.

    Raises:
        ValueError: they are not, or there are none.
    """
    if not features:
        raise ValueError("no feature maps")
    first = features[0]
    if not all(_are_alike(f, first) for f in features):
        raise ValueError(
            "feature maps must be (B, C, H, W) with the same B and C, of one floating type, on one device and strided, "
            f"not {'; '.join(_words(f) for f in features)}"
        )


def check_bins(output_size: Sequence[int]) -> None:
    """Refuse a grid without bins.

    Raises:
        ValueError: it has none.
    """
    if min(output_size) < 1:
        raise ValueError(f"output_size must be at least 1 x 1, not {output_size[0]} x {output_size[1]}")


def check_kernel(x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse what a deformable convolution cannot be computed with, whatever its shape.

    Raises:
        ValueError: a tensor is on another device or not strided, the map, the weights or the bias are whole numbers, or
            one of map and weights alone is float64. The message names it.
    """
    for name, tensor in (("x", x), ("offset", offset), ("mask", mask), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if name in ("x", "weight", "bias") and not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating type, not {_name(tensor.dtype)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be strided, not {_name(tensor.layout)}")
        if tensor.device != x.device:
            raise ValueError(f"{name} on {tensor.device}, but x on {x.device}")
    if (x.dtype == torch.float64) != (weight.dtype == torch.float64):
        raise ValueError(f"x is {_name(x.dtype)} and weight {_name(weight.dtype)}: float64 goes with float64 alone")


def check_sizes(image_sizes: Tensor, features: Tensor) -> None:
    """Refuse sizes that are not (B, 2) int64 beside ``features`` (B, C, H, W).

    Raises:
        ValueError: they are not.
    """
    if image_sizes.ndim != 2 or image_sizes.shape[1] != 2 or image_sizes.dtype != torch.int64:
        raise ValueError(f"image_sizes must be (B, 2) int64, not {tuple(image_sizes.shape)} {_name(image_sizes.dtype)}")
    if len(image_sizes) != features.shape[0]:
        raise ValueError(f"{len(image_sizes)} image sizes, but feature maps of {features.shape[0]} images")
    check_device("image_sizes", image_sizes, features.device)


def check_regions(boxes: Tensor, image_index: Tensor, levels: Tensor | None, device: torch.device) -> None:
    """Refuse R boxes without an image and a level each, or that are not on the ``device`` of the maps.

    Raises:
        ValueError: shapes, types or devices do not fit.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (R, 4), not {tuple(boxes.shape)}")
    if image_index.shape != boxes.shape[:1] or (levels is not None and levels.shape != boxes.shape[:1]):
        of_levels = "" if levels is None else f" and {len(levels)} levels"
        raise ValueError(f"{len(boxes)} boxes but {len(image_index)} image indices{of_levels}")
    for name, tensor in (("boxes", boxes), ("image_index", image_index), ("levels", levels)):
        if tensor is None:
            continue
        if tensor is not boxes and tensor.dtype not in _WHOLE:
            raise ValueError(f"{name} must be int64, not {_name(tensor.dtype)}")
        check_device(name, tensor, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Refuse a ``tensor`` that is not on the ``device`` of the maps.

    Raises:
        ValueError: it is not.
    """
    if tensor.device != device:
        raise ValueError(f"{name} on {tensor.device}, but feature maps on {device}")


def _are_alike(one: Tensor, first: Tensor) -> bool:
    return (
        one.ndim == 4
        and one.shape[:2] == first.shape[:2]
        and one.dtype == first.dtype
        and one.is_floating_point()
        and one.device == first.device
        and one.layout == torch.strided
    )


def _words(one: Tensor) -> str:
    layout = "" if one.layout == torch.strided else f" {_name(one.layout)}"
    return f"{tuple(one.shape)} {_name(one.dtype)}{layout} on {one.device}"


def _name(of_torch: torch.dtype | torch.layout) -> str:
    return str(of_torch).removeprefix("torch.")
