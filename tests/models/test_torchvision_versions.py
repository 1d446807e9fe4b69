"""torchvision's second detectors and its MobileNetV3 ones: the same weights on the same pixels give the same numbers.

By default around a narrow network, with every layer that is new in them; as they are published in the slow tests.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import (
    FasterRCNN,
    RetinaNet,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detkit.models.converters import from_torchvision, load_converted, preset_of
from detkit.models.layers.norm import group_norm_inside
from detkit.structures import ImageMeta, Images, Target
from tests.models.builders import build_model
from tests.models.test_torchvision_parity import (
    ALL,
    CATEGORIES,
    IN_PADDING,
    TERMS,
    as_torchvision_takes_them,
    assert_equal,
)
from tests.models.test_torchvision_retinanet import MANY, assert_detections_equal, assert_losses_equal

WHOLE = ((128, 256), (128, 256))  # multiples of every stride
PADDED = ((96, 160), (160, 96))
SIZES = [pytest.param(PADDED, id="padded"), pytest.param(WHOLE, id="whole", marks=pytest.mark.slow)]
SAMPLERS = {"rpn_batch_size_per_image": ALL, "box_batch_size_per_image": ALL, "rpn_post_nms_top_n_train": 100}
R18 = ["model.backbone.depth=18", "model.neck.out_channels=64"]
EVERYTHING = [f"model.head.{stage}.sampler.num={ALL}" for stage in ("rpn", "roi")]
EVERYTHING += ["model.head.rpn.num_proposals=[100,100]", "model.backbone.frozen_stages=0"]


def sides(sizes):
    return {"min_size": min(min(s) for s in sizes), "max_size": max(max(s) for s in sizes)}


def pyramid(layers, extra, norm=None):
    body, channels = resnet18(weights=None), [32 * 2**i for i in layers]
    names = {f"layer{i}": str(n) for n, i in enumerate(layers)}
    return BackboneWithFPN(body, names, channels, 64, extra_blocks=extra, norm_layer=norm)


def small_rcnn_v2(sizes):
    anchors = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(
        pyramid((1, 2, 3, 4), LastLevelMaxPool(), nn.BatchNorm2d), len(CATEGORIES) + 1, rpn_anchor_generator=anchors,
        rpn_head=RPNHead(64, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((64, 7, 7), [16] * 4, [1024], norm_layer=nn.BatchNorm2d),
        rpn_post_nms_top_n_test=100, **SAMPLERS, **sides(sizes),
    )  # fmt: skip


def whole_rcnn_v2(sizes):
    return fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=len(CATEGORIES) + 1, rpn_post_nms_top_n_test=100,
        **SAMPLERS, **sides(sizes),
    )  # fmt: skip


def mobilenet(make, sizes, **options):
    model = make(
        weights=None, weights_backbone=None, num_classes=len(CATEGORIES) + 1, **SAMPLERS, **sides(sizes), **options
    )  # fmt: skip
    freeze(model)
    return model


def freeze(module):
    """As torchvision does where it loads published weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        freeze(child)


def small_retina_v2(sizes):
    head = RetinaNetHead(64, 9, len(CATEGORIES) + 1, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    backbone = pyramid((2, 3, 4), LastLevelP6P7(512, 64))
    return RetinaNet(
        backbone, len(CATEGORIES) + 1, anchor_generator=_default_anchorgen(), head=head, **sides(sizes)
    )  # fmt: skip


def whole_retina_v2(sizes):
    return retinanet_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=len(CATEGORIES) + 1, **sides(sizes)
    )  # fmt: skip


def awake(make, sizes):
    """A model whose norms matter and whose answers differ from box to box."""
    torch.manual_seed(0)
    model = make(sizes)
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.bias.data.normal_(0, 0.1)
        if name.endswith(("bn2", "bn3")):
            module.weight.data.mul_(0.3)  # activations of a trained size
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.bias, std=0.2)
        if name.endswith("classification_head.cls_logits"):
            module.bias.data.uniform_(-3, -1)
            module.bias.data.view(9, -1)[:, 0] = -40  # the class that nothing is; detkit's loss does not have it
            module.weight.data.view(9, -1, *module.weight.shape[1:])[:, 0] = 0
    return model


def batch(sizes):
    generator = torch.Generator().manual_seed(1)
    shape = [max(side) for side in zip(*sizes, strict=True)]
    pixels = torch.randint(0, 256, (len(sizes), 3, *shape), generator=generator, dtype=torch.uint8)
    pixels[:, :, 20:80, 30:90] //= 4
    metas = tuple(ImageMeta(i, f"{i}.png", size, size, key=i) for i, size in enumerate(sizes))
    target = Target(torch.tensor([[30.0, 20, 90, 80], [5, 5, 40, 45]]), torch.tensor([1, 2]), torch.zeros(2).bool())
    return Images(pixels, metas), [target] * len(sizes)


def pair(make, sizes, preset, *overrides):
    theirs = awake(make, sizes)
    assert preset_of(theirs.state_dict()) == preset
    ours = build_model(preset, CATEGORIES, overrides)
    state, with_classes = from_torchvision(theirs.state_dict(), CATEGORIES)
    assert with_classes
    assert load_converted(ours, state) == []
    return theirs, ours


