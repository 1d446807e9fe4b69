"""Region networks: what the second stage makes of the grid of a region."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import REGION_NETWORKS, Count
from detkit.losses import ClassificationLoss
from detkit.models.interfaces import RawRegions, RegionNetwork, RegionPool
from detkit.structures import FeatureSpec


@REGION_NETWORKS
class RegionMLP(RegionNetwork):
    """Fully connected layers on the whole grid, then a class and a box (Girshick, Fast R-CNN, ICCV 2015, section 2).

    Args:
        hidden: widths of the fully connected layers.
        class_agnostic: one box per region rather than one per class.
        agnostic_above: the same where there are more classes than this, whose boxes would outweigh all other layers;
            null for never.
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        pool: RegionPool,
        cls_loss: ClassificationLoss,
        hidden: tuple[Count, ...] = (1024, 1024),
        class_agnostic: bool = False,
        agnostic_above: Count | None = None,
    ) -> None:
        super().__init__()
        widths = (pool.out_channels(in_spec.channels[0]) * pool.resolution**2, *hidden)
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.cls_score = cls_loss.make_layer(widths[-1], num_classes)
        self.takes_classes = self.cls_score.takes_classes
        shared = class_agnostic or (agnostic_above is not None and num_classes > agnostic_above)
        self.bbox_pred = nn.Linear(widths[-1], 4 if shared else 4 * num_classes)
        for fc in self.fcs:
            assert isinstance(fc, nn.Linear)
            nn.init.kaiming_uniform_(fc.weight, a=1)
            nn.init.zeros_(fc.bias)
        self.cls_score.initialize()
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def maps(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return features

    def forward(self, pooled: Tensor, classes: Tensor | None = None) -> RawRegions:
        x = pooled.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        logits = self.cls_score(x) if classes is None else self.cls_score(x, classes)
        return RawRegions(logits, self.bbox_pred(x).unflatten(1, (-1, 4)))
