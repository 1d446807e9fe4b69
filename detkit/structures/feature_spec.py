"""What flows between backbone, neck and head, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FeatureSpec(NamedTuple):
    """Channels and strides of L feature maps, fine to coarse.

    A stride is in input pixels per feature cell; an image pyramid at scale 0.75 has no whole stride.
    """

    channels: tuple[int, ...]
    strides: tuple[float, ...]

    def which(self, levels: Sequence[int] | int | None, name: str) -> tuple[int, ...]:
        """``levels`` as numbers from 0, the finest: -1 is the coarsest, None are all.

        Raises:
            ValueError: there is none of that number; the message speaks of the argument ``name``.
        """
        num = len(self.strides)
        if levels is None:
            return tuple(range(num))
        wanted = [levels] if isinstance(levels, int) else list(levels)
        if not wanted or not all(-num <= level < num for level in wanted):
            strides = ", ".join(f"{i} (stride {s:g})" for i, s in enumerate(self.strides))
            raise ValueError(f"{name} must name maps that there are: {strides}, or -1 for the last; not {levels}")
        return tuple(level % num for level in wanted)

    def at_stride(self, stride: int | None) -> int:
        """The number of the map of ``stride`` px a cell, of several the last; None asks for the last map of all.

        Raises:
            ValueError: there is none of that stride.
        """
        if stride is None:
            return len(self.strides) - 1
        if stride not in self.strides:
            raise ValueError(f"stride must be one of {[int(s) for s in self.strides]}, not {stride}")
        return max(i for i, s in enumerate(self.strides) if s == stride)

    def select(self, levels: Sequence[int]) -> FeatureSpec:
        """The spec of these maps alone."""
        return FeatureSpec(tuple(self.channels[i] for i in levels), tuple(self.strides[i] for i in levels))


class PixelStats(NamedTuple):
    """Mean and standard deviation of R, G and B in 0..255 that the backbone's weights were trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_STATS = PixelStats(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
