"""What a detector found in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detkit.structures.affine import Affine
from detkit.structures.columns import check_landmarks, each_field, joined
from detkit.utils.precision import widened


@dataclass(frozen=True, slots=True)
class Detections:
    """D detections of one image, the highest score first.

    ``boxes`` (D, 4) float32 x1 y1 x2 y2 px; of the network input as a detector returns them, of the original image
    after evaluation mapped them back. ``scores`` (D,) float32 in [0, 1]; ``labels`` (D,) int64 in [0, K).
    ``landmarks``, of a detector that finds them, (D, L, 2) float32 x y px in the frame of the boxes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    landmarks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (D, 4), not {tuple(self.boxes.shape)}")
        n = self.boxes.shape[0]
        if self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"{n} boxes but scores {tuple(self.scores.shape)} and labels {tuple(self.labels.shape)}")
        check_landmarks(self.landmarks, n, 2, "boxes")

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def select(self, index: Tensor) -> Detections:
        """The detections that ``index`` (a bool mask or integers) names, in that order."""
        return each_field(self, lambda column: column[index])

    def to(self, device: torch.device | str) -> Detections:
        """A copy on ``device``."""
        return each_field(self, lambda column: column.to(device))

    def undone(self, there: Affine, mirror: Sequence[int] = ()) -> Detections:
        """The detections as they were in the image from which ``there`` leads to theirs; in float32 at least.

        Args:
            mirror: (L,) which point each landmark is in a mirror image (see :class:`~detkit.structures.Categories`).
                Without it nobody knows the points of a mirror image by name, and they are left out.
        """
        landmarks = self.landmarks
        if landmarks is not None and there.mirrors:
            landmarks = landmarks[:, list(mirror)] if len(mirror) == landmarks.shape[1] else None
        if landmarks is not None:
            landmarks = there.undo_points(landmarks)
        return replace(self, boxes=there.undo(self.boxes), scores=widened(self.scores), landmarks=landmarks)

    @staticmethod
    def join(parts: Sequence[Detections]) -> Detections:
        """The detections of all ``parts``, one or more, one part after the other."""
        return joined(parts)
