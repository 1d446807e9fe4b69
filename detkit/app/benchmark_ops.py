"""``tools/benchmark.py ops``: every sampling op beside torchvision's, and beside what the hardware would allow.

The bound of an op is the longer of two times: that of moving its inputs and outputs once at the measured copy
bandwidth, and that of its floating-point operations at the measured rate of a matrix product. Shapes are those of a
Faster R-CNN R50-FPN at 800 x 1333 and of a CenterNet R18 at 512.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torchvision
from rich.table import Table
from torch import Tensor

from detkit import ops
from detkit.app.timing import time_alternately

#: px of an image after padding to stride 32, and regions of each that the RoI head samples
IMAGE, REGIONS = (800, 1344), 512

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Contest(NamedTuple):
    """An op on inputs of its own, by detkit and by torchvision, with the numbers that it must move and compute.

    ``bytes`` and ``flops`` are of the forward pass and of both passes.
    """

    title: str
    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    bytes: tuple[float, float]
    flops: tuple[float, float]


class Machine(NamedTuple):
    """Measured: bytes per second that a copy reads and writes, and operations per second of a matrix product."""

    bandwidth: float
    rate: float

    def bound(self, num_bytes: float, flops: float) -> float:
        """Seconds that the longer of both takes."""
        return max(num_bytes / self.bandwidth, flops / self.rate)


def measure(device: torch.device, dtype: torch.dtype, repeats: int) -> Machine:
    """The best of ``repeats`` copies of 256 MB and matrix products of 4096 (a CPU: 1024) squared."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    side = 4096 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device).to(dtype)
    times = time_alternately(
        {"copy": lambda: target.copy_(source), "product": lambda: matrix @ matrix}, repeats, device
    )
    return Machine(2 * source.numel() * 4 / min(times["copy"]), 2 * side**3 / min(times["product"]))


