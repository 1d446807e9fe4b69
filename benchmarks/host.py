"""``tools/benchmark.py host``: what an op call costs the host on a GPU's path, all but the launches themselves.

It runs anywhere: tensors lie on the CPU, so small that to fill them takes no time, and where a kernel would be launched
nothing is. Times are the thread's own, so that other programs disturb them little.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import rich
import torch
from rich.table import Table
from torch import Tensor

from detkit import ops
from detkit.ops.cuda import compile as kernels

#: modules of ``detkit.ops`` that choose between a kernel and the sparse form
CHOOSERS = ("region_pooling", "ps_roi_align", "deform_conv")
#: calls whose time is taken together
CALLS = 100


@contextlib.contextmanager
def launches_left_out() -> Iterator[None]:
    """Ops on CPU tensors take the kernels' path, up to their launch."""
    with contextlib.ExitStack() as stack:  # plain functions, not mocks, whose call takes as long as an op's
        stack.enter_context(mock.patch.object(kernels, "run", new=_nothing))
        for name in CHOOSERS:
            stack.enter_context(mock.patch.object(sys.modules[f"detkit.ops.{name}"], "usable", new=_always))
        yield


def _nothing(*_: object) -> None: ...


def _always(*_: object) -> bool:
    return True


class Call(NamedTuple):
    """An op as a function of the tensors that have a gradient, and those."""

    op: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def calls() -> dict[str, Call]:
    """Each op with a kernel, on 8 channels of a few cells."""

    def values(*shape: int) -> Tensor:
        return torch.rand(shape).contiguous(memory_format=torch.channels_last).requires_grad_()

    boxes, index, levels = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 4), torch.zeros(4, dtype=torch.int64), torch.arange(4)
    maps = tuple(values(1, 8, 8 // 2**i, 8 // 2**i) for i in range(4))
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    level = {"output_size": (2, 2), "scale": 1 / 4}
    levels_of = {"output_size": (2, 2), "scales": scales}
    return {
        "RoIAlign of four levels": Call(
            lambda *maps: ops.multi_level_roi_align(maps, boxes, index, levels, **levels_of), maps
        ),
        "position-sensitive pooling": Call(lambda x: ops.ps_roi_pool(x, boxes, index, **level), (values(1, 32, 8, 8),)),
        "deformable RoI pooling of four levels": Call(
            lambda offsets, *maps: ops.deform_roi_pool(maps, boxes, index, levels, offsets, **levels_of),
            (values(4, 2, 2, 2), *maps),
        ),
        "deformable convolution 3 x 3, v2": Call(
            lambda x, offset, mask, weight: ops.deform_conv(x, offset, weight, mask=mask, padding=(1, 1)),
            (values(1, 8, 4, 4), values(1, 18, 4, 4), values(1, 9, 4, 4), values(8, 8, 3, 3)),
        ),
    }


def benchmark_host(repeats: int) -> dict[str, tuple[float, float, float]]:
    """Seconds of a call without gradients, of one that will be differentiated, and of one with its backward pass.

    The best of ``repeats``.
    """
    with launches_left_out():
        return {name: _times(call, repeats) for name, call in calls().items()}


def host_table(times: dict[str, tuple[float, float, float]]) -> Table:
    """One row for each op, in microseconds."""
    table = Table(title="a call on the host, without its launches, microseconds", title_justify="left", box=None)
    for heading in ("", "without gradients", "with", "and backward"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, values in times.items():
        table.add_row(name, *(f"{1e6 * seconds:.0f}" for seconds in values))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of :func:`benchmark_host`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="runs of each (default: %(default)s)")
    repeats = parser.parse_args(argv).repeats
    if repeats < 1:
        parser.error(f"--repeats must be at least 1, not {repeats}")
    torch.set_num_threads(1)
    rich.print(host_table(benchmark_host(repeats)))


def _times(call: Call, repeats: int) -> tuple[float, float, float]:
    op, inputs = call
    upstream = torch.ones_like(op(*inputs))

    def without() -> Tensor:
        with torch.no_grad():
            return op(*inputs)

    both = _best(lambda: torch.autograd.grad(op(*inputs), inputs, upstream), repeats)
    return _best(without, repeats), _best(lambda: op(*inputs), repeats), both


def _best(call: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS)
    return best
