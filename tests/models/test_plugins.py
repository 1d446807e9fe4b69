"""A part of somebody else's in every slot: registered, listed, checked, built, overridden, and used."""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composer import Composer
from detkit.app.inspect import components as list_components
from detkit.config import (
    ANCHORS,
    ASSIGNERS,
    CODERS,
    LOSSES,
    REGION_NETWORKS,
    REGION_POOLS,
    SAMPLERS,
    SELECTORS,
    ConfigError,
    validate,
)
from detkit.losses import BoxLoss, ClassLayer, CrossEntropy
from detkit.matching import IGNORED, NEGATIVE, Anchors, Assigner, Assignment, Coder, Sampler, Selector
from detkit.models import RegionNetwork, RegionPool, build_detector
from detkit.models import build as build_module
from detkit.models.interfaces import RawRegions
from detkit.models.layers import make_conv
from detkit.structures import Categories, FeatureSpec
from tests.models.builders import small
from tests.models.test_contracts import Stub, batch

COMPOSER = Composer(keep=True)
CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))


@ANCHORS
class OnePerCell(Anchors):
    """One square a cell, ``side`` strides wide, about the cell's middle.

    Args:
        side: in strides.
    """

    def __init__(self, *, in_spec: FeatureSpec, side: float = 4.0) -> None:
        self.strides, self.num_per_cell, self.side = in_spec.strides, 1, side

    def _middles(self, shape, stride, device):
        y, x = torch.meshgrid(*(torch.arange(n, device=device) * stride + stride / 2 for n in shape), indexing="ij")
        return x.flatten(), y.flatten()

    def __call__(self, shapes, device):
        levels = []
        for shape, stride in zip(shapes, self.strides, strict=True):
            x, y = self._middles(shape, stride, device)
            half = self.side * stride / 2
            levels.append(torch.stack([x - half, y - half, x + half, y + half], 1))
        return levels

    def inside(self, shapes, size, device):
        middles = [self._middles(shape, stride, device) for shape, stride in zip(shapes, self.strides, strict=True)]
        return [(x < size[1]) & (y < size[0]) for x, y in middles]


@ASSIGNERS
class NearestCentre(Assigner):
    """The reference whose centre is nearest answers for an object.

    Args:
        most: px.
    """

    def __init__(self, *, most: float = 50.0) -> None:
        self.most = most

    def __call__(self, references, target, allowed=None):
        matched = torch.full((len(references),), NEGATIVE, device=references.device)
        middle = (references[:, :2] + references[:, 2:]) / 2
        for i, (box, ignored) in enumerate(zip(target.boxes, target.ignore, strict=True)):
            if ignored or len(references) == 0:
                continue
            distance = (middle - (box[:2] + box[2:]) / 2).norm(dim=1)
            if allowed is not None:
                distance = distance.masked_fill(~allowed[i], torch.inf)
            if distance.min() <= self.most:
                matched[distance.argmin()] = i
        return Assignment(matched)


@SAMPLERS
class LargestLosses(Sampler):
    """The references of largest loss (Shrivastava et al., CVPR 2016).

    Args:
        num: of them.
    """

    needs_losses = True

    def __init__(self, *, num: int = 16) -> None:
        self.num, self.seen = num, []

    def __call__(self, assignment, generator, losses=None):
        assert losses is not None
        usable = losses.masked_fill(assignment.matched == IGNORED, -1.0)
        index = usable.topk(min(self.num, len(usable))).indices
        self.seen.append((losses, index))
        return index[assignment.positive[index]], index[assignment.negative[index]]


@CODERS
class CornerCoder(Coder):
    """The moves of the four sides in units of ``scale`` px.

    Args:
        scale: px.
    """

    def __init__(self, *, scale: float = 16.0) -> None:
        self.scale = scale

    def encode(self, boxes, references):
        return (boxes - references) / self.scale

    def decode(self, deltas, references):
        return deltas * self.scale + references.view(len(references), *[1] * (deltas.ndim - 2), 4)


@LOSSES
class CosineCrossEntropy(CrossEntropy):
    """Cross-entropy on scaled cosines.

    Args:
        weight: as of CrossEntropy.
        prior_prob: as of CrossEntropy.
        scale: of the cosines.
    """

    def __init__(self, *, weight: float = 1.0, prior_prob: float | None = None, scale: float = 20.0) -> None:
        super().__init__(weight=weight, prior_prob=prior_prob)
        self.scale = scale

    def make_layer(self, width, num_classes):
        return CosineLayer(width, num_classes + 1, self.scale)


class CosineLayer(ClassLayer):
    def __init__(self, width, num, scale):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.empty(num, width)), scale

    def initialize(self):
        nn.init.normal_(self.weight)

    def forward(self, x):
        return self.scale * nn.functional.normalize(x.float()) @ nn.functional.normalize(self.weight.float()).T


