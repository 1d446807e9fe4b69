"""Whether an exported file says what the detector says, on images: boxes, scores, AP and speed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from detkit.matching import Selector
from detkit.models import Detector
from detkit.models.calibrated import Calibrated
from detkit.models.export.resize import Resized
from detkit.models.mtcnn.cascade import CascadeSettings
from detkit.structures import Batch, Detections, Images, Target

#: What may differ: px, and score.
MOST_PX, MOST_SCORE = 0.01, 1e-4

#: What AP of the whole split may differ by: equal scores may stand in another order.
MOST_AP = 1e-3

#: Detections that are to be compared, and the most images that are looked at to find as many.
LEAST_COMPARED, MOST_IMAGES = 10, 200


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a number of images the largest differences of boxes (px) and scores between ``num_detections`` that belong
    together, those ``alone`` in words, and the seconds that all took here and there."""

    num_images: int
    num_detections: int
    px: float
    score: float
    alone: tuple[str, ...]
    seconds: tuple[float, float]

    def __str__(self) -> str:
        here, there = (self.num_images / s for s in self.seconds)
        return (
            f"{self.num_images} images, {self.num_detections} detections: boxes differ by {self.px:.2g} px at most, "
            f"scores by {self.score:.2g}; {here:.2f} images per second here, {there:.2f} by the file"
        )


def agreement(
    detector: nn.Module, exported: nn.Module, batches: Iterable[Batch], num_images: int, divisor: int,
    edges: Sequence[Sequence[float]], most: int | None = None,
) -> Agreement:  # fmt: skip
    """Both detectors on the first images of ``batches``, one by one.

    Args:
        num_images: least number of them; more are looked at, up to MOST_IMAGES, until LEAST_COMPARED detections were
            compared.
        divisor: px, to which the loader pads.
        edges, most: the least scores and the most detections that come out of them, see :func:`partners`.
    """
    px, score, count, seconds, alone, seen = 0.0, 0.0, 0, [0.0, 0.0], [], 0
    for image in (one for batch in batches for one in _singles(batch.images, divisor)):
        seen += 1
        found = []
        for i, each in enumerate((detector, exported)):
            start = time.perf_counter()
            with torch.no_grad():
                found.append(each(image)[0])
            seconds[i] += time.perf_counter() - start
        here, there = found
        pairs, left = partners(here, there, edges, most)
        alone += [f"{image.meta[0].file}: {words}" for words in left]
        count += len(pairs)
        if len(pairs):
            one, two = here.select(pairs[:, 0]), there.select(pairs[:, 1])
            px = max(px, float((_places(one) - _places(two)).abs().max()))
            score = max(score, float((one.scores - two.scores).abs().max()))
        if seen >= num_images and (alone or count >= LEAST_COMPARED or seen >= MOST_IMAGES):
            break
    return Agreement(seen, count, px, score, tuple(alone), (max(seconds[0], 1e-9), max(seconds[1], 1e-9)))


def partners(
    here: Detections, there: Detections, edges: Sequence[Sequence[float]] = (), most: int | None = None
) -> tuple[torch.Tensor, list[str]]:
    """The pairs (P, 2) of detections that agree within MOST_PX and MOST_SCORE, and in words those without a partner.

    Landmarks count like corners.

    Equal scores may stand in another order. What scores as the last where both sides are full, or as one of the
    ``edges``, may be on one side alone: rounding decides there.

    Args:
        edges: each with one score of every class, below which nothing of it comes out.
        most: detections with which a side is full; None where that is not known, and sides of as many are taken as it.
    """
    one, two = _places(here), _places(there)
    px = (one[:, None] - two[None]).abs().amax(dim=2)
    score = (here.scores[:, None] - there.scores[None]).abs()
    fit = (px <= MOST_PX) & (score <= MOST_SCORE) & (here.labels[:, None] == there.labels[None])
    pairs, free = [], fit.clone()
    for i in range(len(here)):
        if free[i].any():
            j = int(torch.where(free[i], px[i], torch.inf).argmin())
            pairs.append((i, j))
            free[:, j] = False
    full = len(here) == len(there) and most in (None, len(here))
    last = [float(d.scores.min()) for d in (here, there) if full and len(d)]
    left = []
    for side, found, taken in (("here", here, {i for i, _ in pairs}), ("in the file", there, {j for _, j in pairs})):
        for i in set(range(len(found))) - taken:
            value, label = float(found.scores[i]), int(found.labels[i])
            if all(abs(value - edge) > MOST_SCORE for edge in (*last, *(of_class[label] for of_class in edges))):
                box = [round(v, 2) for v in found.boxes[i].tolist()]
                left.append(f"only {side}: class {label}, score {value:.5f}, box {box}")
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), left


