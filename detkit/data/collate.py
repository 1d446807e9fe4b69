"""Loaded images to one batch, in a form that is cheap to send from a worker to the training process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from detkit.data.sample import Layout, Sample
from detkit.structures import Batch, ImageMeta, Images, Target

#: A batch of more than so many times the px that its images alone would have is mostly padding. A very wide image and
#: a very high one can make it a hundred times, which no memory holds.
MOST_PADDING = 4.0


class Item(NamedTuple):
    """One loaded image, and (file, reason) of those that it replaces."""

    sample: Sample
    meta: ImageMeta
    bad: tuple[tuple[str, str], ...]


class Refusal(NamedTuple):
    """What a worker sends instead of an image that the user must look at: raised there, it would arrive in disguise."""

    error: ValueError


class Parcel(NamedTuple):
    """What a worker sends: the pixels of a batch as one tensor, and the rest as arrays.

    Every tensor costs a file descriptor on its way between processes; with one for each target a busy loader would meet
    the limit of 1024.
    """

    pixels: Tensor
    targets: list[tuple[np.ndarray, ...]]
    metas: tuple[ImageMeta, ...]
    bad: tuple[tuple[str, str], ...]


class Collate:
    """Items -> parcel: one uint8 tensor (B, 3, H, W), padded with 0 at the right and the bottom.

    Args:
        size_divisor: H and W are multiples of this, px.
        square: whether H and W are made equal.

    Raises:
        ValueError: ``size_divisor`` is not positive.
    """

    def __init__(self, size_divisor: int, square: bool) -> None:
        if size_divisor < 1:
            raise ValueError(f"size_divisor must be positive, not {size_divisor}")
        self.size_divisor = size_divisor
        self.square = square

    def __call__(self, items: Sequence[Item | Refusal]) -> Parcel | Refusal:
        loaded: list[Item] = []
        for item in items:
            if isinstance(item, Refusal):
                return item
            loaded.append(item)
        h, w = self.padded([item.meta for item in loaded])
        pixels = torch.zeros(len(loaded), 3, h, w, dtype=torch.uint8)
        for planes, item in zip(pixels.numpy(), loaded, strict=True):
            for plane, channel in zip(planes, cv2.split(item.sample.image), strict=True):  # 3 times torch's permute
                plane[: channel.shape[0], : channel.shape[1]] = channel
        return Parcel(
            pixels,
            [_columns(item.sample) for item in loaded],
            tuple(item.meta for item in loaded),
            tuple(bad for item in loaded for bad in item.bad),
        )

    def padded(self, metas: Sequence[ImageMeta]) -> tuple[int, int]:
        """(H, W) px of a batch of these images."""
        h, w = (self._padded(max(meta.size[axis] for meta in metas)) for axis in (0, 1))
        return (max(h, w), max(h, w)) if self.square else (h, w)

    def is_wasteful(self, metas: Sequence[ImageMeta]) -> bool:
        """Whether a batch of these images has more than ``MOST_PADDING`` times the px that each alone would have."""
        alone = sum(math.prod(self.padded([meta])) for meta in metas)
        return len(metas) * math.prod(self.padded(metas)) > MOST_PADDING * alone

    def waste(self, metas: Sequence[ImageMeta]) -> str | None:
        """Of a wasteful batch the two images that make it so, in words; None of any other."""
        if not self.is_wasteful(metas):
            return None
        first, second = (max(metas, key=lambda meta: meta.size[axis]) for axis in (0, 1))
        if second is first:  # one is larger than others both ways
            second = min(metas, key=lambda meta: math.prod(meta.size))
        h, w = self.padded(metas)
        named = " and ".join(f"{meta.file} ({meta.size[1]} x {meta.size[0]})" for meta in (first, second))
        return f"{named} are padded to {w} x {h} px (w x h) in one batch"

    def apart(self, metas: Sequence[ImageMeta]) -> list[list[int]]:
        """The places of the images in batches that are not wasteful; all in one where that is not."""
        if not self.is_wasteful(metas):
            return [list(range(len(metas)))]
        groups: list[list[int]] = []
        for i in range(len(metas)):
            for group in groups:
                if not self.is_wasteful([metas[k] for k in (*group, i)]):
                    group.append(i)
                    break
            else:
                groups.append([i])
        return groups

    def without_pixels(self, items: Sequence[tuple[Layout, ImageMeta]]) -> Batch:
        """The batch of images whose pixels were not read: black ones, which take no memory."""
        metas = tuple(meta for _, meta in items)
        pixels = torch.zeros(1, dtype=torch.uint8).expand(len(items), 3, *self.padded(metas))
        targets = tuple(_target(_columns(layout)) for layout, _ in items)
        return Batch(Images(pixels, metas), targets)

    def _padded(self, side: int) -> int:
        return -(-side // self.size_divisor) * self.size_divisor


def unpack(parcel: Parcel) -> Batch:
    """The batch of a ``parcel``; its pixels stay where they are, pinned ones too."""
    targets = tuple(map(_target, parcel.targets))
    batch = Batch(Images(parcel.pixels, tuple(parcel.metas)), targets)  # older torch pins tuples into lists
    return batch.pin_memory() if parcel.pixels.is_pinned() else batch


def _columns(of: Layout | Sample) -> tuple[np.ndarray, ...]:
    """The fields of a Target in their order; the last, landmarks, only where there are any."""
    columns = of.boxes, of.labels, of.ignore
    return columns if of.landmarks is None else (*columns, of.landmarks.points)


def _target(arrays: tuple[np.ndarray, ...]) -> Target:
    return Target(*map(torch.from_numpy, arrays))