@LOSSES
class SquaredBoxLoss(BoxLoss):
    """Half the squared error.

    Args:
        weight: factor.
    """

    space = "delta"

    def __init__(self, *, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, predicted, target):
        return self.weight * (predicted - target).square().sum(-1) / 2


@REGION_POOLS
class MiddlePool(RegionPool):
    """The one cell in a region's middle, on the finest map."""

    def __init__(self, *, in_spec: FeatureSpec) -> None:
        super().__init__()
        self.resolution, self.num_levels, self.stride = 1, 1, in_spec.strides[0]

    def out_channels(self, channels):
        return channels

    def levels(self, boxes):
        return boxes.new_zeros(len(boxes), dtype=torch.int64)

    def forward(self, features, regions, images):
        rows = []
        for image, boxes in enumerate(regions):
            x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2 / self.stride).long().unbind(1)
            h, w = features[0].shape[2:]
            rows.append(features[0][image, :, y.clamp(0, h - 1), x.clamp(0, w - 1)].T)
        return torch.cat(rows)[:, :, None, None]


@REGION_NETWORKS
class MapsThenMeans(RegionNetwork):
    """Score maps before the pool, means after it: R-FCN's order of things."""

    def __init__(self, *, in_spec: FeatureSpec, num_classes: int, pool: RegionPool, cls_loss: CrossEntropy) -> None:
        super().__init__()
        self.num_logits = cls_loss.num_outputs(num_classes)
        self.bins = pool.resolution**2
        assert pool.out_channels((self.num_logits + 4) * self.bins) == self.num_logits + 4
        self.scores = nn.Conv2d(in_spec.channels[0], (self.num_logits + 4) * self.bins, 1)

    def maps(self, features):
        return [self.scores(f) for f in features]

    def forward(self, pooled):
        votes = pooled.mean((2, 3))
        return RawRegions(votes[:, : self.num_logits].float(), votes[:, None, self.num_logits :])


@SELECTORS
class StrictSelector(Selector):
    """A selector with its own least score."""


CASES = [
    ("faster_rcnn_fpn", "anchors@model.head.rpn.anchors=OnePerCell", "model.head.rpn.anchors.side=3.0"),
    ("retinanet", "anchors@model.head.anchors=OnePerCell", "model.head.anchors.side=3.0"),
    ("faster_rcnn_fpn", "assigner@model.head.rpn.assigner=NearestCentre", "model.head.rpn.assigner.most=9.0"),
    ("faster_rcnn_fpn", "assigner@model.head.roi.assigner=NearestCentre", "model.head.roi.assigner.most=9.0"),
    ("retinanet", "assigner@model.head.assigner=NearestCentre", "model.head.assigner.most=9.0"),
    ("faster_rcnn_fpn", "sampler@model.head.rpn.sampler=LargestLosses", "model.head.rpn.sampler.num=9"),
    ("faster_rcnn_fpn", "sampler@model.head.roi.sampler=LargestLosses", "model.head.roi.sampler.num=9"),
    ("faster_rcnn_fpn", "coder@model.head.rpn.coder=CornerCoder", "model.head.rpn.coder.scale=8.0"),
    ("faster_rcnn_fpn", "coder@model.head.roi.coder=CornerCoder", "model.head.roi.coder.scale=8.0"),
    ("retinanet", "coder@model.head.coder=CornerCoder", "model.head.coder.scale=8.0"),
    ("faster_rcnn_fpn", "loss@model.head.roi.cls_loss=CosineCrossEntropy", "model.head.roi.cls_loss.scale=9.0"),
    ("faster_rcnn_fpn", "loss@model.head.roi.box_loss=SquaredBoxLoss", "model.head.roi.box_loss.weight=2.0"),
    ("retinanet", "loss@model.head.box_loss=SquaredBoxLoss", "model.head.box_loss.weight=2.0"),
    ("faster_rcnn_fpn", "region_pool@model.head.roi.pool=MiddlePool", None),
    (
        "faster_rcnn_fpn",
        "region_network@model.head.roi.network=MapsThenMeans region_pool@model.head.roi.pool=PSRoIAlign",
        "model.head.roi.pool.resolution=3",
    ),
    (
        "faster_rcnn_fpn",
        "selector@model.head.roi.selector=StrictSelector",
        "model.head.roi.selector.score_threshold=0.2",
    ),
    ("centernet", "selector@model.head.selector=StrictSelector", "model.head.selector.score_threshold=0.2"),
]


def composed(model, slot, edit):
    own = [o for o in small(model) if "network.hidden" not in o or not slot.startswith("region_network")]
    return COMPOSER("experiment=quickstart", f"model={model}", *own, *slot.split(), *([edit] if edit else [])).cfg


