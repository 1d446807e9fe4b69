"""What ``tools/benchmark.py ops`` times: every sampling op at the models' shapes, by detkit and by its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor

from benchmarks import pure
from detkit import ops

#: px of an image after padding to stride 32, and regions of each that the RoI head samples
IMAGE, REGIONS = (800, 1344), 512


class Contest(NamedTuple):
    """An op on inputs of its own, by detkit and by its peers, with the numbers that it must move and compute.

    ``bytes`` and ``flops`` are of the forward pass and of both passes.
    """

    op: str
    shape: str
    contestants: dict[str, Callable[..., Tensor]]
    inputs: tuple[Tensor, ...]
    bytes: tuple[float, float]
    flops: tuple[float, float]


def contests(
    device: torch.device, dtype: torch.dtype, batches: Sequence[int], shrink: int
) -> list[Callable[[], Contest]]:
    """All ops at the models' shapes, the maps' sides and the regions divided by ``shrink``; each made when called."""
    made: list[Callable[[], Contest]] = []
    for batch in batches:
        made += [
            partial(pooling, batch, device, dtype, shrink) for pooling in (_roi_align, _ps_roi_align, _deform_roi_pool)
        ]
        for channels, h, w in ((256, 100, 168), (128, 100, 168), (256, 50, 84), (512, 25, 42)):
            size = (batch, channels, channels, h // shrink, w // shrink)
            made.append(partial(_deform_conv, size, True, device, dtype))
        made.append(partial(_deform_conv, (batch, 256, 256, 50 // shrink, 84 // shrink), False, device, dtype))
    for channels, out, side in ((256, 128, 32), (128, 64, 64)):  # CenterNet's upsampling
        size = (max(32 // shrink**2, 1), channels, out, side, side)
        made.append(partial(_deform_conv, size, True, device, dtype))
    return made


def _maps(batch: int, channels: int, strides: Sequence[int], device: torch.device, dtype: torch.dtype, shrink: int):
    sizes = [(IMAGE[0] // s // shrink, IMAGE[1] // s // shrink) for s in strides]
    maps = [torch.randn(batch, channels, h, w, device=device).to(dtype) for h, w in sizes]
    return [m.contiguous(memory_format=torch.channels_last).requires_grad_() for m in maps]


def _regions(batch: int, device: torch.device, shrink: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of all sizes, their images, and their levels by Lin et al.'s rule."""
    g = torch.Generator().manual_seed(0)
    num = batch * REGIONS // shrink**2
    size = 16 * 32 ** torch.rand(num, 2, generator=g)
    corner = torch.rand(num, 2, generator=g) * (torch.tensor([IMAGE[1], IMAGE[0]]) - size).clamp(min=0)
    levels = (4 + (size.prod(1).sqrt() / 224).log2().floor()).clamp(2, 5).long() - 2
    boxes = torch.cat([corner, corner + size], dim=1) / shrink
    return boxes.to(device), torch.arange(batch).repeat(num // batch).to(device), levels.to(device)


def _pooling_cost(maps: Sequence[Tensor], outputs: int, passes: int) -> tuple[float, float]:
    """Bytes and operations: every map once, the outputs once, 2 x 2 samples of four taps for each."""
    size = maps[0].element_size()
    return passes * size * (sum(m.numel() for m in maps) + outputs), passes * 2 * 16 * outputs


def _roi_align(batch: int, device: torch.device, dtype: torch.dtype, shrink: int) -> Contest:
    strides = (4, 8, 16, 32)
    maps = _maps(batch, 256, strides, device, dtype, shrink)
    boxes, index, levels = _regions(batch, device, shrink)
    scales = [1 / s for s in strides]
    rois = torch.cat([index[:, None].float(), boxes], dim=1).to(dtype)

    def peer(*maps: Tensor) -> Tensor:
        """As torchvision's MultiScaleRoIAlign does it: level by level, and scattered together."""
        out = maps[0].new_zeros(len(rois), 256, 7, 7)
        for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            pick = (levels == level).nonzero().squeeze(1)
            out = out.index_put((pick,), torchvision.ops.roi_align(x, rois[pick], 7, scale, 2, True))
        return out

    outputs = len(boxes) * 49 * 256
    costs = [_pooling_cost(maps, outputs, passes) for passes in (1, 2)]
    return Contest(
        "RoIAlign of four levels",
        f"{batch} x {len(boxes) // batch} boxes x 256 x 7 x 7",
        {
            "detkit": lambda *m: ops.multi_level_roi_align(m, boxes, index, levels, output_size=(7, 7), scales=scales),
            "torchvision": peer,
            "pure torch": lambda *m: pure.roi_align(m, boxes, index, levels, scales),
        },
        tuple(maps), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _ps_roi_align(batch: int, device: torch.device, dtype: torch.dtype, shrink: int) -> Contest:
    maps = _maps(batch, 21 * 49, (16,), device, dtype, shrink)
    boxes, index, _ = _regions(batch, device, shrink)
    rois = torch.cat([index[:, None].float(), boxes], dim=1).to(dtype)
    costs = [_pooling_cost(maps, len(boxes) * 49 * 21, passes) for passes in (1, 2)]
    return Contest(
        "position-sensitive RoIAlign",
        f"{batch} x {len(boxes) // batch} boxes x 21 x 7 x 7",
        {
            "detkit": lambda m: ops.ps_roi_align(m, boxes, index, output_size=(7, 7), scale=1 / 16),
            "torchvision": lambda m: torchvision.ops.ps_roi_align(_class_after_class(m), rois, 7, 1 / 16, 2),
            "pure torch": lambda m: pure.ps_roi_align(m, boxes, 1 / 16),
        },
        tuple(maps), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _class_after_class(maps: Tensor) -> Tensor:
    """Channels as torchvision has them, all bins of a class together; its time holds this copy."""
    return maps.unflatten(1, (49, 21)).transpose(1, 2).flatten(1, 2)


def _deform_roi_pool(batch: int, device: torch.device, dtype: torch.dtype, shrink: int) -> Contest:
    """torchvision has no such op."""
    (x,) = _maps(batch, 256, (16,), device, dtype, shrink)
    boxes, index, levels = _regions(batch, device, shrink)
    offsets = torch.randn(len(boxes), 2, 7, 7, device=device, requires_grad=True)
    options = {"output_size": (7, 7), "scales": (1 / 16,)}
    costs = [_pooling_cost([x], len(boxes) * 49 * 256, passes) for passes in (1, 2)]
    return Contest(
        "deformable RoI pooling",
        f"{batch} x {len(boxes) // batch} boxes x 256 x 7 x 7",
        {
            "detkit": lambda m, o: ops.deform_roi_pool([m], boxes, index, levels * 0, o, **options),
            "pure torch": lambda m, o: pure.roi_align([m], boxes, index, levels * 0, (1 / 16,), o),
        },
        (x, offsets), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _deform_conv(
    size: tuple[int, int, int, int, int], modulated: bool, device: torch.device, dtype: torch.dtype
) -> Contest:
    batch, channels, out_channels, h, w = size
    x = torch.randn(batch, channels, h, w, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, channels, 3, 3, device=device) / (9 * channels) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    offset = torch.randn(batch, 18, h, w, device=device).to(dtype)
    mask = [torch.rand(batch, 9, h, w, device=device).to(dtype)] if modulated else []
    inputs = tuple(t.requires_grad_() for t in (x, offset, weight, *mask))
    moved = sum(t.numel() for t in inputs) * x.element_size()
    outputs = batch * out_channels * h * w * x.element_size()
    product, sampling = 2 * batch * h * w * 9 * channels * out_channels, 8 * batch * h * w * 9 * channels
    return Contest(
        f"deformable convolution 3 x 3, v{2 if modulated else 1}",
        f"{batch} x {channels} x {h} x {w} to {out_channels}",
        {
            "detkit": lambda x, o, k, m=None: ops.deform_conv(x, o, k, mask=m, padding=(1, 1)),
            "torchvision": lambda x, o, k, m=None: torchvision.ops.deform_conv2d(x, o, k, None, padding=(1, 1), mask=m),
            "pure torch": lambda x, o, k, m=None: pure.deform_conv(x, o, k, m),
        },
        inputs, (moved + outputs, 3 * moved + 2 * outputs), (product + sampling, 3 * (product + sampling)),
    )  # fmt: skip
