"""Which sizes of objects count in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from detkit.structures.boxes import area


class SizeRange(NamedTuple):
    """From ``low`` to ``high``, both included: sizes sqrt(w h) in px of the network input; no ``high`` is no bound."""

    low: float = 0.0
    high: float = math.inf

    def holds(self, boxes: Tensor) -> Tensor:
        """(N,) bool: whether the size of each of ``boxes`` (N, 4) px lies in the range."""
        size = area(boxes).clamp(min=0).sqrt()
        return (size >= self.low) & (size <= self.high)

    def scaled(self, scale: float) -> SizeRange:
        """The same sizes in an image ``scale`` times as large."""
        return SizeRange(self.low * scale, self.high * scale)


def size_ranges(ranges: Sequence[tuple[float, float | None]] | None, num: int, of: str) -> tuple[SizeRange, ...] | None:
    """``valid_ranges`` as YAML has them, [from, to] with null for no upper bound; None stays None.

    Args:
        num: how many there must be.
        of: what each belongs to, in words ("levels").

    Raises:
        ValueError: there is not one for each, or one holds no size.
    """
    if ranges is None:
        return None
    if len(ranges) != num:
        raise ValueError(f"valid_ranges must have a [from, to] for each of the {num} {of}, not {len(ranges)}")
    found = tuple(SizeRange(low, math.inf if high is None else high) for low, high in ranges)
    if not all(0 <= low < high for low, high in found):
        raise ValueError(f"valid_ranges must be [from, to] with 0 <= from < to, not {[list(r) for r in ranges]}")
    return found
