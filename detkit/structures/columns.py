"""What holds one row for each object, field by field: chosen, joined and moved together, whatever fields there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows")


def each_field(rows: Rows, change: Callable[[Tensor], Tensor]) -> Rows:
    """``rows``, a dataclass of tensors, with each changed; what is None stays None."""
    values = [getattr(rows, name) for name in _names(rows)]
    return type(rows)(*(None if value is None else change(value) for value in values))


def columns_of(rows: Any) -> list[Tensor]:
    """The tensors of ``rows``, a dataclass of tensors, in their order; what is None, which stand last, is left out."""
    values = [getattr(rows, name) for name in _names(rows)]
    return [value for value in values if value is not None]


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of all ``parts``, one after the other; a field that one of them lacks, all lack."""
    first = parts[0]
    return type(first)(*(_together([getattr(p, name) for p in parts]) for name in _names(first)))


def check_landmarks(landmarks: Tensor | None, num: int, numbers: int, what: str) -> None:
    """Refuse ``landmarks`` that are not (``num``, L, ``numbers``).

    Raises:
        ValueError: as it says; ``what`` names the rows.
    """
    if landmarks is not None and (landmarks.ndim != 3 or (landmarks.shape[0], landmarks.shape[2]) != (num, numbers)):
        raise ValueError(f"{num} {what} but landmarks {tuple(landmarks.shape)}, not ({num}, L, {numbers})")


def _names(rows: Any) -> list[str]:
    """The fields that a constructor takes: what a row knows beside them it finds out anew."""
    return [f.name for f in fields(rows) if f.init]


def _together(values: Sequence[Any]) -> Tensor | None:
    return None if any(value is None for value in values) else torch.cat(list(values))
