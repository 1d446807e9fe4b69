"""How large images and boxes are when they reach the network, found without reading an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detkit.data.datasets.base import DetectionDataset
from detkit.data.sample import Layout, trainable_boxes
from detkit.data.transforms.base import Transform, lay
from detkit.structures import Affine


@dataclass(frozen=True, slots=True, eq=False)
class InputScale:
    """``image_sizes`` (I, 2) int64 (h, w) and ``boxes`` (N, 4) float32 x1 y1 x2 y2, both px of the network input."""

    image_sizes: np.ndarray
    boxes: np.ndarray


def at_input_scale(dataset: DetectionDataset, transforms: Sequence[Transform]) -> InputScale:
    """All images and boxes to train on (crowds left out), as ``transforms`` scale them.

    The transforms are asked once for each size of image that occurs; what they draw by chance is drawn once for all
    images of that size.

    Raises:
        ValueError: a transform has no inverse, so it does not tell where boxes go.
    """
    known: dict[tuple[int, int], tuple[tuple[int, int], Affine]] = {}
    sizes, boxes = [], [np.zeros((0, 4), np.float32)]
    for truth in dataset.truths:
        if truth.size not in known:
            known[truth.size] = input_size(truth.size, transforms)
        size, affine = known[truth.size]
        sizes.append(size)
        corners, usable = trainable_boxes(truth)
        moved = affine.apply(torch.from_numpy(corners[usable & ~truth.crowd]).float()).numpy()
        moved = moved.clip(0, np.array([size[1], size[0]] * 2, dtype=np.float32))
        boxes.append(moved[(moved[:, 2:] > moved[:, :2]).all(axis=1)])
    return InputScale(np.array(sizes, dtype=np.int64).reshape(-1, 2), np.concatenate(boxes))


def input_size(size: tuple[int, int], transforms: Sequence[Transform]) -> tuple[tuple[int, int], Affine]:
    """(h, w) after ``transforms`` of an image of ``size`` (h, w), and the map that leads there.

    Raises:
        ValueError: a transform has no inverse.
    """
    layout = lay(transforms, Layout.empty(size), key=0)
    if layout.affine is None:
        steps = ", ".join(type(t).__name__ for t in transforms)
        raise ValueError(f"one of {steps} has no inverse: where boxes go is not known")
    return layout.size, layout.affine
