"""A whole detector as one program: uint8 pixels in, boxes, scores and labels of a fixed number out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.matching.fixed import ABSENT, Marked, best_rows
from detkit.models.calibrated import Calibrated
from detkit.models.detector import ComposedDetector
from detkit.models.export import cascade as cascade
from detkit.models.export import dense as dense
from detkit.models.export import flow as flow
from detkit.models.export import stages as stages
from detkit.models.export.form import NoFormError, View, found_by, has_form
from detkit.models.export.resize import Resized
from detkit.models.interfaces import Detector


class Found(NamedTuple):
    """For B images D rows each, best first: ``boxes`` (B, D, 4) px of the input, ``scores`` (B, D), ``labels`` (B, D)
    int64, and ``landmarks`` (B, D, L, 2) px of a detector that finds them. Rows without a detection have the label -1,
    the score 0, and zeros for box and points."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    landmarks: Tensor | None = None


class Program(nn.Module):
    """A detector for a batch of whole images of one size.

    Args:
        detector: composed of backbone, neck and head; or another that has a form of its own, from pixels.
        size_divisor: px; inside the program images are padded to its multiples, as the loader does.
        thresholds: (K,) of the classes, None for none.
        channels_last: images are (B, H, W, 3), as files are read; else (B, 3, H, W).
        resized: what images go through first; boxes come out in px of the images before it.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        size_divisor: int = 32,
        thresholds: Tensor | None = None,
        channels_last: bool = False,
        resized: Resized | None = None,
    ) -> None:
        super().__init__()
        self.detector, self.size_divisor, self.channels_last = detector, size_divisor, channels_last
        self.resized = resized
        self.thresholds: Tensor | None
        self.register_buffer("thresholds", thresholds, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """:class:`Found` for ``images`` uint8 RGB, as a plain tuple of those that there are."""
        pixels = images.permute(0, 3, 1, 2) if self.channels_last else images
        pixels = pixels if self.resized is None else self.resized(pixels)
        found = self._found(pixels.float(), (pixels.shape[2], pixels.shape[3]))
        found = found if self.thresholds is None else self._enough(found, self.thresholds)
        boxes, points = found.boxes, found.landmarks
        if self.resized is not None:
            boxes = self.resized.back(boxes)
            points = None if points is None else self.resized.back_points(points)
        return (boxes, found.scores, found.labels, *(() if points is None else (points,)))

    def _found(self, pixels: Tensor, size: tuple[int, int]) -> Marked:
        detector = self.detector
        scale = None if self.resized is None else self.resized.affine.scale
        if not isinstance(detector, ComposedDetector):
            return found_by(detector, [pixels], View(size, scale=scale))
        x = (pixels - detector.pixel_mean) / detector.pixel_std
        bottom, right = (-side % self.size_divisor for side in size)
        features = detector.neck(F.pad(x, (0, right, 0, bottom)), detector.backbone)
        return found_by(detector.head, features, View(size, num_branches=detector.backbone.num_branches, scale=scale))

    def _enough(self, found: Marked, thresholds: Tensor) -> Marked:
        least = thresholds[found.labels.clamp(min=0)]
        enough = (found.scores.double() >= least) & (found.labels >= 0)
        scores = torch.where(enough, found.scores, ABSENT)
        return best_rows(found._replace(scores=scores), scores.shape[1])

    def of(self, images: Tensor) -> list[Found]:
        """What is found in each image, without the empty rows."""
        return [Found(*(column[one[2] >= 0] for column in one)) for one in zip(*self(images), strict=True)]


def made_program(
    detector: Detector, *, size_divisor: int, channels_last: bool = False, resized: Resized | None = None
) -> Program:
    """The program of ``detector``, in eval mode.

    Raises:
        NoFormError: it is of a kind that no export form says; the message names the part.
    """
    thresholds = None
    if isinstance(detector, Calibrated):
        if detector.scores is not None:
            raise NoFormError(
                "the checkpoint's calibration maps scores (scores=isotonic or temperature), which no export form says: "
                "calibrate with scores=null"
            )
        thresholds, detector = detector.thresholds, detector.detector
    if not isinstance(detector, ComposedDetector) and not has_form(detector):
        raise NoFormError(
            f"model: {type(detector).__name__} is no detector of backbone, neck and head: it has no export form"
        )
    program = Program(
        detector, size_divisor=size_divisor, thresholds=thresholds, channels_last=channels_last, resized=resized
    )
    return program.eval()