def _places(found: Detections) -> torch.Tensor:
    """(D, 4 + 2 L) px: corners, and landmarks where there are any."""
    points = [] if found.landmarks is None else [found.landmarks.flatten(1)]
    return torch.cat([found.boxes, *points], dim=1)


def _singles(images: Images, divisor: int) -> Iterator[Images]:
    """Each of ``images`` as a batch of its own."""
    for i, meta in enumerate(images.meta):
        h, w = meta.size
        whole = images.pixels[i : i + 1, :, :h, :w]
        yield Images(F.pad(whole, (0, -w % divisor, 0, -h % divisor)), (replace(meta),))


class OneByOne(Detector):
    """``detector`` asked of each image of a batch alone, as a file is: both see the same padding.

    Args:
        divisor: px, to which an image is padded.
    """

    def __init__(self, detector: nn.Module, divisor: int) -> None:
        super().__init__()
        self.detector, self.divisor = detector, divisor

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> list[Detections]:
        assert targets is None, "it is only asked what it finds"
        return [self.detector(one)[0] for one in _singles(images, self.divisor)]


class ResizedDetector(Detector):
    """``detector`` behind ``resized``: what a program that resizes is held against, image by image.

    Its images are the originals, as they are the program's, whatever they were before they came to it.

    Args:
        divisor: px, to which the loader pads.
    """

    def __init__(self, detector: Detector, resized: Resized, divisor: int) -> None:
        super().__init__()
        self.detector, self.resized, self.divisor = detector, resized, divisor

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> list[Detections]:
        assert targets is None, "it is only asked what it finds"
        h, w = self.resized.before
        pixels = self.resized(images.pixels[:, :, :h, :w]).to(images.pixels.dtype)
        size = self.resized.after
        padded = F.pad(pixels, (0, -size[1] % self.divisor, 0, -size[0] % self.divisor))
        metas = tuple(replace(m, size=size, affine=self.resized.affine) for m in images.meta)
        found = self.detector(Images(padded, metas))
        return [replace(d, boxes=self.resized.back(d.boxes), landmarks=self._back(d.landmarks)) for d in found]

    def _back(self, points: torch.Tensor | None) -> torch.Tensor | None:
        return None if points is None else self.resized.back_points(points)


def least_score(detector: nn.Module) -> float:
    """The least score that comes out of a detector: its selectors' thresholds, and that of a cascade's last stage."""
    parts = [vars(m) for m in detector.modules()]
    selectors = [p["selector"].score_threshold for p in parts if isinstance(p.get("selector"), Selector)]
    last = [p["cascade"].thresholds[-1] for p in parts if isinstance(p.get("cascade"), CascadeSettings)]
    return max((*selectors, *last), default=0.0)


def most_detections(detector: nn.Module) -> int | None:
    """How many detections of an image come out at most; None where no part of the detector says so."""
    parts = [vars(m) for m in detector.modules()]
    cutters = [p[key] for p in parts for key in ("selector", "cascade") if key in p]
    return min((c.max_detections for c in cutters if isinstance(c, (Selector, CascadeSettings))), default=None)


def edges_of(detector: nn.Module, num_classes: int) -> list[list[float]]:
    """For :func:`partners`: the least scores of each class, as they come out.

    Those of a calibrated detector are scores of its own detections, of the very images that it may be checked with.
    """
    edges = [[least_score(detector)] * num_classes]
    calibrated = next((m for m in detector.modules() if isinstance(m, Calibrated)), None)
    if calibrated is None:
        return edges
    edges.append(calibrated.thresholds.tolist())
    return edges if calibrated.scores is None else [calibrated.scores(np.array(edge)).tolist() for edge in edges]
