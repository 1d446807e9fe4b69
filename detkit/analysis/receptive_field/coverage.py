"""Which sizes of objects which level can see.

The convention here: a level covers an object of side s (root of its area, px of the network input) if

    2 * stride <= s <= field.

Below, the object is less than two cells wide, and its neighbours share its cells. Above, no cell sees it whole. Between
the effective and the analytic field a cell sees it, but its borders weigh next to nothing: that is told apart. S3FD
(Zhang et al., ICCV 2017, section 3.1) places its anchors by the same two measures: a few strides wide (4 there), and
well inside the analytic field so as to fit the effective one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: An object must be so many cells wide.
MIN_CELLS = 2


class Cover(NamedTuple):
    """The sides from ``low`` to ``high`` px that a level covers; up to ``effective`` well, where that was measured."""

    low: float
    high: float
    effective: float | None = None

    @classmethod
    def of(cls, stride: float, field: float | None, effective: float | None = None) -> Cover:
        """The sizes that a level of ``stride`` with an analytic ``field`` covers; None: it sees the whole image."""
        return cls(MIN_CELLS * stride, math.inf if field is None else field, effective)

    def covers(self, sides: np.ndarray) -> np.ndarray:
        """(N,) bool for ``sides`` (N,)."""
        return (sides >= self.low) & (sides <= self.high)


class SizeBin(NamedTuple):
    """Boxes with sides in [low, high) px; ``levels`` cover at least half, ``well`` at least half effectively."""

    low: float
    high: float
    count: int
    share: float
    levels: tuple[int, ...]
    well: tuple[int, ...]


class Gap(NamedTuple):
    """Sides between ``low`` and ``high`` px, the ends not included, that no level covers, and the boxes of such."""

    low: float
    high: float
    count: int


def size_bins(sides: np.ndarray, covers: Sequence[Cover]) -> list[SizeBin]:
    """``sides`` (N,) px in octaves from the smallest to the largest, with the numbers of the levels that cover each."""
    if not len(sides):
        return []
    first, last = (math.floor(math.log2(s)) for s in (sides.min(), sides.max()))
    bins = []
    for octave in range(first, last + 1):
        low, high = 2.0**octave, 2.0 ** (octave + 1)
        inside = sides[(sides >= low) & (sides < high)]
        levels = tuple(i for i, c in enumerate(covers) if len(inside) and c.covers(inside).mean() >= 0.5)
        well = tuple(i for i in levels if _well(covers[i], inside))
        bins.append(SizeBin(low, high, len(inside), len(inside) / len(sides), levels, well))
    return bins


def gaps(sides: np.ndarray, covers: Sequence[Cover]) -> list[Gap]:
    """The ranges of sides that no level covers, the smallest first."""
    found = []
    reached = 0.0
    for cover in sorted(c for c in covers if c.high >= c.low):
        if cover.low > reached:
            found.append((reached, cover.low))
        reached = max(reached, cover.high)
    if reached < math.inf:
        found.append((reached, math.inf))
    return [Gap(low, high, int(((sides > low) & (sides < high)).sum())) for low, high in found]


def _well(cover: Cover, sides: np.ndarray) -> bool:
    return cover.effective is not None and (sides <= cover.effective).mean() >= 0.5
