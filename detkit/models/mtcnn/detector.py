"""MTCNN (Zhang, Zhang, Li, Qiao, IEEE Signal Processing Letters 2016) as a detector of its own.

P-Net looks at every 12 px window of an image pyramid, R-Net at what it lets through, O-Net at what R-Net lets through.
The first two only know objects from background; O-Net knows the classes. With one class this is the paper's.

Departures: P-Net and R-Net of several classes are of all of them together; landmarks are learnt by O-Net alone, the one
whose answers are used, as in the published weights; all three networks learn at once unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Le
from torch import Tensor

from detkit.config import DETECTORS, Count, Share, Whole
from detkit.models.interfaces import AnsweringDetector, Detector, References, Wording
from detkit.models.mtcnn import samples
from detkit.models.mtcnn.cascade import CascadeSettings, run_cascade
from detkit.models.mtcnn.coverage import WORDING, other_settings, why_no_window, window_references
from detkit.models.mtcnn.nets import ONet, PNet, RNet
from detkit.models.mtcnn.training import TrainingSettings, cascade_losses
from detkit.structures import Detections, Images, Losses, Target
from detkit.structures.boxes import clip, paired_iou

Stage = Literal["pnet", "rnet", "onet"]


@DETECTORS
class MTCNN(Detector, AnsweringDetector):
    """A cascade of three small networks on an image pyramid, for small objects and small computers.

    Args:
        num_classes: K (run time).
        min_size: px of the network input; smaller objects are not looked for.
        factor: from one scale of the pyramid to the next.
        thresholds: of the three stages. P-Net's windows go on from the first one, those of the others above theirs;
            evaluations with a lower last one see more of the curve.
        scale_nms_iou: of NMS among the windows of one scale.
        nms_iou: of NMS among the windows of all scales, and after R-Net.
        last_nms_share: of NMS after O-Net: of two boxes of a class that share more of the smaller one's area the better
            stays.
        max_candidates: of an image at most so many boxes go on to the next stage, the best; null for all.
        max_detections: at most so many in an image, the best.
        num_landmarks: points that O-Net gives with each box; as many as the data have, 5 for the published weights.
        stages: the networks that are trained; the others stay as they are. To train them in turn, train pnet, then rnet
            with init_from=that run, then onet.
        samples_per_image: crops of each image for each stage: at most three fifths negatives (IoU below 0.3), a fifth
            parts (0.4 to 0.65), a fifth positives (above 0.65); and for O-Net's landmarks two fifths of it more.
        hard_share: which share of the crops, the hardest, enters the classification loss; 1 for all. Each of several
            processes takes the hardest of its own images.
        box_weight: of the box term; classification has 1.
        landmark_weight: of O-Net's landmark term; 0 leaves the layer that finds them as it is.
        match_squares: count a crop's overlap with an object's square in place of its box, so that long objects have
            positives too.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        min_size: Annotated[float, Gt(0)] = 20.0,
        factor: Annotated[float, Gt(0)] = 0.709,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        scale_nms_iou: Share = 0.5,
        nms_iou: Share = 0.7,
        last_nms_share: Share = 0.7,
        max_candidates: Count | None = None,
        max_detections: Count = 100,
        num_landmarks: Whole = 0,
        stages: tuple[Stage, ...] = ("pnet", "rnet", "onet"),
        samples_per_image: Annotated[int, Gt(4)] = 60,
        hard_share: Annotated[float, Gt(0), Le(1)] = 0.7,
        box_weight: float = 0.5,
        landmark_weight: Annotated[float, Ge(0)] = 1.0,
        match_squares: bool = False,
    ) -> None:
        super().__init__()
        if not factor < 1:
            raise ValueError(f"factor must be below 1, not {factor}")
        if not all(0 <= t <= 1 for t in thresholds):
            raise ValueError(f"thresholds must lie in [0, 1], not {list(thresholds)}")
        if not stages or len(set(stages)) < len(stages):
            raise ValueError(f"stages must name one or more of pnet, rnet, onet, each once, not {list(stages)}")
        self.cascade = CascadeSettings(
            min_size, factor, thresholds, scale_nms_iou, nms_iou, last_nms_share, max_candidates, max_detections
        )
        self.training_settings = TrainingSettings(
            stages, samples_per_image, hard_share, box_weight, landmark_weight, match_squares
        )
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet(num_classes, num_landmarks)
        for name in {"pnet", "rnet", "onet"} - set(stages):
            getattr(self, name).requires_grad_(False)
        self.num_landmarks = num_landmarks
        if self.onet.dense6_3 is not None and not landmark_weight:
            self.onet.dense6_3.requires_grad_(False)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        nets = (self.pnet, self.rnet, self.onet)
        if targets is not None:
            if self.num_landmarks:
                _check_landmarks(targets, images, self.num_landmarks)
            pixels = [_unpadded(images, i) for i in range(len(images))]
            return cascade_losses(nets, pixels, images, targets, self.training_settings, self.cascade)
        return [self._found(images, i) for i in range(len(images))]

    def _found(self, images: Images, i: int) -> Detections:
        found = run_cascade((self.pnet, self.rnet, self.onet), _unpadded(images, i), self.cascade)
        return replace(found, boxes=clip(found.boxes, images.sizes[i]))

    @property
    def wording(self) -> Wording:
        return WORDING

    def references(self, images: Images, targets: Sequence[Target]) -> list[References]:
        """Windows of P-Net, see :mod:`detkit.models.mtcnn.coverage`."""
        squares = self.training_settings.as_squares
        pairs = zip(targets, images.sizes, strict=True)
        return [window_references(target, size, self.cascade, squares) for target, size in pairs]

    def level_value(self, level: int) -> float:
        """What 12 px of the pyramid's scale ``level`` are in px of the network input."""
        return round(self.cascade.min_size / self.cascade.factor**level, 1)

    def overlaps(self, boxes: Tensor, objects: Tensor) -> Tensor:
        return paired_iou(boxes, samples.counted(objects, self.training_settings.as_squares))

    def why_none(self, box: Sequence[float], size: tuple[int, int]) -> str:
        return why_no_window(box, size, self.cascade, self.training_settings.as_squares)

    def misfit(self, sides: np.ndarray, long_side: float) -> str:
        least = self.cascade.min_size
        if least <= long_side:
            return ""
        return f"every window (from {least:g} px) is larger than the image of {long_side:g} px: model.min_size"

    def alternatives(self, boxes: Tensor) -> Iterator[tuple[Mapping[str, Any], str]]:
        return other_settings(boxes, self.cascade, self.training_settings.as_squares)


def _check_landmarks(targets: Sequence[Target], images: Images, num: int) -> None:
    for target, meta in zip(targets, images.meta, strict=True):
        if target.landmarks is not None and target.landmarks.shape[1] != num:
            raise ValueError(
                f"{meta.file}: its objects have {target.landmarks.shape[1]} landmarks, and model.num_landmarks is {num}"
            )


def _unpadded(images: Images, i: int) -> Tensor:
    """(3, h, w) float32."""
    h, w = images.sizes[i]
    return images.pixels[i, :, :h, :w].float()
