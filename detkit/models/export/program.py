"""A whole detector as one program: uint8 pixels in, boxes, scores and labels of a fixed number out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.matching.fixed import ABSENT, Marked, best_rows
from detkit.models.calibrated import Calibrated
from detkit.models.detector import ComposedDetector
from detkit.models.export import dense as dense
from detkit.models.export import flow as flow
from detkit.models.export import stages as stages
from detkit.models.export.form import NoFormError, View, found_by
from detkit.models.export.resize import Resized
from detkit.models.interfaces import Detector


class Found(NamedTuple):
    """For B images D rows each, best first: ``boxes`` (B, D, 4) px of the input, ``scores`` (B, D), ``labels`` (B, D)
    int64. Rows without a detection have the label -1, the score 0 and a box of zeros."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Program(nn.Module):
    """A detector for a batch of whole images of one size.

    Args:
        detector: composed of backbone, neck and head.
        size_divisor: px; inside the program images are padded to its multiples, as the loader does.
        thresholds: (K,) of the classes, None for none.
        channels_last: images are (B, H, W, 3), as files are read; else (B, 3, H, W).
        resized: what images go through first; boxes come out in px of the images before it.
    """

    def __init__(
        self,
        detector: ComposedDetector,
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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """:class:`Found` for ``images`` uint8 RGB, as a plain tuple."""
        pixels = images.permute(0, 3, 1, 2) if self.channels_last else images
        pixels = pixels if self.resized is None else self.resized(pixels)
        size = (pixels.shape[2], pixels.shape[3])
        detector = self.detector
        x = (pixels.float() - detector.pixel_mean) / detector.pixel_std
        bottom, right = (-side % self.size_divisor for side in size)
        features = detector.neck(F.pad(x, (0, right, 0, bottom)), detector.backbone)
        found = found_by(detector.head, features, View(size))
        found = found if self.thresholds is None else self._enough(found, self.thresholds)
        boxes = found.boxes if self.resized is None else self.resized.back(found.boxes)
        return boxes, found.scores, found.labels

    def _enough(self, found: Marked, thresholds: Tensor) -> Marked:
        least = thresholds[found.labels.clamp(min=0)]
        enough = (found.scores.double() >= least) & (found.labels >= 0)
        scores = torch.where(enough, found.scores, ABSENT)
        return best_rows(found._replace(scores=scores), scores.shape[1])

    def of(self, images: Tensor) -> list[Found]:
        """What is found in each image, without the empty rows."""
        boxes, scores, labels = self(images)
        return [Found(b[n >= 0], s[n >= 0], n[n >= 0]) for b, s, n in zip(boxes, scores, labels, strict=True)]


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
    if not isinstance(detector, ComposedDetector):
        raise NoFormError(
            f"model: {type(detector).__name__} is no detector of backbone, neck and head: it has no export form"
        )
    program = Program(
        detector, size_divisor=size_divisor, thresholds=thresholds, channels_last=channels_last, resized=resized
    )
    return program.eval()
