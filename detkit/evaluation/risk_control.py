"""Thresholds that keep a promise: a risk stays below a level, with a probability chosen beforehand, for finite samples.

Learn then test (Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then test", 2021). For a threshold t an image has a
loss in [0, 1]; that its mean R(t) exceeds the level is the null hypothesis, and the Hoeffding-Bentkus inequality
(Bates et al., "Distribution-free, risk-controlling prediction sets", J. ACM 2021, section 3.1) gives its p-value from n
images. Thresholds are tested in an order that the tested images have no say in, each at delta, up to the first that
fails (fixed-sequence testing): with probability 1 - delta over the draw of the images none that passed is wrong. Images
must be independent and as those to come; nothing is asked of the detections within an image.

Three risks:

- "precision": the share of wrong ones among an image's detections, over images that have any. It may rise or fall with
  t, so a part of the images, which is not tested, finds the order (split fixed-sequence testing).
- "recall": the share of an image's objects that no detection from t on finds, over images that have any. It can only
  rise with t: from the lowest threshold up, on all images.
- "false_alarms": whether an image has a wrong detection. It can only fall with t: from the highest down, on all images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Risk = Literal["precision", "recall", "false_alarms"]

#: Thresholds that are tried, at most: quantiles of the scores.
MOST_THRESHOLDS = 200

#: Share of the images that find the order in which precision's thresholds are tested.
ORDERING_SHARE = 0.3


class Judged(NamedTuple):
    """Detections of I images, and the objects there.

    ``images`` (D,) in [0, I), ``labels`` and ``scores`` (D,), ``right`` (D,) bool: found an object of its class; none
    lies inside a crowd. ``object_images`` and ``object_labels`` (G,); ``object_scores`` (G,): of the detection that
    found each, -inf where none did.
    """

    num_images: int
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray
    object_scores: np.ndarray

    def of_classes(self, wanted: np.ndarray) -> Judged:
        """Only what is of the classes that ``wanted`` (K,) bool names; the images stay."""
        mine, objects = wanted[self.labels], wanted[self.object_labels]
        return self._kept(mine, objects, self.images, self.object_images, self.num_images)

    def of_images(self, wanted: np.ndarray) -> Judged:
        """Only the images that ``wanted`` (I,) bool names."""
        number = np.cumsum(wanted) - 1
        mine, objects = wanted[self.images], wanted[self.object_images]
        return self._kept(mine, objects, number[self.images], number[self.object_images], int(wanted.sum()))

    def _kept(
        self, mine: np.ndarray, objects: np.ndarray, images: np.ndarray, object_images: np.ndarray, num_images: int
    ) -> Judged:
        return Judged(
            num_images, images[mine], self.labels[mine], self.scores[mine], self.right[mine],
            object_images[objects], self.object_labels[objects], self.object_scores[objects],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tested:
    """The threshold that was found, None for none; and of it the mean loss, over how many images, and the p-value.

    ``num_images``: where none was found, those that there were to test.
    """

    threshold: float | None
    loss: float
    num_images: int
    p: float


def image_losses(judged: Judged, risk: Risk, threshold: float) -> np.ndarray:
    """(n,): the loss of each of the n images that the risk is about, with detections from ``threshold`` on."""
    shown = judged.scores >= threshold
    wrong = np.bincount(judged.images[shown & ~judged.right], minlength=judged.num_images)
    if risk == "false_alarms":
        return (wrong > 0).astype(np.float64)
    if risk == "precision":
        part, whole = wrong, np.bincount(judged.images[shown], minlength=judged.num_images)
    else:
        missed = judged.object_images[judged.object_scores < threshold]
        part = np.bincount(missed, minlength=judged.num_images)
        whole = np.bincount(judged.object_images, minlength=judged.num_images)
    return part[whole > 0] / whole[whole > 0]


def p_value(losses: np.ndarray, level: float) -> float:
    """Hoeffding-Bentkus: how likely a mean as low as that of ``losses`` (n,) in [0, 1] is, if the risk is above it."""
    from scipy.special import bdtr

    count = len(losses)
    if count == 0:
        return 1.0
    mean = float(np.mean(losses))
    low = min(mean, level)
    entropy = _term(low, level) + _term(1 - low, 1 - level)
    bentkus = math.e * float(bdtr(math.ceil(count * mean - 1e-9), count, level))
    return min(1.0, math.exp(-count * entropy), bentkus)


def least_images(level: float, delta: float) -> int:
    """With fewer images even losses of 0 prove nothing."""
    return math.ceil(math.log(delta) / math.log(1 - level))


def find_threshold(judged: Judged, risk: Risk, level: float, delta: float, ordering: np.ndarray) -> Tested:
    """The threshold that shows most (for recall: least) of those at which the risk is at most ``level``, surely.

    Args:
        level: of the risk; 0.1 for a precision or recall of 0.9.
        delta: the probability, over draws of the images, that the risk is above it nevertheless.
        ordering: (I,) bool, the images that find the order for "precision"; they are not tested.
    """
    tested = judged
    if risk == "precision":
        candidates = _from_the_best_down(judged.of_images(ordering), level, (~ordering).sum() / max(1, ordering.sum()))
        tested = judged.of_images(~ordering)
    elif risk == "recall":
        candidates = _quantiles(judged.object_scores[np.isfinite(judged.object_scores)])
    else:
        candidates = _quantiles(judged.scores)[::-1]
    best = Tested(None, math.nan, _most_images(tested, risk), 1.0)
    for threshold in candidates.tolist():
        losses = image_losses(tested, risk, threshold)
        p = p_value(losses, level)
        if p > delta:
            break
        best = Tested(threshold, float(losses.mean()), len(losses), p)
    return best


def _from_the_best_down(judged: Judged, level: float, ratio: float) -> np.ndarray:
    """Thresholds from that of the strongest evidence down, if there were ``ratio`` times as many images."""
    candidates = _quantiles(judged.scores)[::-1]
    if not len(candidates):
        return candidates
    evidence = []
    for threshold in candidates.tolist():
        losses = image_losses(judged, "precision", threshold)
        low = min(float(losses.mean()), level)
        evidence.append(ratio * len(losses) * (_term(low, level) + _term(1 - low, 1 - level)))
    return candidates[int(np.argmax(evidence)) :]


def _quantiles(scores: np.ndarray) -> np.ndarray:
    """Some of ``scores``, ascending."""
    values = np.unique(scores)
    if len(values) <= MOST_THRESHOLDS:
        return values
    return values[np.linspace(0, len(values) - 1, MOST_THRESHOLDS).round().astype(int)]


def _most_images(judged: Judged, risk: Risk) -> int:
    """How many images the risk can be about."""
    if risk == "false_alarms":
        return judged.num_images
    return len(np.unique(judged.images if risk == "precision" else judged.object_images))


def _term(a: float, b: float) -> float:
    return 0.0 if a == 0 else a * math.log(a / b)
