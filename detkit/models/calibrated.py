"""A detector whose classes have thresholds of their own, and whose scores may be mapped to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.models.interfaces import Detector
from detkit.structures import Detections, Images, Losses, Target

#: A function of scores (N,) that does not fall.
Scores = Callable[[np.ndarray], np.ndarray]


class Calibrated(Detector):
    """Of what ``detector`` finds, only what reaches the threshold of its class comes out; losses are the detector's.

    Args:
        detector: any.
        thresholds: (K,) in its own scores.
        scores: what a score of the detector's becomes afterwards; None leaves it.
    """

    def __init__(self, detector: Detector, thresholds: Sequence[float], scores: Scores | None = None) -> None:
        super().__init__()
        self.detector, self.scores = detector, scores
        self.thresholds: Tensor
        self.register_buffer("thresholds", torch.tensor(thresholds, dtype=torch.float64), persistent=False)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        if targets is not None:
            return self.detector(images, targets)
        return [self._kept(found) for found in self.detector(images)]

    def _kept(self, found: Detections) -> Detections:
        kept = found.select(found.scores.double() >= self.thresholds[found.labels])
        if self.scores is None:
            return kept
        mapped = self.scores(kept.scores.double().cpu().numpy())
        return replace(kept, scores=torch.from_numpy(mapped).to(kept.scores))

    def extra_repr(self) -> str:
        low, high = (float(v) for v in self.thresholds.aminmax())
        return f"thresholds from {low:.3f} to {high:.3f}" + ", mapped scores" * (self.scores is not None)


def check_thresholds(calibration: Mapping[str, Any], num_classes: int, source: str) -> list[float]:
    """The thresholds in what a checkpoint holds of a calibration.

    Raises:
        ValueError: they are not one number in [0, 1] for each class.
    """
    values = calibration.get("thresholds")
    numbers = [float(v) for v in values if isinstance(v, float | int)] if isinstance(values, list) else []
    if not len(numbers) == num_classes == len(values or ()) or not all(0 <= v <= 1 for v in numbers):
        raise ValueError(f"{source}: its thresholds are not {num_classes} numbers in [0, 1]")
    return numbers
