"""When an object is of no known class: its best cosine is below what objects of that class reach.

The threshold of a class is a quantile of the best cosines of right detections that are nearest to it, taken so that it
holds for a finite number of them (split conformal prediction: Vovk, Gammerman, Shafer, "Algorithmic learning in a
random world", 2005): of n cosines the j-th smallest, j = floor(share (n + 1)). The next one like them is below it with
a probability of j / (n + 1) at most: of known objects no more than ``share`` are said to be unknown, in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class LeastCosines:
    """``values`` (K,): the threshold of each class; ``own`` (K,) bool: it is its own, not the one that all share.

    ``counts`` (K,): right detections that were nearest to each.
    """

    share: float
    values: np.ndarray
    own: np.ndarray
    counts: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        kept = {"thresholds": self.values.tolist(), "own": self.own.tolist(), "counts": self.counts.tolist()}
        return {"share": self.share, **kept}


def least_cosines(nearest: np.ndarray, best: np.ndarray, num_classes: int, share: float) -> LeastCosines:
    """From right detections: ``nearest`` (N,), the class of their best cosine, and ``best`` (N,), that cosine.

    A class of which too few are here gets the threshold of all together.

    Raises:
        ValueError: all together are too few.
    """
    together = _quantile(best, share)
    if together is None:
        raise ValueError(
            f"unknown={share:g} needs {least_detections(share)} right detections at least; here are {len(best)}"
        )
    each = [_quantile(best[nearest == k], share) for k in range(num_classes)]
    own = np.array([value is not None for value in each])
    values = np.array([together if value is None else value for value in each])
    return LeastCosines(share, values, own, np.bincount(nearest, minlength=num_classes))


def least_detections(share: float) -> int:
    """With fewer no cosine is known to be a rare one."""
    return math.ceil(round(1 / share - 1, 9))


def check_least_cosines(calibration: Mapping[str, Any] | None, num_classes: int, source: str) -> np.ndarray:
    """The thresholds (K,) in what a checkpoint holds of a calibration.

    Raises:
        ValueError: there are none, or they are not one cosine for each class.
    """
    stored = (calibration or {}).get("unknown")
    if stored is None:
        raise ValueError(
            f"{source}: it does not say which cosines are too low for a known class: "
            "calibrate it with unknown=0.05 and give the copy"
        )
    values = stored.get("thresholds") if isinstance(stored, Mapping) else None
    numbers = [float(v) for v in values if isinstance(v, float | int)] if isinstance(values, list) else []
    if not len(numbers) == num_classes == len(values or ()) or not all(-1.001 <= v <= 1.001 for v in numbers):
        raise ValueError(f"{source}: its least cosines are not {num_classes} numbers from -1 to 1")
    return np.array(numbers)


def _quantile(values: np.ndarray, share: float) -> float | None:
    j = math.floor(round(share * (len(values) + 1), 9))
    return float(np.sort(values)[j - 1]) if j >= 1 else None
