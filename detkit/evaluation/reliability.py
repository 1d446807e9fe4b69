"""Scores as probabilities: how far they are from it, and two ways to bring them nearer.

Temperature: ``sigmoid(logit(s) / T)``, the T of the greatest likelihood (Guo, Pleiss, Sun, Weinberger, "On calibration
of modern neural networks", ICML 2017, section 4.2). Isotonic: the nearest function that never falls (Zadrozny, Elkan,
KDD 2002), found by pooling neighbours that violate it. What is predicted is whether a detection is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

Kind = Literal["temperature", "isotonic"]

#: Scores nearer to 0 or 1 count as so near: their logits are infinite.
_EDGE = 1e-6

#: Temperatures that are searched; beyond them all scores are one half, or 0 and 1.
_RANGE = (0.05, 20.0)

#: Points of an isotonic function that are kept.
_MOST_POINTS = 100


class ScoreMap(NamedTuple):
    """A function of scores that does not fall: linear between ``x`` (P,) and ``y`` (P,), both ascending."""

    kind: Kind
    x: np.ndarray
    y: np.ndarray
    temperature: float | None = None

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(N,) in [0, 1], of ``scores`` (N,)."""
        if self.temperature is not None:
            return _tempered(scores, self.temperature)
        return np.interp(scores, self.x, self.y)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "x": self.x.tolist(), "y": self.y.tolist(), "temperature": self.temperature}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ScoreMap:
        """From what :meth:`to_dict` gave.

        Raises:
            ValueError: it is none.
        """
        try:
            x, y = (np.asarray(state[name], np.float64) for name in ("x", "y"))
            return cls(state["kind"], x, y, state["temperature"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a map of scores: {error!r}") from error


def fit(kind: Kind, scores: np.ndarray, right: np.ndarray) -> ScoreMap:
    """The map that makes ``scores`` (N,) of detections the chance that they are ``right`` (N,).

    Raises:
        ValueError: there are none.
    """
    if not len(scores):
        raise ValueError("there are no detections to calibrate scores on")
    if kind == "temperature":
        return ScoreMap(kind, np.zeros(0), np.zeros(0), _temperature(scores, right))
    return ScoreMap(kind, *_isotonic(scores, right))


def crossed(kind: Kind, scores: np.ndarray, right: np.ndarray, images: np.ndarray, folds: int = 5) -> np.ndarray | None:
    """The mapped ``scores`` (N,), those of each fold of the images by a map that the other folds gave.

    A map is at its best where it was found: isotonic ones have next to no error there, whatever they are worth.

    Args:
        images: (N,) int64, of which image each detection is: those of one stay together.

    Returns:
        (N,); None where a fold would leave nothing to find a map on.
    """
    mapped, fold = np.zeros(len(scores)), images % folds
    for k in np.unique(fold):
        mine = fold == k
        if mine.all():
            return None
        mapped[mine] = fit(kind, scores[~mine], right[~mine])(scores[mine])
    return mapped


def expected_calibration_error(scores: np.ndarray, right: np.ndarray, num_bins: int = 15) -> float:
    """The mean over detections of |share that is right - mean score| in their bin of equally wide scores.

    Guo et al. 2017, equation 3, with their 15 bins.
    """
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    gap = np.bincount(bins, right, num_bins) - np.bincount(bins, scores, num_bins)
    return float(np.abs(gap[counts > 0]).sum() / len(scores))


def reliability(scores: np.ndarray, right: np.ndarray, num_bins: int = 15) -> list[tuple[float, float, int]]:
    """Mean score, share that is right and number of detections of each bin that has any."""
    bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
    return [
        (float(scores[bins == b].mean()), float(right[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins).tolist()
    ]


def _tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    inner = scores.clip(_EDGE, 1 - _EDGE)
    return 1 / (1 + np.exp(-np.log(inner / (1 - inner)) / temperature))


def _temperature(scores: np.ndarray, right: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        p = _tempered(scores, float(np.exp(log_temperature))).clip(_EDGE, 1 - _EDGE)
        return -float(np.mean(np.where(right, np.log(p), np.log(1 - p))))

    found: Any = minimize_scalar(loss, bounds=tuple(np.log(_RANGE)), method="bounded")
    return float(np.exp(found.x))


def _isotonic(scores: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pool adjacent violators; equal scores are one."""
    x, where = np.unique(scores, return_inverse=True)
    weight = np.bincount(where).astype(np.float64)
    blocks: list[list[float]] = []  # mean, weight, number of points
    for value, w in zip(np.bincount(where, right) / weight, weight, strict=True):
        blocks.append([float(value), float(w), 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [[(a * wa + b * wb) / (wa + wb), wa + wb, na + nb]]
    y = np.repeat([block[0] for block in blocks], [int(block[2]) for block in blocks])
    if len(x) > _MOST_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    return x, y