V2 = "faster_rcnn_fpn_torchvision_v2"
MOBILE = "faster_rcnn_mobilenetv3_torchvision"
SMALL_320 = ["model.head.rpn.num_before_nms=[2000,150]", "model.head.rpn.num_proposals=[100,150]"]
NARROW = [*R18, *EVERYTHING, "model.head.roi.network.convs=[16,16,16,16]"]
RCNNS = [
    pytest.param(small_rcnn_v2, V2, NARROW, id="v2"),
    pytest.param(whole_rcnn_v2, V2, EVERYTHING, id="whole v2", marks=pytest.mark.slow),
    pytest.param(
        partial(mobilenet, fasterrcnn_mobilenet_v3_large_fpn, rpn_post_nms_top_n_test=100), MOBILE, EVERYTHING,
        id="mobilenet",
    ),
    pytest.param(
        partial(mobilenet, fasterrcnn_mobilenet_v3_large_320_fpn), MOBILE, [*EVERYTHING, *SMALL_320],
        id="mobilenet 320", marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("make", "preset", "overrides"), RCNNS)
def test_faster_rcnn_equals_torchvision(make, preset, overrides, sizes):
    """Losses of the same regions and detections, padded batches too where the padding is read as there."""
    padded = [*IN_PADDING, "model.head.rpn.in_padding=true"] if sizes == PADDED else []
    theirs, ours = pair(make, sizes, preset, *overrides, *padded)
    images, targets = batch(sizes)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        assert_equal(ours(images), theirs(as_torchvision_takes_them(images)[0]))
    theirs.train()
    ours.train()
    with torch.no_grad():
        expected, losses = theirs(*as_torchvision_takes_them(images, targets)), ours(images, targets)
    for name, other in TERMS.items():
        torch.testing.assert_close(
            losses.terms[name], expected[other], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


RETINAS = [
    pytest.param(small_retina_v2, R18, id="v2"),
    pytest.param(whole_retina_v2, [], id="whole v2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("make", "overrides"), RETINAS)
@torch.no_grad()
def test_retinanet_equals_torchvision(make, overrides, sizes):
    """Losses, each image counting by its positives, and detections, but for what has no area, which torchvision keeps."""
    padded = ["model.head.in_padding=true", "model.head.anchors.in_padding=true"] if sizes == PADDED else []
    overrides = [*overrides, "model.backbone.frozen_stages=0", *MANY, *padded]
    theirs, ours = pair(make, sizes, "retinanet_torchvision_v2", *overrides)
    images, targets = batch(sizes)
    assert_detections_equal(ours, theirs, images)
    few = Target(targets[1].boxes[1:], targets[1].labels[1:], targets[1].ignore[1:])
    assert_losses_equal(ours, theirs, images, [targets[0], few])


def test_one_missing_one_extra_and_one_misshapen_tensor_are_named_together():
    theirs, ours = pair(small_rcnn_v2, WHOLE, V2, *NARROW)
    state = theirs.state_dict()
    state |= {"roi_heads.mask.a": torch.zeros(1), "rpn.b": torch.zeros(1)}
    state["backbone.fpn.inner_blocks.0.1.bias"] = torch.zeros(7)
    state["backbone.body.layer5.weight"] = torch.zeros(1)
    del state["roi_heads.box_head.2.1.running_mean"]
    with pytest.raises(ValueError, match="the weights do not fit the model") as caught:
        load_converted(ours, from_torchvision(state, CATEGORIES)[0])
    for words in (
        "3 unknown ['backbone.layer5.weight', \"roi_heads.mask.a (no key of torchvision's Faster R-CNN)\", \"rpn.b (",
        "1 of another shape ['neck.lateral.0.norm.bias (7,) for (64,)']",
        "1 missing ['head.roi.network.convs.2.norm.running_mean']",
    ):
        assert words in str(caught.value)


@torch.no_grad()
def test_a_group_norm_sees_no_padding():
    """Its statistics are those of the image cut out."""
    norm = nn.GroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 5, 6)
    mask = torch.zeros(2, 1, 5, 6, dtype=torch.bool)
    mask[0, :, :3, :4] = mask[1] = True
    found = group_norm_inside(x, norm, mask)
    torch.testing.assert_close(found[0, :, :3, :4], norm(x[:1, :, :3, :4])[0])
    torch.testing.assert_close(found[1], norm(x[1:])[0])


@torch.no_grad()
def test_proposals_score_at_least_what_is_asked():
    ours = build_model(MOBILE, CATEGORIES, ["model.backbone.norm=bn"]).eval()
    images, _ = batch(WHOLE)
    features = [torch.randn(2, 256, 4 // s, 8 // s) for s in (1, 1, 2)]
    rpn = ours.head.rpn
    raw = rpn(features)
    rpn.min_score = float(torch.cat(raw.logits, 1).sigmoid().median())
    few = rpn.propose(features, images)
    rpn.min_score = 0.0
    for some, every in zip(few, rpn.propose(features, images), strict=True):
        assert 0 < len(some) < len(every)
        assert torch.equal(some, every[: len(some)])