@pytest.mark.parametrize(("model", "slot", "edit"), CASES)
def test_a_part_of_anybody_fits_its_slot(model, slot, edit):
    cfg = composed(model, slot, edit)
    validate(cfg, TrainSchema)
    detector = build_detector(cfg.model, CATEGORIES)
    if edit:
        key, value = edit.split("=")
        node = OmegaConf.select(cfg, key)
        assert float(node) == float(value)
    images, targets = batch()
    losses = detector(images, targets)
    assert losses.total.isfinite()
    losses.total.backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert len(detector(images)) == 2


def test_what_is_no_part_of_the_kind_is_refused_by_name():
    with pytest.raises(
        ConfigError, match=r"model\.head\.rpn\.sampler: OnePerCell does not fit here; it must be a Sampler"
    ):
        validate(composed("faster_rcnn_fpn", "model.head.rpn.sampler={_target_:OnePerCell}", None), TrainSchema)


@pytest.mark.parametrize("missing", ["out_spec", "pixel_stats"])
def test_a_backbone_without_what_it_must_have_is_told_which(monkeypatch, missing):
    cfg = composed("faster_rcnn_fpn", "", None)
    monkeypatch.setattr(build_module, "build", lambda *_, **__: type("Bare", (Stub,), {})())
    monkeypatch.delattr(Stub, missing)
    with pytest.raises(
        ConfigError, match=rf"^model\.backbone: ResNet.* has no {missing}, which a backbone must have: "
    ):
        build_detector(cfg.model, CATEGORIES)


def test_a_network_with_a_layer_of_its_own_takes_no_loss_that_needs_another():
    slots = "region_network@model.head.roi.network=ScoreMaps region_pool@model.head.roi.pool=PSRoIAlign"
    cfg = composed("faster_rcnn_fpn", f"{slots} loss@model.head.roi.cls_loss=CosFace", None)
    with pytest.raises(ConfigError, match=r"^model\.head\.roi: RoIHead: CosFace needs the layer that it makes"):
        build_detector(cfg.model, CATEGORIES)


@pytest.mark.parametrize(
    "name", ["OnePerCell", "NearestCentre", "LargestLosses", "CornerCoder", "MiddlePool", "MapsThenMeans"]
)
def test_it_is_listed_with_its_options(name, capsys):
    list_components.main([name])
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_hard_examples_are_those_of_largest_loss_and_equal_a_sort(stage):
    cfg = composed("faster_rcnn_fpn", f"sampler@model.head.{stage}.sampler=LargestLosses", None)
    torch.manual_seed(0)
    detector = build_detector(cfg.model, CATEGORIES)
    images, targets = batch()
    terms = detector(images, targets).terms
    seen = getattr(detector.head, stage).sampler.seen
    assert len(seen) == len(images)
    chosen = torch.cat([losses[index] for losses, index in seen])
    assert all((losses[index].min() >= losses.sort().values[-len(index) :].min()) for losses, index in seen)
    total = terms[f"{stage}_cls"] + terms[f"{stage}_box"]
    torch.testing.assert_close(total, chosen.sum() / len(chosen), rtol=1e-4, atol=1e-5)


def test_another_convolution_of_the_rpn_counts_in_the_loss_as_in_the_proposals():
    """Two layers, or a deformable one put in by hand: the sparse path would know nothing of them."""
    cfg = composed("faster_rcnn_fpn", "model.head.rpn.num_convs=2", None)
    two = build_detector(cfg.model, CATEGORIES)
    images, targets = batch()
    for rpn in (two.head.rpn,):
        sequential = rpn.conv
        before = two(images, targets).terms["rpn_cls"]
        with torch.no_grad():
            sequential[0].weight.mul_(30)
        assert two(images, targets).terms["rpn_cls"] != before
        rpn.conv = make_conv("deform", 64, 64, 3, bias=True)
        two(images, targets).total.backward()
        assert rpn.conv.offset.weight.grad is not None


def test_sparse_and_dense_losses_of_the_rpn_are_the_same(monkeypatch):
    torch.manual_seed(0)
    detector = build_detector(composed("faster_rcnn_fpn", "model.head.rpn.num_convs=1", None).model, CATEGORIES)
    images, targets = batch()

    def step():
        detector.zero_grad()
        losses = detector(images, targets)
        losses.total.backward()
        return losses.terms, [p.grad.clone() for p in detector.parameters() if p.grad is not None]

    sparse = step()
    monkeypatch.setattr(type(detector.head.rpn), "_is_plain", lambda self: False)
    dense = step()
    torch.testing.assert_close(sparse[0], dense[0])
    torch.testing.assert_close(sparse[1], dense[1], rtol=1e-4, atol=1e-6)
