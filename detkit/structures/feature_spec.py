"""What flows between backbone, neck and head, told before anything runs."""

from __future__ import annotations

from typing import NamedTuple


class FeatureSpec(NamedTuple):
    """Channels and strides of L feature maps, fine to coarse.

    A stride is in input pixels per feature cell; an image pyramid at scale 0.75 has no whole stride.
    """

    channels: tuple[int, ...]
    strides: tuple[float, ...]


class PixelStats(NamedTuple):
    """Mean and standard deviation of R, G and B in 0..255 that the backbone's weights were trained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET_STATS = PixelStats(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
