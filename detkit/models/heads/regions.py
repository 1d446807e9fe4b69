"""Region networks: what the second stage makes of the grid of a region."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.config import REGION_NETWORKS, Count
from detkit.losses import ClassificationLoss
from detkit.models.interfaces import RawRegions, RegionNetwork, RegionPool
from detkit.models.layers import NormName, conv_with_norm
from detkit.structures import FeatureSpec
from detkit.utils.precision import widened


@REGION_NETWORKS
class RegionMLP(RegionNetwork):
    """Fully connected layers on the whole grid, then a class and a box (Girshick, Fast R-CNN, ICCV 2015, section 2).

    Args:
        hidden: widths of the fully connected layers.
        convs: channels of 3x3 convolutions before them, each with a ReLU (He et al., Rethinking ImageNet pre-training,
            ICCV 2019, section 4: four of 256 and one layer of 1024).
        norm: normalisation after each of these, in place of its bias; null for none.
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
        convs: tuple[Count, ...] = (),
        norm: NormName | None = None,
        class_agnostic: bool = False,
        agnostic_above: Count | None = None,
    ) -> None:
        super().__init__()
        if norm is not None and not convs:
            raise ValueError(f"norm={norm} normalises the maps of convolutions, and convs names none: norm=null")
        channels = (pool.out_channels(in_spec.channels[0]), *convs)
        self.convs = nn.ModuleList(conv_with_norm(a, b, 3, norm) for a, b in pairwise(channels))
        widths = (channels[-1] * pool.resolution**2, *hidden)
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, hidden, strict=False))
        self.cls_score = cls_loss.make_layer(widths[-1], num_classes)
        self.takes_classes = self.cls_score.takes_classes
        shared = class_agnostic or (agnostic_above is not None and num_classes > agnostic_above)
        self.bbox_pred = nn.Linear(widths[-1], 4 if shared else 4 * num_classes)
        for layer in (*self.convs.modules(), *self.fcs):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                _initialize(layer)
        self.cls_score.initialize()
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)

    def maps(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return features

    def forward(self, pooled: Tensor, classes: Tensor | None = None) -> RawRegions:
        for conv in self.convs:
            pooled = conv(pooled).relu()
        x = pooled.flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        logits = self.cls_score(x) if classes is None else self.cls_score(x, classes)
        return RawRegions(logits, self.bbox_pred(x).unflatten(1, (-1, 4)))


@REGION_NETWORKS
class ScoreMaps(RegionNetwork):
    """R-FCN (Dai et al., NeurIPS 2016, section 2): everything is computed before the pooling; the bins then vote.

    1x1 convolutions make k^2 (O + 4) maps of the image, from which a position-sensitive pool reads k x k bins: for each
    bin O scores, of the classes and the background, in number ``bin * O + class``, and the four numbers of one box for
    all classes. A region's answer is the mean of its bins.

    Args:
        hidden: channels of a 1x1 convolution and a ReLU before that; null where the neck has such a one already (the
            paper's 1024: ``model/neck=single_level_1024``), which the first stage then reads as well.
        norm: normalisation of these channels, in place of the bias; null for none, as in the paper. Without it the mean
            of a wide map that is nowhere negative outweighs what tells one place from another, and an adaptive
            optimiser may not get beyond the classes' shares.
        class_agnostic: one box for all classes, as in the paper, rather than one per class (4 k^2 maps for each).
    """

    def __init__(
        self,
        *,
        in_spec: FeatureSpec,
        num_classes: int,
        pool: RegionPool,
        cls_loss: ClassificationLoss,
        hidden: Count | None = None,
        norm: NormName | None = None,
        class_agnostic: bool = True,
    ) -> None:
        super().__init__()
        if norm is not None and hidden is None:
            raise ValueError(f"norm={norm} normalises the hidden maps, and hidden=null makes none: norm=null")
        self.bins, self.num_logits = pool.resolution**2, cls_loss.num_outputs(num_classes)
        num_votes = self.num_logits + 4 * (1 if class_agnostic else num_classes)
        num_maps = num_votes * self.bins
        if pool.out_channels(num_maps * (1 + pool.num_moves)) != num_votes:
            raise ValueError(
                f"ScoreMaps makes other maps for each bin, which a {type(pool).__name__} does not read so: choose a "
                "position-sensitive pool, such as region_pool@model.head.roi.pool=PSRoIAlign"
            )
        channels = hidden or in_spec.channels[0]
        self.hidden = None if hidden is None else _wide(in_spec.channels[0], hidden, norm)
        self.score_maps = nn.Conv2d(channels, self.num_logits * self.bins, 1)
        self.box_maps = nn.Conv2d(channels, num_maps - self.num_logits * self.bins, 1)
        self.move_maps = nn.Conv2d(channels, num_maps * pool.num_moves, 1) if pool.num_moves else None
        for conv in (self.score_maps, self.box_maps):
            nn.init.normal_(conv.weight, std=0.01)
            _set_bias(conv, torch.zeros(1))
        _set_bias(self.score_maps, cls_loss.initial_bias(num_classes))
        if self.move_maps is not None:  # bins start where they lie
            nn.init.zeros_(self.move_maps.weight)
            _set_bias(self.move_maps, torch.zeros(1))

    def maps(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._maps_of(x) for x in features]

    def _maps_of(self, x: Tensor) -> Tensor:
        if self.hidden is not None:
            x = self.hidden(x).relu()
        of_bins = [conv(x).unflatten(1, (self.bins, -1)) for conv in (self.score_maps, self.box_maps)]
        maps = torch.cat(of_bins, dim=2).flatten(1, 2)
        return maps if self.move_maps is None else torch.cat([maps, self.move_maps(x)], dim=1)

    def forward(self, pooled: Tensor, classes: Tensor | None = None) -> RawRegions:
        assert classes is None, "takes_classes is False"
        votes = widened(pooled).mean(dim=(2, 3))
        return RawRegions(votes[:, : self.num_logits], votes[:, self.num_logits :].unflatten(1, (-1, 4)))


def _initialize(layer: nn.Conv2d | nn.Linear) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.kaiming_uniform_(layer.weight, a=1)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _wide(inputs: int, outputs: int, norm: NormName | None) -> nn.Module:
    """A 1x1 convolution that keeps the size of the signal (He et al., ICCV 2015, equation 10)."""
    layer = conv_with_norm(inputs, outputs, 1, norm)
    conv = layer if isinstance(layer, nn.Conv2d) else layer.conv
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        _set_bias(conv, torch.zeros(1))
    return layer


def _set_bias(conv: nn.Conv2d, bias: Tensor) -> None:
    """``bias`` (n,), over and over."""
    assert conv.bias is not None
    with torch.no_grad():
        conv.bias.copy_(bias.repeat(conv.out_channels // len(bias)))
