"""Inputs that the tests of all sampling ops share: every op, in every variation, on a map small enough for loops."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from detkit import ops

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
WHOLE = {"scale": 1 / 8, "output_size": (3, 2)}


class Case(NamedTuple):
    """An op as a function of the tensors that it is differentiable in, those tensors, and its reference."""

    op: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    raw: tuple[str, tuple]  # the registered op and all its arguments


def boxes_and_images(g: torch.Generator, num: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Boxes px on and over the edge of a map of 9 x 13 cells at stride 8, in two images."""
    corner = torch.rand(num, 2, generator=g) * torch.tensor([110.0, 80.0]) - 15
    boxes = torch.cat([corner, corner + torch.rand(num, 2, generator=g) * 70], dim=1)
    return boxes.to(device, dtype), torch.randint(0, 2, (num,), generator=g).to(device)


def roi_align(sampling, aligned, *, num=5, dtype=torch.float32, device="cpu", channels=5, size=(3, 2), seed=0) -> Case:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels, 9, 13, generator=g).to(device, dtype)
    boxes, index = boxes_and_images(g, num, torch.float64 if dtype == torch.float64 else torch.float32, device)
    options = {"output_size": size, "scale": 1 / 8, "sampling_ratio": sampling, "aligned": aligned}
    sizes = torch.tensor([[60, 90], [50, 70]], device=device)
    raw = ([features], boxes, index, torch.zeros_like(index), None, sizes, list(size), [1 / 8], sampling, aligned, False, 0.0)  # fmt: skip
    return Case(
        lambda f: ops.roi_align(f, boxes, index, **options),
        lambda f: ops.roi_align_reference(f, boxes, index, **options),
        (features,), ("region_pooling", raw),
    )  # fmt: skip


def ps_roi_align(sampling, *, num=5, dtype=torch.float32, device="cpu", size=(3, 2), channels=2, seed=0) -> Case:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels * size[0] * size[1], 9, 13, generator=g).to(device, dtype)
    boxes, index = boxes_and_images(g, num, torch.float64 if dtype == torch.float64 else torch.float32, device)
    options = {"output_size": size, "scale": 1 / 8, "sampling_ratio": sampling}
    raw = ([features], boxes, index, torch.zeros_like(index), None, None, list(size), [1 / 8], sampling, True, True, 0.0)  # fmt: skip
    return Case(
        lambda f: ops.ps_roi_align(f, boxes, index, **options),
        lambda f: ops.ps_roi_align_reference(f, boxes, index, **options),
        (features,), ("region_pooling", raw),
    )  # fmt: skip


def ps_roi_pool(*, num=5, dtype=torch.float32, device="cpu", size=(3, 2), channels=2, seed=0) -> Case:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(2, channels * size[0] * size[1], 9, 13, generator=g).to(device, dtype)
    boxes, index = boxes_and_images(g, num, torch.float64 if dtype == torch.float64 else torch.float32, device)
    options = {"output_size": size, "scale": 1 / 8}
    return Case(
        lambda f: ops.ps_roi_pool(f, boxes, index, **options),
        lambda f: ops.ps_roi_pool_reference(f, boxes, index, **options),
        (features,), ("ps_roi_pool", (features, boxes, index, list(size), 1 / 8)),
    )  # fmt: skip


def deform_roi_pool(
    sampling, sensitive, groups, modulated=False,
    *, num=5, dtype=torch.float32, device="cpu", size=(3, 2), channels=4, seed=0,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    bins = size[0] * size[1] if sensitive else 1
    features = torch.randn(2, channels * bins, 9, 13, generator=g).to(device, dtype)
    coarse = torch.randn(2, channels * bins, 5, 7, generator=g).to(device, dtype)
    boxes, index = boxes_and_images(g, num, torch.float64 if dtype == torch.float64 else torch.float32, device)
    levels = torch.arange(num, device=device) % 2
    offsets = (2 * torch.randn(num, 2 * groups, *size, generator=g)).to(device, boxes.dtype)
    options = {
        "output_size": size, "scales": (1 / 8, 1 / 16), "sampling_ratio": sampling, "position_sensitive": sensitive,
    }  # fmt: skip
    raw = (
        [features, coarse], boxes, index, levels, offsets, None, list(size), [1 / 8, 1 / 16], sampling, True, sensitive, 0.1
    )  # fmt: skip
    mask = [torch.rand(num, groups, *size, generator=g).to(device, boxes.dtype)] if modulated else []
    return Case(
        lambda f, c, o, m=None: ops.deform_roi_pool([f, c], boxes, index, levels, o, mask=m, **options),
        lambda f, c, o, m=None: ops.deform_roi_pool_reference([f, c], boxes, index, levels, o, mask=m, **options),
        (features, coarse, offsets, *mask), ("region_pooling", raw),
    )  # fmt: skip


def deform_conv(
    kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1, offset_groups=1, modulated=True, bias=True,
    *, batch=2, channels=4, out_channels=6, size=(5, 6), dtype=torch.float32, device="cpu", seed=0,
) -> Case:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    taps = kernel[0] * kernel[1]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    x = torch.randn(batch, channels, *size, generator=g)
    offset = 2 * torch.randn(batch, 2 * offset_groups * taps, *out, generator=g)
    weight = torch.randn(out_channels, channels // groups, *kernel, generator=g) / (taps * channels / groups) ** 0.5
    tensors = [x, offset, weight]
    if bias:
        tensors.append(torch.randn(out_channels, generator=g))
    if modulated:
        tensors.append(torch.rand(batch, offset_groups * taps, *out, generator=g))
    tensors = [t.to(device, dtype) for t in tensors]
    options = {"stride": stride, "padding": padding, "dilation": dilation}

    def named(rest):
        return {"bias": rest[0] if bias else None, "mask": rest[-1] if modulated else None}

    raw = (
        *tensors[:2],
        named(tensors[3:])["mask"],
        tensors[2],
        named(tensors[3:])["bias"],
        *map(list, options.values()),
    )
    return Case(
        lambda x, o, w, *rest: ops.deform_conv(x, o, w, **named(rest), **options),
        lambda x, o, w, *rest: ops.deform_conv_reference(x, o, w, **named(rest), **options),
        tuple(tensors), ("deform_conv", raw),
    )  # fmt: skip


#: every variation of every op, small; name -> a function of (dtype, device)
CASES: dict[str, Callable[..., Case]] = {
    "roi_align": lambda **k: roi_align(2, True, **k),
    "roi_align, adaptive, not aligned": lambda **k: roi_align(0, False, **k),
    "ps_roi_align": lambda **k: ps_roi_align(2, **k),
    "ps_roi_align, adaptive": lambda **k: ps_roi_align(0, **k),
    "ps_roi_pool": lambda **k: ps_roi_pool(**k),
    "deform_roi_pool": lambda **k: deform_roi_pool(2, False, 1, **k),
    "deform_roi_pool, grouped, adaptive": lambda **k: deform_roi_pool(0, False, 2, **k),
    "deform_roi_pool, position-sensitive": lambda **k: deform_roi_pool(2, True, 2, **k),
    "deform_roi_pool, modulated, grouped": lambda **k: deform_roi_pool(1, False, 2, True, **k),
    "deform_conv v1": lambda **k: deform_conv(modulated=False, bias=False, **k),
    "deform_conv v2": lambda **k: deform_conv(**k),
    "deform_conv v2, grouped": lambda **k: deform_conv((2, 3), (2, 1), (0, 2), (1, 2), 2, 2, **k),
}
