"""YOLOv1 (Redmon et al., "You only look once", CVPR 2016): a grid of cells, each with B boxes and one set of classes.

Section 2: the image is an S x S grid. Cell i predicts B boxes (x, y, w, h, confidence) and K conditional class
probabilities: x and y are the centre inside the cell, in cells; w and h are fractions of the image, of which the
network predicts the square roots; all outputs are linear. An object belongs to the cell in which its centre lies; of
that cell's predictors the one with the larger current IoU is responsible (indicator obj_ij). Equation 3, per image:

      lambda_coord sum_i sum_j obj_ij   ((x - x')^2 + (y - y')^2)                       term "xy"
    + lambda_coord sum_i sum_j obj_ij   ((sqrt w - sqrt w')^2 + (sqrt h - sqrt h')^2)   term "wh"
    +              sum_i sum_j obj_ij   (C - C')^2                                      term "obj"
    + lambda_noobj sum_i sum_j noobj_ij (C - C')^2                                      term "noobj"
    +              sum_i obj_i sum_c    (p(c) - p'(c))^2                                term "cls"

with C the IoU of the predicted box and the object (a constant for the gradient), and 0 without one. Section 2, equation
1: the score of class c is p(c) C.

Departures: the loss is a mean over images. A predicted root may be negative; the box has its square. Where no predictor
meets the object, the one whose x, y and roots are nearest is responsible. The paper says nothing of two centres in one
cell: here the larger object has it, and the number of objects that find no cell is logged as "num_collided". Cells in
the padding and in crowds take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import HEADS, Count, Whole
from detkit.losses.checks import non_negative
from detkit.matching import Assignment, Selector, found_in_range, top_candidates
from detkit.matching.assigners import IGNORED
from detkit.models.heads.common import matched_objects, mean_count
from detkit.models.heads.dense import CellMasks, DenseHead, cells_inside
from detkit.models.heads.grid import assign_centres, cell_corners, targets_in_range
from detkit.models.interfaces import AssigningHead
from detkit.models.layers import LEAK, ConvTower
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target
from detkit.structures.boxes import cxcywh_to_xyxy, paired_iou, xyxy_to_cxcywh
from detkit.utils.transfer import constant


class RawGrid(NamedTuple):
    """For N images ``boxes`` (N, S_h, S_w, B, 5), the paper's B a cell: x, y in it, roots of w and h, confidence; and
    ``classes`` (N, S_h, S_w, K)."""

    boxes: Tensor
    classes: Tensor


@HEADS
class YOLOv1Head(DenseHead, AssigningHead):
    """A grid of cells that each predict ``num_boxes`` boxes and one class distribution.

    Args:
        selector: its part.
        level: the map it reads, counted from 0 for the finest; -1 is the coarsest.
        num_boxes: B, predictors per cell.
        hidden: width of the paper's fully connected layer, 4096; null predicts by convolution, for maps of any size.
        grid_size: (S_h, S_w) that the fully connected layers are made for; needed with ``hidden``.
        dropout: after the first fully connected layer, section 2.2.
        num_convs: 3x3 convolutions before the predictions of the convolutional form; null for 1, with ``hidden`` none.
        lambda_coord, lambda_noobj: factors of equation 3.
        num_before_nms: the best (box, class) pairs that enter NMS.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        selector: Selector,
        level: int = -1,
        num_boxes: Count = 2,
        hidden: Count | None = None,
        grid_size: tuple[Count, Count] | None = None,
        dropout: float = 0.5,
        num_convs: Whole | None = None,
        lambda_coord: float = 5.0,
        lambda_noobj: float = 0.5,
        num_before_nms: Count = 1000,
    ) -> None:
        super().__init__()
        self.levels = self.reads = in_spec.which(level, "level")
        in_spec = in_spec.select(self.levels)
        if (hidden is None) != (grid_size is None):
            raise ValueError("hidden and grid_size go together: fully connected layers are made for one grid")
        if hidden is not None and num_convs is not None:
            raise ValueError("num_convs is for the convolutional form, hidden for the fully connected one: not both")
        num_convs = 1 if num_convs is None and hidden is None else num_convs or 0
        self.strides, self.num_classes, self.num_boxes = in_spec.strides, num_classes, num_boxes
        self.grid_size = grid_size
        self.lambda_coord = non_negative("lambda_coord", lambda_coord)
        self.lambda_noobj = non_negative("lambda_noobj", lambda_noobj)
        self.num_before_nms, self.selector = num_before_nms, selector
        channels, num_outputs = in_spec.channels[0], num_boxes * 5 + num_classes
        self.tower = ConvTower(channels, channels, num_convs)
        if hidden is None or grid_size is None:
            conv = nn.Conv2d(self.tower.out_channels, num_outputs, 1)
            nn.init.normal_(conv.weight, std=0.01)  # squared errors: start from small answers
            nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
            self.predict_cells: nn.Module = conv
        else:
            cells = grid_size[0] * grid_size[1]
            self.predict_cells = nn.Sequential(
                nn.Flatten(),
                nn.Linear(channels * cells, hidden),
                nn.LeakyReLU(LEAK),
                nn.Dropout(dropout),
                nn.Linear(hidden, num_outputs * cells),
                nn.Unflatten(1, (num_outputs, *grid_size)),
            )

    def forward(self, features: Sequence[Tensor], masks: CellMasks = None) -> RawGrid:
        x = features[0]
        shape = (x.shape[2], x.shape[3])
        if self.grid_size is not None and shape != self.grid_size:
            h, w = (round(side * self.strides[0]) for side in self.grid_size)
            raise ValueError(
                f"the fully connected layers are made for a grid of {self.grid_size[0]} x {self.grid_size[1]} cells, "
                f"that is for images of {h} x {w} px, not for {shape[0]} x {shape[1]} cells: resize to that size "
                "(transform=yolov1_448 for 448 px), set model.head.grid_size, or take model/head=yolov1 for any size"
            )
        raw = self.predict_cells(self.tower(x, None if masks is None else masks[0])).permute(0, 2, 3, 1)
        boxes, classes = raw.split([self.num_boxes * 5, self.num_classes], dim=3)
        return RawGrid(boxes.unflatten(3, (self.num_boxes, 5)), classes)

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """The references are the S_h * S_w cells: the one that holds its centre answers for an object."""
        return self._assign(shapes[self.levels[0]], images, targets)

    def _assign(self, shape: tuple[int, int], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        return assign_centres(shape, self.strides[0], images, targets, num_classes=1, largest=True)

    def loss_from_raw(self, raw: RawGrid, images: Images, targets: Sequence[Target]) -> Losses:
        shape = (raw.boxes.shape[1], raw.boxes.shape[2])
        matched = torch.stack([a.matched for a in self._assign(shape, images, targets)])
        image, cell, objects, labels = matched_objects(targets, matched)  # obj_i

        confidence = raw.boxes[..., 4].flatten(1, 2)  # (N, S_h * S_w, B)
        predictors = raw.boxes.flatten(1, 2)[image, cell]  # (P, B, 5)
        truth = self.encode(objects, image, cell, shape, images)  # (P, 4)
        with torch.no_grad():
            found = self.boxes_of(predictors, image, cell, shape, images)  # (P, B, 4) px
            iou = paired_iou(found, objects[:, None].expand_as(found))  # (P, B)
            distance = (predictors[..., :4] - truth[:, None]).square().sum(-1)
            responsible = torch.where(iou.amax(1) > 0, iou.argmax(1), distance.argmin(1))
        row = torch.arange(len(cell), device=cell.device)
        chosen = predictors[row, responsible]  # obj_ij
        no_object = (matched != IGNORED)[:, None].repeat(1, self.num_boxes, 1).transpose(1, 2)
        no_object = no_object.index_put((image, cell, responsible), no_object.new_zeros(()))  # noobj_ij

        difference = (chosen[:, :4] - truth).square()
        classes = raw.classes.flatten(1, 2)[image, cell]
        one_hot = F.one_hot(labels, self.num_classes).to(classes.dtype)
        terms = {
            "xy": self.lambda_coord * difference[:, :2].sum(),
            "wh": self.lambda_coord * difference[:, 2:].sum(),
            "obj": (chosen[:, 4] - iou[row, responsible]).square().sum(),
            "noobj": self.lambda_noobj * torch.where(no_object, confidence, 0).square().sum(),
            "cls": (classes - one_hot).square().sum(),
        }
        num_wanted = sum(len(t.kinds.wanted) for t in targets_in_range(images, targets))
        stats = {
            "num_pos": confidence.new_full((), len(cell) / len(targets)),
            "num_collided": confidence.new_full((), (num_wanted - len(cell)) / len(targets)),
        }
        num_images = mean_count(len(targets), confidence)
        return Losses({name: term / num_images for name, term in terms.items()}, stats)

    def encode(self, boxes: Tensor, image: Tensor, cell: Tensor, shape: tuple[int, int], images: Images) -> Tensor:
        """What the responsible predictor should say of ``boxes`` px in ``cell`` of ``image``: (P, 4)."""
        centre = xyxy_to_cxcywh(boxes)
        xy = centre[:, :2] / self.strides[0] - cell_corners(cell, shape)
        wh = centre[:, 2:] / _image_sizes(images, boxes)[image]
        return torch.cat([xy, wh.sqrt()], dim=1)

    def boxes_of(
        self, predictors: Tensor, image: Tensor, cell: Tensor, shape: tuple[int, int], images: Images
    ) -> Tensor:
        """Boxes (P, B, 4) px that ``predictors`` (P, B, 5) in ``cell`` (P,) of ``image`` (P,) stand for."""
        xy = (predictors[..., :2] + cell_corners(cell, shape)[:, None]) * self.strides[0]
        wh = predictors[..., 2:4].square() * _image_sizes(images, predictors)[image][:, None]
        return cxcywh_to_xyxy(torch.cat([xy, wh], dim=-1))

    @torch.no_grad()
    def decode(self, raw: RawGrid, images: Images) -> list[Detections]:
        shape = (raw.boxes.shape[1], raw.boxes.shape[2])
        device = raw.boxes.device
        cells = torch.arange(shape[0] * shape[1], device=device)
        inside = cells_inside(shape, self.strides[0], images).flatten(1)
        detections = []
        for i, size in enumerate(images.sizes):
            predictors = raw.boxes[i].flatten(0, 1)  # (S_h * S_w, B, 5)
            boxes = self.boxes_of(predictors, torch.full_like(cells, i), cells, shape, images)
            class_scores = raw.classes[i].flatten(0, 1).clamp(0, 1)  # (S_h * S_w, K)
            scores = predictors[..., 4, None].clamp(0, 1) * class_scores[:, None]  # equation 1
            scores = scores * inside[i][:, None, None]
            candidates = top_candidates(
                scores.flatten(0, 1), boxes.flatten(0, 1).__getitem__, size,
                score_threshold=self.selector.score_threshold, num=self.num_before_nms,
            )  # fmt: skip
            valid = found_in_range(candidates[0], size, images.meta[i].valid_range)
            detections.append(self.selector.of_one_class(*candidates, size, valid))
        return detections


def _image_sizes(images: Images, like: Tensor) -> Tensor:
    """(N, 2) w, h of each image in px."""
    return constant(tuple(images.sizes), like.device, like.dtype).flip(1)
