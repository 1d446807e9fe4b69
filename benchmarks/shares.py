"""Where a step's time goes, by kind of operation, as torch's profiler sees it."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

REST = "everything else"
#: Names of operations, of each the first that fits; what runs inside one counts to it.
KINDS = {
    "convolutions, backward": r"ConvolutionBackward|convolution_backward",
    "convolutions, forward": r"aten::(conv\dd|conv_transpose\dd|_?convolution)$",
    "products of matrices, both ways": r"aten::(mm|bmm|addmm|baddbmm|linear|matmul)$|: (Mm|Bmm|Addmm|Baddbmm)Backward",
    "NMS": r"::nms",
    "pooling of regions, backward": r"detkit::\w*(roi|pool)\w*backward",
    "pooling of regions, forward": r"detkit::\w*(roi|pool)",
    "copies": r"aten::(copy_|clone|contiguous|_to_copy|cat|stack)$",
}


class Share(NamedTuple):
    """Of one step: ``seconds`` in ``calls`` operations of a ``kind``."""

    kind: str
    seconds: float
    calls: float


def shares_of(step: Callable[[], object], repeats: int, device: torch.device) -> list[Share]:
    """The kinds of KINDS and the rest in ``step``, means of ``repeats`` after one that does not count.

    On a GPU the time is that of its kernels; elsewhere it is what passes in the thread that runs the step, Python's own
    with the rest.
    """
    on_gpu = device.type == "cuda"
    step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        for _ in range(repeats):
            with record_function("step"):
                step()
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    for event in seen.events() or ():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel: its time is told by who launched it
        kind, is_outermost = _kind_of(event)
        seconds[kind] += 1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        calls[kind] += is_outermost
    return [Share(kind, seconds[kind] / repeats, calls[kind] / repeats) for kind in (*KINDS, REST)]


def _kind_of(event: Any) -> tuple[str, bool]:
    """The kind of the outermost operation around ``event`` that has one, and whether that is itself."""
    kind, is_outermost = REST, False
    above = event
    while above is not None:
        found = _kind_called(above.name)
        if found is not None:
            kind, is_outermost = found, above is event
        above = above.cpu_parent
    return kind, is_outermost


@functools.cache
def _kind_called(name: str) -> str | None:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), None)


def shares_table(shares: Sequence[Share], title: str) -> Table:
    """One line for each kind."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "ms a step", "share", "operations"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    total = sum(share.seconds for share in shares) or 1.0
    for share in shares:
        is_rest = share.kind == REST
        told = f"{1e3 * share.seconds:.1f}", f"{share.seconds / total:.1%}", "" if is_rest else f"{share.calls:.0f}"
        table.add_row(share.kind, *told)
    return table