def contests(device: torch.device, dtype: torch.dtype, batches: Sequence[int], shrink: int) -> list[Contest]:
    """All ops at the models' shapes, the maps' sides and the regions divided by ``shrink``."""
    made = []
    for batch in batches:
        made += [_roi_align(batch, device, dtype, shrink), _ps_roi_align(batch, device, dtype, shrink)]
        made += [_deform_roi_pool(batch, device, dtype, shrink)]
        for channels, h, w in ((256, 100, 168), (128, 100, 168), (256, 50, 84), (512, 25, 42)):
            made.append(_deform_conv(batch, channels, channels, h // shrink, w // shrink, device, dtype))
    for channels, out, side in ((256, 128, 32), (128, 64, 64)):  # CenterNet's upsampling
        made.append(_deform_conv(max(32 // shrink**2, 1), channels, out, side, side, device, dtype))
    return made


def benchmark_ops(device: torch.device, repeats: int, batches: Sequence[int], shrink: int) -> list[Table]:
    """A table for each type."""
    tables = []
    for dtype in DTYPES:
        machine = measure(device, dtype, repeats)
        title = (
            f"{str(dtype).removeprefix('torch.')}: copies at {machine.bandwidth / 1e9:.0f} GB/s, matrix products at "
            f"{machine.rate / 1e12:.2f} TFLOP/s measured; channels-last"
        )
        table = Table(title=title, title_justify="left")
        for heading in ("", "pass", "detkit ms", "torchvision ms", "times as fast", "MB", "GFLOP", "bound ms", "of it"):
            table.add_column(heading, justify="right" if heading not in ("", "pass") else "left", no_wrap=True)
        for contest in contests(device, dtype, batches, shrink):
            for row in rows(contest, machine, repeats, device):
                table.add_row(*row)
        tables.append(table)
    return tables


def rows(contest: Contest, machine: Machine, repeats: int, device: torch.device) -> list[tuple[str, ...]]:
    """One row for the forward pass and one for both."""
    made = []
    for i, (name, wrap) in enumerate((("forward", _forward), ("and backward", _with_backward))):
        runs = {"detkit": wrap(contest.ours, contest.inputs)}
        theirs = wrap(contest.theirs, contest.inputs)
        try:
            theirs()
            runs["torchvision"] = theirs
        except (RuntimeError, NotImplementedError):  # no kernel for the type
            pass
        medians = {k: statistics.median(v) for k, v in time_alternately(runs, repeats, device).items()}
        bound = machine.bound(contest.bytes[i], contest.flops[i])
        peer = medians.get("torchvision")
        made.append(
            (
                contest.title if i == 0 else "", name, f"{1e3 * medians['detkit']:.3f}",
                "none" if peer is None else f"{1e3 * peer:.3f}",
                "" if peer is None else f"{peer / medians['detkit']:.2f}",
                f"{contest.bytes[i] / 1e6:.1f}", f"{contest.flops[i] / 1e9:.2f}", f"{1e3 * bound:.3f}",
                f"{bound / medians['detkit']:.0%}",
            )
        )  # fmt: skip
    return made


def _forward(op: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            op(*inputs)

    return run


def _with_backward(op: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    def run() -> None:
        out = op(*inputs)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    return run


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
        f"multi-level RoIAlign, {batch} images, {len(boxes)} boxes x 256 x 7 x 7",
        lambda *m: ops.multi_level_roi_align(m, boxes, index, levels, output_size=(7, 7), scales=scales),
        peer,
        tuple(maps), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _ps_roi_align(batch: int, device: torch.device, dtype: torch.dtype, shrink: int) -> Contest:
    maps = _maps(batch, 21 * 49, (16,), device, dtype, shrink)
    boxes, index, _ = _regions(batch, device, shrink)
    rois = torch.cat([index[:, None].float(), boxes], dim=1).to(dtype)
    costs = [_pooling_cost(maps, len(boxes) * 49 * 21, passes) for passes in (1, 2)]
    return Contest(
        f"position-sensitive RoIAlign, {batch} images, {len(boxes)} boxes x 21 x 7 x 7",
        lambda m: ops.ps_roi_align(m, boxes, index, output_size=(7, 7), scale=1 / 16),
        lambda m: torchvision.ops.ps_roi_align(m, rois, 7, 1 / 16, 2),
        tuple(maps), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _deform_roi_pool(batch: int, device: torch.device, dtype: torch.dtype, shrink: int) -> Contest:
    """torchvision has no such op: its RoIAlign of the same boxes stands beside it."""
    (x,) = _maps(batch, 256, (16,), device, dtype, shrink)
    boxes, index, levels = _regions(batch, device, shrink)
    offsets = torch.randn(len(boxes), 2, 7, 7, device=device, requires_grad=True)
    rois = torch.cat([index[:, None].float(), boxes], dim=1).to(dtype)
    options = {"output_size": (7, 7), "scales": (1 / 16,)}
    costs = [_pooling_cost([x], len(boxes) * 49 * 256, passes) for passes in (1, 2)]
    return Contest(
        f"deformable RoI pooling (torchvision: RoIAlign), {batch} images, {len(boxes)} boxes x 256 x 7 x 7",
        lambda m, o: ops.deform_roi_pool([m], boxes, index, levels * 0, o, **options),
        lambda m, o: torchvision.ops.roi_align(m, rois, 7, 1 / 16, 2, True) + 0 * o.sum(),
        (x, offsets), (costs[0][0], costs[1][0]), (costs[0][1], costs[1][1]),
    )  # fmt: skip


def _deform_conv(
    batch: int, channels: int, out_channels: int, h: int, w: int, device: torch.device, dtype: torch.dtype
) -> Contest:
    x = torch.randn(batch, channels, h, w, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(out_channels, channels, 3, 3, device=device) / (9 * channels) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    offset = torch.randn(batch, 18, h, w, device=device).to(dtype)
    mask = torch.rand(batch, 9, h, w, device=device).to(dtype)
    inputs = tuple(t.requires_grad_() for t in (x, offset, weight, mask))
    moved = sum(t.numel() for t in inputs) * x.element_size()
    outputs = batch * out_channels * h * w * x.element_size()
    product, sampling = 2 * batch * h * w * 9 * channels * out_channels, 8 * batch * h * w * 9 * channels
    return Contest(
        f"modulated deformable convolution 3 x 3, {batch} x {channels} x {h} x {w} to {out_channels}",
        lambda x, o, k, m: ops.deform_conv(x, o, k, mask=m, padding=(1, 1)),
        lambda x, o, k, m: torchvision.ops.deform_conv2d(x, o, k, None, padding=(1, 1), mask=m),
        inputs, (moved + outputs, 3 * moved + 2 * outputs), (product + sampling, 3 * (product + sampling)),
    )  # fmt: skip
