"""CenterNet (Zhou, Wang, Kraehenbuehl, "Objects as points", arXiv 1904.07850): an object is the peak at its centre.

Three outputs on one map of stride R (4 in the paper): a heatmap for each class, and for each cell an offset and a size.

- Equation 1: penalty-reduced focal loss on heatmaps with a Gaussian at each centre, divided by the number of objects.
- Equation 2: L1 between the offset and ``p / R - floor(p / R)``, at the centre cells alone.
- Equation 3: L1 between the predicted and the true size, at the centre cells alone.
- Equation 4: the sum, with factors 1, 1 and 0.1. Sizes are counted in cells, and both L1 losses are means over their
  two coordinates, as in the published code; the equations leave the unit open and sum.
- Section 4: a cell is a peak where none of its 8 neighbours is higher; the best 100 peaks are the detections, no NMS.

Crowds, which the paper does not treat: cells inside one, where they are no peak, do not count as background.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import HEADS, Count
from detkit.losses import HeatmapLoss
from detkit.losses.checks import non_negative
from detkit.losses.classification import sigmoid_bias
from detkit.matching import Assignment, Selector, found_in_range, top_peaks
from detkit.matching.assigners import IGNORED
from detkit.matching.gaussian import RadiusRule, draw_gaussians, gaussian_radius
from detkit.models.heads.common import matched_objects, mean_count
from detkit.models.heads.dense import CellMasks, DenseHead, cells_inside
from detkit.models.heads.grid import assign_centres, cell_corners, centre_cells, targets_in_range
from detkit.models.interfaces import AssigningHead
from detkit.structures import Detections, FeatureSpec, Images, Losses, Target
from detkit.structures.boxes import xyxy_to_cxcywh
from detkit.utils.transfer import row_owners


class RawCentres(NamedTuple):
    """``heat`` (B, K, H, W) logits; ``offsets`` and ``sizes`` (B, 2, H, W) as x, y and w, h in cells."""

    heat: Tensor
    offsets: Tensor
    sizes: Tensor


@HEADS
class CenterNetHead(DenseHead, AssigningHead):
    """Peaks of a heatmap as objects, on one feature map.

    Args:
        heat_loss, selector: its parts. Peaks need no NMS: ``nms_iou`` of the selector is null in the paper.
        level: the map it reads, counted from 0 for the finest, -1 for the coarsest; the paper's has stride 4.
        init_std: deviation of the random weights of the offset and size outputs, 0.001 in the published code; null for
            PyTorch's own start, from which they learn sooner. The heatmap always has that.
        channels: of the 3x3 convolution before each output; 64 for the paper's ResNets, 256 for DLA.
        radius: how the Gaussians' radius follows from a box: "official" as in the published code, or "iou", the
            algebraically right solution; see ``gaussian_radius``.
        min_overlap: the IoU that this radius preserves.
        offset_weight, size_weight: factors on the two L1 losses.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        heat_loss: HeatmapLoss,
        selector: Selector,
        level: int = 0,
        channels: Count = 64,
        init_std: float | None = 0.001,
        radius: RadiusRule = "official",
        min_overlap: float = 0.7,
        offset_weight: float = 1.0,
        size_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.levels = self.reads = in_spec.which(level, "level")
        in_spec = in_spec.select(self.levels)
        self.strides, self.num_classes = in_spec.strides, num_classes
        self.heat_loss, self.selector = heat_loss, selector
        self.radius: RadiusRule = radius
        self.min_overlap = min_overlap
        self.offset_weight = non_negative("offset_weight", offset_weight)
        self.size_weight = non_negative("size_weight", size_weight)
        self.heat = _branch(in_spec.channels[0], channels, num_classes, None)
        self.offsets = _branch(in_spec.channels[0], channels, 2, init_std)
        self.sizes = _branch(in_spec.channels[0], channels, 2, init_std)
        bias = self.heat[-1].bias
        assert isinstance(bias, Tensor)
        with torch.no_grad():
            bias.copy_(sigmoid_bias(heat_loss.prior_prob, num_classes))

    def forward(self, features: Sequence[Tensor], masks: CellMasks = None) -> RawCentres:
        x = features[0]
        return RawCentres(self.heat(x), self.offsets(x), self.sizes(x))

    def assign(self, shapes: Sequence[tuple[int, int]], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        """The references are the K * H * W cells of all classes: the cell of its centre answers for an object.

        Of two objects of one class with their centres in one cell the smaller stays: it has no other chance.
        """
        return self._assign(shapes[self.levels[0]], images, targets)

    def _assign(self, shape: tuple[int, int], images: Images, targets: Sequence[Target]) -> list[Assignment]:
        return assign_centres(shape, self.strides[0], images, targets, num_classes=self.num_classes, largest=False)

    def loss_from_raw(self, raw: RawCentres, images: Images, targets: Sequence[Target]) -> Losses:
        shape, stride = (raw.heat.shape[2], raw.heat.shape[3]), self.strides[0]
        matched = torch.stack([a.matched for a in self._assign(shape, images, targets)])
        heat = self.heatmaps(shape, targets_in_range(images, targets))
        ignored = (matched == IGNORED).view_as(heat)
        image, reference, boxes, _ = matched_objects(targets, matched)
        num_objects = mean_count(len(image), raw.heat)
        # before the loss too: its gradient at an infinite logit is not finite, and 0 times that is NaN
        heat_loss = self.heat_loss(raw.heat.masked_fill(ignored, 0), heat).masked_fill(ignored, 0).sum() / num_objects

        cell = reference % (shape[0] * shape[1])
        true = xyxy_to_cxcywh(boxes) / stride
        offset = true[:, :2] - cell_corners(cell, shape)
        predicted_offset = raw.offsets.flatten(2)[image, :, cell]
        predicted_size = raw.sizes.flatten(2)[image, :, cell]
        return Losses(
            {
                "heat": heat_loss,
                "offset": self.offset_weight * _mean_l1(predicted_offset, offset) / num_objects,
                "size": self.size_weight * _mean_l1(predicted_size, true[:, 2:]) / num_objects,
            },
            {"num_pos": heat.new_full((), len(cell) / len(targets))},
        )

    def heatmaps(self, shape: tuple[int, int], targets: Sequence[Target]) -> Tensor:
        """The target heatmaps (B, K, H, W) of a batch, drawn on its device."""
        wanted = [target.wanted for target in targets]
        boxes, labels = torch.cat([t.boxes for t in wanted]), torch.cat([t.labels for t in wanted])
        image = row_owners([len(t) for t in wanted], boxes.device)
        sizes = ((boxes[:, 2:] - boxes[:, :2]) / self.strides[0]).ceil().flip(1)
        radii = gaussian_radius(sizes, self.min_overlap, self.radius).clamp(min=0).long()
        cells = centre_cells(boxes, self.strides[0], shape)
        heat = draw_gaussians(cells, radii, image * self.num_classes + labels, len(wanted) * self.num_classes, shape)
        return heat.view(len(wanted), self.num_classes, *shape)

    @torch.no_grad()
    def decode(self, raw: RawCentres, images: Images) -> list[Detections]:
        shape, stride = (raw.heat.shape[2], raw.heat.shape[3]), self.strides[0]
        scores = raw.heat.sigmoid() * cells_inside(shape, stride, images)[:, None]
        detections = []
        for i, meta in enumerate(images.meta):
            boxes_of = functools.partial(self._boxes_of, raw.offsets[i].flatten(1).T, raw.sizes[i].flatten(1).T, shape)
            boxes, best, labels = top_peaks(
                scores[i],
                boxes_of,
                meta.size,
                score_threshold=self.selector.score_threshold,
                num=self.selector.max_detections,
            )
            valid = found_in_range(boxes, meta.size, meta.valid_range)
            detections.append(self.selector.of_one_class(boxes, best, labels, meta.size, valid))
        return detections

    def _boxes_of(self, offsets: Tensor, sizes: Tensor, shape: tuple[int, int], cell: Tensor) -> Tensor:
        """Boxes (Q, 4) px whose centres lie in ``cell`` (Q,), by the ``offsets`` and ``sizes`` (H * W, 2) of all."""
        centre, half = cell_corners(cell, shape) + offsets[cell], sizes[cell] / 2
        return torch.cat([centre - half, centre + half], dim=1) * self.strides[0]


def _mean_l1(predicted: Tensor, true: Tensor) -> Tensor:
    """Sum over N of the mean absolute difference of two coordinates (N, 2)."""
    return (predicted - true).abs().mean(1).sum()


def _branch(in_channels: int, channels: int, num_outputs: int, std: float | None) -> nn.Sequential:
    branch = nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, num_outputs, 1)
    )
    for layer in (branch[0], branch[2]):
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        if std is not None:
            nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return branch
