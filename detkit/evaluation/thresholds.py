"""A threshold for each class: its own where its images can prove one, or the one that the others share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkit.evaluation.errors import ImageErrors
from detkit.evaluation.risk_control import (
    ORDERING_SHARE,
    Judged,
    Risk,
    Tested,
    find_threshold,
    least_images,
)


@dataclass(frozen=True, slots=True)
class Aim:
    """What a threshold shall keep: ``risk`` at most ``level``, with probability 1 - ``delta``."""

    risk: Risk
    level: float
    delta: float

    @property
    def in_words(self) -> str:
        """What is promised, for a reader."""
        what = {
            "precision": f"precision of at least {1 - self.level:g}",
            "recall": f"recall of at least {1 - self.level:g}",
            "false_alarms": f"false alarms in at most {self.level:g} of the images",
        }
        return f"{what[self.risk]}, with probability {1 - self.delta:g}"


@dataclass(frozen=True, slots=True)
class ClassThreshold:
    """``threshold`` of the class ``name``, which is its ``own`` or the shared one; ``why`` it is that one.

    ``loss`` and ``num_images``: of the test that its own passed; nan and the images that there were, if none did.
    """

    name: str
    threshold: float
    own: bool
    why: str
    loss: float
    num_images: int


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a calibration found: a row for each class in label order, and the ``shared`` test (None if not needed)."""

    aim: Aim
    rows: tuple[ClassThreshold, ...]
    shared: Tested | None
    num_images: int

    @property
    def values(self) -> np.ndarray:
        """(K,) float64."""
        return np.array([row.threshold for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = [{key: _plain(value) for key, value in asdict(row).items()} for row in self.rows]
        shared = None if self.shared is None else {k: _plain(v) for k, v in asdict(self.shared).items()}
        return {"aim": asdict(self.aim), "classes": rows, "shared": shared, "num_images": self.num_images}


def judge(images: Iterable[ImageErrors]) -> Judged:
    """The detections of ``images``, those inside crowds left out, and their objects."""
    found, objects = [], []
    count = 0
    for i, image in enumerate(images):
        count += 1
        counted = ~image.inside_crowd
        wanted = ~image.truth.crowd
        by = np.append(image.scores, -np.inf)[image.found_by]
        found.append((np.full(counted.sum(), i), image.labels[counted], image.scores[counted], image.right[counted]))
        objects.append((np.full(wanted.sum(), i), image.truth.labels[wanted], by[wanted]))
    first = (np.concatenate(column) for column in zip(*found, strict=True))
    second = (np.concatenate(column) for column in zip(*objects, strict=True))
    return Judged(count, *first, *second)


def find_thresholds(judged: Judged, names: Sequence[str], aim: Aim, seed: int = 0) -> Thresholds:
    """A threshold for each of the K classes of ``names``.

    Each class is tested at ``aim.delta`` by itself: of many classes a few may miss the aim. A class whose images are
    too few to prove anything, or prove nothing, gets the threshold at which all classes together pass.

    Raises:
        ValueError: a class needs the shared threshold, and all classes together do not pass at any.
    """
    ordering = np.random.default_rng(seed).random(judged.num_images) < ORDERING_SHARE
    tests = [
        find_threshold(judged.of_classes(np.arange(len(names)) == k), aim.risk, aim.level, aim.delta, ordering)
        for k in range(len(names))
    ]
    shared = None
    if any(test.threshold is None for test in tests):
        shared = find_threshold(judged, aim.risk, aim.level, aim.delta, ordering)
        if shared.threshold is None:
            raise ValueError(_not_reached(judged, aim, shared, ordering))
    rows = [_row(name, test, shared, aim) for name, test in zip(names, tests, strict=True)]
    return Thresholds(aim, tuple(rows), shared, judged.num_images)


def _row(name: str, test: Tested, shared: Tested | None, aim: Aim) -> ClassThreshold:
    if test.threshold is not None:
        return ClassThreshold(name, test.threshold, True, "", test.loss, test.num_images)
    assert shared is not None
    assert shared.threshold is not None
    least = least_images(aim.level, aim.delta)
    why = f"{test.num_images} images, {least} at least are needed" if test.num_images < least else "not reached alone"
    return ClassThreshold(name, shared.threshold, False, why, test.loss, test.num_images)


def _not_reached(judged: Judged, aim: Aim, shared: Tested, ordering: np.ndarray) -> str:
    if not len(judged.scores):
        return (
            f"{aim.in_words}: the detector finds nothing in these {judged.num_images} images, so that there is no "
            "score to put a threshold at: train it longer, or let more through by its own score_threshold"
        )
    least = least_images(aim.level, aim.delta)
    if shared.num_images < least:
        return f"{aim.in_words}, needs {least} images at least; here are {shared.num_images}"
    for level in (np.arange(1, 100) / 100).tolist():
        if level > aim.level and find_threshold(judged, aim.risk, level, aim.delta, ordering).threshold is not None:
            best = level if aim.risk == "false_alarms" else 1 - level
            return f"{aim.in_words}, is not shown at any threshold; target.{aim.risk}={best:.2g} is: ask for that"
    return f"{aim.in_words}, is not shown at any threshold, nor is any other target: train longer, or on more images"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
