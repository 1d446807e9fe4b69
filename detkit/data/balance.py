"""How often each image is to come: rules that let the images of rare classes come more often than the others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from detkit.config import SAMPLINGS
from detkit.data.datasets.table import TruthTable, find_wanted, owners_of
from detkit.structures import GroundTruth


class Sampling(ABC):
    """How often each image comes in an epoch, on average; by its objects that can be trained on, so no crowds."""

    @abstractmethod
    def __call__(self, truths: Sequence[GroundTruth], num_classes: int) -> np.ndarray:
        """(I,) float64 from 0 on, of the images of ``truths``; one that is 0 never comes."""


@SAMPLINGS
class RepeatFactor(Sampling):
    """Repeat-factor sampling (Gupta, Dollar, Girshick, LVIS, CVPR 2019, section 5.1).

    A class that is in a share f of the images asks for ``r = max(1, sqrt(t / f))``; an image comes as often as the
    class of it that asks most. Whole parts are certain, the rest is drawn anew in each epoch.

    Args:
        threshold: t; classes in a greater share of the images are not repeated. LVIS takes 0.001.
    """

    def __init__(self, *, threshold: float = 0.001) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie above 0 and be at most 1, not {threshold}")
        self.threshold = threshold

    def __call__(self, truths: Sequence[GroundTruth], num_classes: int) -> np.ndarray:
        image, label = classes_of_images(truths, find_wanted(truths))
        share = np.bincount(label, minlength=num_classes) / max(1, len(truths))
        of_class = np.sqrt(self.threshold / np.maximum(share, 1 / max(1, len(truths)))).clip(min=1)
        repeats = np.ones(len(truths))
        np.maximum.at(repeats, image, of_class[label])
        return repeats


@SAMPLINGS
class ClassBalanced(Sampling):
    """Each class is drawn as often as each other, then one of its images (Shen, Lin, Huang, ECCV 2016, section 3.2).

    An epoch has as many images as without it. Images without an object never come.

    Args:
        most: no image comes more often than so many times in an epoch; null for any number.
    """

    def __init__(self, *, most: float | None = None) -> None:
        if most is not None and not 1 <= most < math.inf:
            raise ValueError(f"most must be 1 or more, not {most}")
        self.most = most

    def __call__(self, truths: Sequence[GroundTruth], num_classes: int) -> np.ndarray:
        image, label = classes_of_images(truths, find_wanted(truths))
        num_images = np.bincount(label, minlength=num_classes)
        repeats = np.zeros(len(truths))
        np.add.at(repeats, image, len(truths) / (np.count_nonzero(num_images) * num_images[label]))
        return repeats if self.most is None else repeats.clip(max=self.most)


def classes_of_images(truths: Sequence[GroundTruth], wanted: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(P,) images and (P,) classes: each class that an image has an object of, crowds left out, once.

    ``wanted`` (M,) bool: the objects that count, image after image, in place of all but crowds.
    """
    if isinstance(truths, TruthTable):
        label, crowd = truths.labels, truths.crowd
    else:
        label, crowd = (np.concatenate([np.zeros(0, int), *column]) for column in _columns(truths))
    counted = ~crowd.astype(bool) if wanted is None else wanted
    pairs = np.unique(np.column_stack([owners_of(truths), label])[counted], axis=0)
    return pairs[:, 0], pairs[:, 1]


def _columns(truths: Sequence[GroundTruth]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [t.labels for t in truths], [t.crowd for t in truths]
