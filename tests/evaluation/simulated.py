"""Detectors whose true difference is known, as matches: no boxes are drawn, hits and scores are."""

from __future__ import annotations

import numpy as np

from detkit.evaluation.matches import ClassMatches, Matches
from detkit.evaluation.summary import IOU_THRESHOLDS

OBJECTS, FALSE_ALARMS = 4, 4


class Population:
    """Images without end, each of some difficulty, and systems whose trained runs differ by their seed.

    Args:
        training: how much the seed moves the quality of a run on all images alike.
        taste: how much it moves the quality on each image by itself.
    """

    def __init__(self, training: float, taste: float) -> None:
        self.training, self.taste = training, taste

    def runs(self, rng: np.random.Generator, images: np.ndarray, skill: float, seeds: int) -> list[Matches]:
        """``seeds`` runs of one system on ``images`` (I,), which are their difficulties."""
        return [self._run(rng, images, skill) for _ in range(seeds)]

    def _run(self, rng: np.random.Generator, images: np.ndarray, skill: float) -> Matches:
        count = len(images)
        ease = skill + self.training * rng.standard_normal() + self.taste * rng.standard_normal(count) - images
        chance = 1 / (1 + np.exp(-ease))
        found = rng.random((count, OBJECTS)) < chance[:, None]
        quality = rng.random((count, OBJECTS)) * 0.6 + 0.35  # the IoU of what was found
        scores = np.concatenate(
            [rng.normal(1.0, 0.7, (count, OBJECTS)), rng.normal(0.0, 0.7, (count, FALSE_ALARMS))], axis=1
        ).ravel()
        kept = np.concatenate([found, rng.random((count, FALSE_ALARMS)) < 0.6], axis=1).ravel()
        iou = np.concatenate([quality, np.zeros((count, FALSE_ALARMS))], axis=1).ravel()[kept]
        image = np.repeat(np.arange(count), OBJECTS + FALSE_ALARMS)[kept]
        order = np.argsort(-scores[kept], kind="stable")
        hit = iou[order] >= IOU_THRESHOLDS[:, None]
        none = np.zeros(len(order), np.int64)
        part = ClassMatches(image[order], none, hit, np.ones_like(hit), np.full(count, float(OBJECTS)))
        return Matches({"all": (part,)}, (1, 10, 100), count)
