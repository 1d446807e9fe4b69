"""Mirror images."""

from __future__ import annotations

import cv2
import torch

from detkit.config import TRANSFORMS
from detkit.data.sample import Sample
from detkit.data.transforms.base import Transform
from detkit.structures import Affine
from detkit.utils.seed import generator


@TRANSFORMS
class HorizontalFlip(Transform):
    """Exchange left and right with probability ``p``."""

    def __init__(self, *, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"p must be in [0, 1], not {p}")
        self.p = p

    def __call__(self, sample: Sample, key: int) -> Sample:
        if torch.rand((), generator=generator(key)) >= self.p:
            return sample
        return mirror(sample)


def mirror(sample: Sample) -> Sample:
    """``sample`` with left and right exchanged."""
    return sample.moved(cv2.flip(sample.image, 1), Affine(scale_x=-1.0, shift_x=float(sample.size[1])))
