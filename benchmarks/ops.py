"""``tools/benchmark.py ops``: every sampling op beside its peers, and beside what the hardware would allow.

The bound of an op is the longer of two times: that of moving its inputs and outputs once at the measured copy
bandwidth, and that of its floating-point operations at the measured rate of a matrix product. Shapes are those of a
Faster R-CNN R50-FPN at 800 x 1333 and of a CenterNet R18 at 512.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import rich
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.contests import Contest, contests
from benchmarks.timing import time_alternately
from detkit.utils.progress import track

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PEERS = ("torchvision", "pure torch")
HEADINGS = (
    "", "", "detkit\nms", "torchvision\nms", "times\nas fast", "pure torch\nms", "times\nas fast", "\nMB", "\nGFLOP",
    "copies\nms", "products\nms", "of the\nbound",
)  # fmt: skip
#: columns that the table needs; in a narrower terminal its lines break
WIDTH = 130


class Machine(NamedTuple):
    """Measured: bytes per second that a copy reads and writes, and operations per second of a matrix product."""

    bandwidth: float
    rate: float

    def times(self, num_bytes: float, flops: float) -> tuple[float, float]:
        """Seconds to move the bytes, and to do the operations."""
        return num_bytes / self.bandwidth, flops / self.rate


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


def benchmark_ops(device: torch.device, repeats: int, batches: Sequence[int], shrink: int) -> None:
    """Print a table for each type when it is done; one that is interrupted is printed as far as it came."""
    console = rich.get_console()
    console.print(described(device), soft_wrap=True)
    for dtype in DTYPES:
        machine = measure(device, dtype, repeats)
        table = empty_table(dtype, machine)
        made = contests(device, dtype, batches, shrink)
        try:
            for make in track(made, len(made), str(dtype).removeprefix("torch.")):
                for row in rows(make(), machine, repeats, device):
                    table.add_row(*row)
        finally:
            Console(width=max(console.width, WIDTH)).print(table)


def described(device: torch.device) -> str:
    """One line: the hardware and the versions that the figures hold for."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{name}; torch {torch.__version__}, torchvision {torchvision.__version__}"


def empty_table(dtype: torch.dtype, machine: Machine) -> Table:
    """The table of one type; its title says what the bounds are made of."""
    title = (
        f"{str(dtype).removeprefix('torch.')}, channels-last; measured: copies at {machine.bandwidth / 1e9:.0f} GB/s, "
        f"matrix products at {machine.rate / 1e12:.2f} TFLOP/s"
    )
    table = Table(title=title, title_justify="left", box=None, collapse_padding=True, pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i > 1 else "left", no_wrap=True)
    return table


def rows(contest: Contest, machine: Machine, repeats: int, device: torch.device) -> list[tuple[str, ...]]:
    """One row for the forward pass and one for both."""
    made = []
    for i, (name, wrap) in enumerate((("forward", _forward), ("both", _with_backward))):
        runs = {}
        for contestant, op in contest.contestants.items():
            run = wrap(op, contest.inputs)
            try:
                run()
            except (RuntimeError, NotImplementedError):  # a peer that has no kernel for the type
                if contestant == "detkit":
                    raise
                continue
            runs[contestant] = run
        medians = {k: statistics.median(v) for k, v in time_alternately(runs, repeats, device).items()}
        ours = medians["detkit"]
        peers = [medians.get(peer) for peer in PEERS]
        bounds = machine.times(contest.bytes[i], contest.flops[i])
        made.append(
            (
                contest.shape if i else contest.op, name, f"{1e3 * ours:.3f}",
                *(cell for peer in peers for cell in _beside(ours, peer)),
                f"{contest.bytes[i] / 1e6:.1f}", f"{contest.flops[i] / 1e9:.2f}",
                *(f"{1e3 * bound:.3f}" for bound in bounds), f"{max(bounds) / ours:.0%}",
            )
        )  # fmt: skip
    return made


def _beside(ours: float, peer: float | None) -> tuple[str, str]:
    return ("none", "") if peer is None else (f"{1e3 * peer:.3f}", f"{peer / ours:.2f}")


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
