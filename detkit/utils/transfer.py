"""Numbers of the host as tensors on a device, without the host waiting for the copy.

A GPU copies from page-locked memory by itself; from ordinary memory, as ``torch.tensor(..., device=)`` and
``new_tensor`` copy, only once all that it was told before is done, and so long the host waits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Constants that are kept: those of the parts, and a few of each batch (the sizes of its images).
_KEPT = 1024


def sent(values: Tensor | Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """``values``, numbers or a tensor of the host, on ``device``."""
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and not host.is_cuda:
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def sent_parts(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """:func:`sent` for several tensors of the host, of any shapes, in one copy for each type of number."""
    return moved_together(parts, lambda whole: sent(whole, device))


def moved_together(parts: Sequence[Tensor], move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """``parts``, of any shapes, where ``move`` brings them, which is called once for each type of number.

    ``move`` is given the numbers of all parts of a type, (sum,); what it returns is cut into views of their shapes.
    """
    moved: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(part.dtype for part in parts):
        places = [i for i, part in enumerate(parts) if part.dtype == dtype]
        same = [parts[i] for i in places]
        pieces = move(_in_a_row(same)).split([part.numel() for part in same])
        moved |= {i: piece.view(part.shape) for i, part, piece in zip(places, same, pieces, strict=True)}
    return [moved[i] for i in range(len(parts))]


def _in_a_row(parts: Sequence[Tensor]) -> Tensor:
    """(sum,): the numbers of all ``parts``; where they lie so already, as views of page-locked memory do, no copy."""
    first = parts[0]
    counts = [part.numel() for part in parts]
    starts = itertools.accumulate(counts[:-1], initial=first.storage_offset())
    memory = first.untyped_storage()._cdata
    if all(
        part.untyped_storage()._cdata == memory and part.is_contiguous() and part.storage_offset() == start
        for part, start in zip(parts, starts, strict=True)
    ):
        return first.as_strided((sum(counts),), (1,), first.storage_offset())
    return torch.cat([part.reshape(-1) for part in parts])


def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """:func:`sent` once, and kept for whoever asks again; nobody may write to it."""
    if torch.compiler.is_compiling():  # a constant of the graph
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, device, dtype)


def forget_constants() -> None:
    """Let go of what :func:`constant` keeps."""
    _kept.cache_clear()


@functools.lru_cache(maxsize=_KEPT)
def _kept(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(False):  # what is made inside it can take no part in training
        return sent(values, device, dtype)


def row_owners(counts: Sequence[int], device: torch.device) -> Tensor:
    """(sum,) int64: 0 ``counts[0]`` times, 1 ``counts[1]`` times, and so on."""
    owners = torch.arange(len(counts), device=device)
    return owners.repeat_interleave(sent(counts, device, torch.int64), output_size=sum(counts))
