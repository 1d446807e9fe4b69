"""What every backbone, neck and head must do, over everything that is registered or preset."""

import dataclasses
import math

import pytest
import torch

from detkit.app.cli.paths import config_dir
from detkit.config import BACKBONES, NECKS, ConfigError, build
from detkit.matching import Fate, tracing
from detkit.models.detector import ComposedDetector, normalize
from detkit.models.heads.dense import DenseHead
from detkit.models.interfaces import Backbone
from detkit.structures import Categories, FeatureSpec, ImageMeta, Images, Losses, Ratio, Target
from detkit.structures.feature_spec import IMAGENET_STATS
from tests.models.builders import SMALL, build_awake, build_model, compose_model, small

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
NECK_PRESETS = sorted(p.stem for p in (config_dir() / "model" / "neck").glob("*.yaml"))
MODEL_PRESETS = sorted(p.stem for p in (config_dir() / "model").glob("*.yaml"))
BACKBONE_OPTIONS = {
    "Darknet24": {"width": 4},
    "ResNet": {"weights": None, "depth": 18},
    "MobileNetV2": {"weights": None},
    "MobileNetV3": {"weights": None},
    "Timm": {"name": "test_resnet", "pretrained": False},
}
NECK_OPTIONS = {
    "FPN": [
        {},
        {"num_extra": 0},
        {"num_extra": 2, "extra": "conv_p5"},
        {"num_extra": 2, "extra": "conv_c5"},
        {"norm": "bn"},
    ],
    "ImagePyramid": [{"scales": [2.0, 1.0, 0.75, 0.5]}, {"stride": None, "out_channels": 8}, {"merge": "sum"}],
    "SingleLevel": [{}, {"stride": 8}, {"out_channels": 7}],
    "Upsample": [{}, {"channels": [8], "mode": "bilinear"}, {"lateral": True}, {"conv": "modulated_deform"}],
}


def batch(sizes=((64, 96), (64, 96)), seed=0, empty=()):
    g = torch.Generator().manual_seed(seed)
    height, width = (max(s[i] for s in sizes) for i in (0, 1))
    pixels = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    targets, metas = [], []
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8)
        corner = torch.rand(4, 2, generator=g) * torch.tensor([w / 2, h / 2])
        boxes = torch.cat([corner, corner + torch.rand(4, 2, generator=g) * torch.tensor([w / 2, h / 2]) + 1], 1)
        target = Target(boxes, torch.randint(0, 3, (4,), generator=g), torch.tensor([False, False, False, True]))
        targets.append(Target.empty() if i in empty else target)
        metas.append(ImageMeta(i, f"{i}.png", (h, w), (h, w), key=100 + i))
    return Images(pixels, tuple(metas)), targets


@pytest.fixture(params=MODEL_PRESETS, scope="module")
def detector(request):
    return build_awake(request.param, CATEGORIES)


def test_every_backbone_has_a_case_here():
    assert set(BACKBONE_OPTIONS) == {name for name in BACKBONES if BACKBONES[name].__module__.startswith("detkit.")}
    assert set(NECK_OPTIONS) == {name for name in NECKS if NECKS[name].__module__.startswith("detkit.")}


@pytest.mark.parametrize("name", BACKBONE_OPTIONS)
def test_backbone_maps_are_what_out_spec_says(name):
    backbone = build({"_target_": name, **BACKBONE_OPTIONS[name]})
    maps = backbone(torch.randn(2, 3, 128, 192))
    assert [m.shape for m in maps] == [(2, c, 128 / s, 192 / s) for c, s in zip(*backbone.out_spec, strict=True)], (
        "map by map, fine to coarse"
    )
    sum(m.sum() for m in maps).backward()
    without = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "every trainable parameter takes part"


class Stub(Backbone):
    """Three maps, strides 8 to 32."""

    out_spec = FeatureSpec((4, 6, 8), (8.0, 16.0, 32.0))
    pixel_stats = IMAGENET_STATS

    def forward(self, pixels):
        b, _, h, w = pixels.shape
        return [torch.randn(b, c, math.ceil(h / s), math.ceil(w / s)) for c, s in zip(*self.out_spec, strict=True)]


@pytest.mark.parametrize(("name", "options"), [(n, o) for n, many in NECK_OPTIONS.items() for o in many])
def test_neck_maps_are_what_out_spec_says(name, options):
    neck = build({"_target_": name, **options}, in_spec=Stub.out_spec)
    maps = neck(torch.randn(2, 3, 128, 192), Stub())
    assert [m.shape for m in maps] == [
        (2, c, math.ceil(128 / s), math.ceil(192 / s)) for c, s in zip(*neck.out_spec, strict=True)
    ]


@pytest.mark.parametrize(
    ("model", "neck"),
    [(m, n) for m in ("faster_rcnn_fpn", "retinanet", "centernet", "yolov1", "rfcn") for n in NECK_PRESETS],
)
def test_every_neck_takes_every_head(model, neck):
    detector = build_model(model, CATEGORIES, [f"model/neck={neck}", *small(model)])
    images, targets = batch()
    assert detector(images, targets).total.isfinite()
    assert len(detector(images)) == 2


@pytest.mark.parametrize(
    ("model", "level", "stride"), [("centernet", None, 4), ("centernet", 1, 8), ("yolov1", None, 64)]
)
def test_a_head_of_one_map_says_which_of_a_pyramid_it_reads(model, level, stride):
    overrides = ["model/neck=fpn", *([] if level is None else [f"model.head.level={level}"])]
    detector = build_model(model, CATEGORIES, [*overrides, *small(model)])
    assert detector.head.strides == (stride,)
    images, targets = batch()
    detector(images, targets).total.backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "what only other maps need is not trained"


def test_a_level_that_there_is_not_is_named_with_those_that_there_are():
    words = r"^model.head: YOLOv1Head: level must name maps that there are: 0 \(stride 4\), .*4 \(stride 64\), or -1 for the last; not 5"
    with pytest.raises(ConfigError, match=words):
        build_model("yolov1", CATEGORIES, ["model/neck=fpn", "model.head.level=5", *small("yolov1")])


@pytest.mark.parametrize("model", MODEL_PRESETS)
def test_every_model_preset_builds(model):
    with torch.device("meta"):
        whole = "_target_" in compose_model(model)
        assert build_model(model, CATEGORIES, [] if whole else ["model.backbone.weights=null"])


@pytest.mark.parametrize(
    ("half", "empty"),
    [
        pytest.param(False, (), id="float32, objects"),
        pytest.param(False, (0,), id="float32, one empty"),
        pytest.param(False, (0, 1), id="float32, all empty"),
        pytest.param(True, (), id="bfloat16, objects"),
        pytest.param(True, (0,), id="bfloat16, one empty", marks=pytest.mark.slow),
        pytest.param(True, (0, 1), id="bfloat16, all empty", marks=pytest.mark.slow),
    ],
)
def test_losses_are_finite_and_reach_every_parameter(detector, empty, half):
    images, targets = batch(empty=empty)
    detector.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        losses = detector(images, targets)
    assert isinstance(losses, Losses)
    assert all(term.isfinite() for term in losses.terms.values())
    for stat in losses.stats.values():
        numbers = stat if isinstance(stat, Ratio) else (stat,)
        assert not any(number.requires_grad for number in numbers), "stats are for the log alone"
    losses.total.backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "a term that loses its parameters breaks distributed training"
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


@torch.no_grad()
@pytest.mark.parametrize(
    ("model", "stat"),
    [("faster_rcnn_fpn", "roi_accuracy"), ("tridentnet", "roi_accuracy"), ("diffusiondet", "flow_accuracy")],
)
def test_the_accuracy_of_a_batch_counts_the_positives_of_its_images(model, stat):
    """However images are put together: one without objects has none."""
    detector = build_awake(model, CATEGORIES).eval()
    images, targets = batch(sizes=((64, 96),) * 3, empty=(1,))
    both = detector(images, targets).stats[stat]
    assert isinstance(both, Ratio)
    alone = []
    for i in range(3):
        one = Images(images.pixels[i : i + 1], images.meta[i : i + 1])
        alone.append(detector(one, targets[i : i + 1]).stats[stat])
    assert alone[1].whole == 0
    assert [sum(numbers).item() for numbers in zip(*alone, strict=True)] == [both.part.item(), both.whole.item()]
    assert both.whole > alone[0].whole > 0


def test_targets_are_left_alone(detector):
    images, targets = batch()
    before = [[f.clone() for f in (t.boxes, t.labels, t.ignore)] for t in targets]
    detector(images, targets)
    for target, fields in zip(targets, before, strict=True):
        for name, field in zip(("boxes", "labels", "ignore"), fields, strict=True):
            assert torch.equal(getattr(target, name), field)


def test_arguments_decide_not_the_mode(detector):
    images, targets = batch()
    detector.eval()
    try:
        with torch.no_grad():
            assert isinstance(detector(images, targets), Losses)
            assert isinstance(detector(images), list)
        detector.train()
        assert isinstance(detector(images), list)
    finally:
        detector.train()


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_detections_are_sorted_inside_and_labelled(detector, half):
    images, _ = batch(sizes=((64, 96), (50, 70)))
    detector.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        found = detector(images)
    detector.train()
    assert all(d.boxes.dtype == d.scores.dtype == torch.float32 for d in found)
    assert sum(map(len, found)) > 0
    for detections, (h, w) in zip(found, images.sizes, strict=True):
        assert (detections.scores.diff() <= 0).all()
        assert ((detections.scores >= 0) & (detections.scores <= 1)).all()
        assert ((detections.labels >= 0) & (detections.labels < 3)).all()
        b = detections.boxes
        assert (b[:, :2] >= 0).all()
        assert (b[:, 2] <= w).all()
        assert (b[:, 3] <= h).all()
        assert (b[:, 2:] > b[:, :2]).all()


@torch.no_grad()
def test_batch_order_changes_nothing(detector):
    """An image's losses and detections depend on its pixels and its key, not on its neighbours' order."""
    images, targets = batch(seed=3)
    swapped = Images(images.pixels.flip(0), images.meta[::-1])
    detector.eval()
    one, two = detector(images), detector(swapped)[::-1]
    loss, loss_swapped = detector(images, targets), detector(swapped, targets[::-1])
    detector.train()
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)
    for name, term in loss.terms.items():
        torch.testing.assert_close(term, loss_swapped.terms[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [0.0, 1.0])
@torch.no_grad()
def test_what_is_in_the_padding_changes_nothing(detector, padding):
    """The head sees what is in the image, not how much padding its batch happened to need, nor what a network makes
    of it. (The stages of Faster R-CNN read one cell of it beyond the border: only zeros there are nothing to them.)"""
    if not isinstance(detector, ComposedDetector):
        pytest.skip("without a head; what it makes of padding is tested for the whole")
    images, targets = batch(sizes=((64, 64),))
    head = detector.head
    if getattr(head, "grid_size", None) is not None:
        pytest.skip("fully connected layers take maps of one size")
    if padding and not isinstance(head, DenseHead):
        pytest.skip("a dense head's promise")
    shapes = [
        f.shape for f in detector.neck(normalize(images, detector.pixel_mean, detector.pixel_std), detector.backbone)
    ]
    g = torch.Generator().manual_seed(1)
    features = [torch.randn(s, generator=g) for s in shapes]
    padded_features = [torch.nn.functional.pad(f, (0, f.shape[3], 0, f.shape[2]), value=padding) for f in features]
    padded = dataclasses.replace(images, pixels=torch.nn.functional.pad(images.pixels, (0, 64, 0, 64)))
    one, two = head.predict(features, images)[0], head.predict(padded_features, padded)[0]
    assert len(one) > 0
    torch.testing.assert_close(one.boxes, two.boxes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(one.scores, two.scores, rtol=1e-4, atol=1e-5)
    loss, padded_loss = head.loss(features, images, targets), head.loss(padded_features, padded, targets)
    for name, term in loss.terms.items():
        torch.testing.assert_close(term, padded_loss.terms[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_focal_is_divided_by_the_positives():
    """RetinaNet, section 4.1: the same sum, over P positives rather than S samples."""
    overrides = ["model/backbone=resnet18", "loss@model.head.roi.cls_loss=Focal", *SMALL]
    detector = build_model("faster_rcnn_fpn", CATEGORIES, overrides).eval()
    images, targets = batch()
    by_positives = detector(images, targets)
    detector.head.roi.cls_loss.normalizer = "samples"
    by_samples = detector(images, targets)
    positives = by_positives.stats["roi_num_pos"] * len(images)
    samples = positives * by_positives.terms["roi_cls"] / by_samples.terms["roi_cls"]
    assert samples > positives > 0
    assert samples.item() == pytest.approx(round(samples.item()), abs=1e-2), "a whole number of regions"


@torch.no_grad()
def test_every_candidate_goes_through_selection(detector):
    """The why-missed report follows candidates through matching.select alone."""
    images, _ = batch(sizes=((64, 96),))
    detector.eval()
    plain = detector(images)[0]
    with tracing() as trace:
        watched = detector(images)[0]
    detector.train()
    assert torch.equal(plain.boxes, watched.boxes)
    last = trace.selections[-1]
    kept = last.fates == Fate.KEPT
    assert len(watched) == int(kept.sum()) > 0
    assert torch.equal(last.scores[kept].sort(descending=True).values, watched.scores)
    assert (last.labels >= 0).all()
    assert len(trace.selections) > 1, "what was not even considered is there as well"


@torch.no_grad()
def test_infinite_features_in_the_padding_change_nothing(detector):
    """Nor infinite pixels: 0 times infinity is NaN, which a convolution carries into the image."""
    images, _ = batch(sizes=((64, 96), (32, 64)))
    detector.eval()
    pixels = images.pixels.float()
    beside = ~images.valid_mask().expand_as(pixels)
    other = dataclasses.replace(images, pixels=pixels.masked_fill(beside, torch.inf))
    if not isinstance(detector, ComposedDetector):
        for one, two in zip(detector(images), detector(other), strict=True):
            assert len(one)
            assert torch.equal(one.boxes, two.boxes)
        return
    assert normalize(other, detector.pixel_mean, detector.pixel_std).isfinite().all()
    if isinstance(detector.head, DenseHead):
        features = detector.neck(normalize(images, detector.pixel_mean, detector.pixel_std), detector.backbone)
        features = [features[level] for level in detector.head.levels]
        masks = detector.head.masks(features, images)
        poisoned = [f.masked_fill(~m, torch.inf) for f, m in zip(features, masks, strict=True)]
        for one, two in zip(*(detector.head.predict(f, images) for f in (features, poisoned)), strict=True):
            assert torch.equal(one.boxes, two.boxes)
    detector.train()


MARGINS = ["NormalizedSoftmax", "CosFace", "ArcFace", "CombinedMargin", "LSoftmax", "ASoftmax"]


@pytest.mark.parametrize("loss", MARGINS)
@pytest.mark.parametrize(("model", "slot"), [("faster_rcnn_fpn", "model.head.roi"), ("retinanet", "model.head")])
def test_margin_losses_bring_their_layer_to_every_head_that_classifies(model, slot, loss):
    torch.manual_seed(0)
    detector = build_model(model, CATEGORIES, [f"loss@{slot}.cls_loss={loss}", *small(model)])
    images, targets = batch(empty=(1,))
    losses = detector(images, targets)
    losses.total.backward()
    assert losses.total.isfinite()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    for found in detector(images):
        assert ((found.labels >= 0) & (found.labels < 3)).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_a_map_of_cosines_is_the_layer_of_regions_on_each_neighbourhood():
    torch.manual_seed(0)
    for name in ("NormalizedSoftmax", "ASoftmax", "LSoftmax"):
        loss = build({"_target_": name})
        cells, x = loss.make_map(4, 2, 3), torch.randn(1, 4, 5, 6)
        assert cells.background.bias is not None
        torch.nn.init.normal_(cells.background.bias)
        patches = torch.nn.functional.unfold(x, 3, padding=1)[0].T  # (30, 36)
        found = cells(x).unflatten(1, (2, -1))
        for anchor in (0, 1):
            regions = loss.make_layer(36, 3)
            with torch.no_grad():
                regions.weight.copy_(cells.weight.unflatten(0, (2, 3))[anchor].flatten(1))
                regions.background.weight.copy_(cells.background.weight[anchor].flatten()[None])
                regions.background.bias.copy_(cells.background.bias[anchor])
            torch.testing.assert_close(found[0, anchor].flatten(1).T, regions(patches), rtol=1e-5, atol=1e-5)


def test_a_map_of_cosines_where_there_is_nothing_has_a_finite_gradient():
    for name in ("NormalizedSoftmax", "ASoftmax", "LSoftmax"):
        cells, x = build({"_target_": name}).make_map(4, 2, 3), torch.zeros(1, 4, 5, 6, requires_grad=True)
        cells(x).sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() < 1e3


def test_a_margin_loss_is_refused_where_there_is_one_class_or_another_layer():
    with pytest.raises(ConfigError, match=r"model\.head\.rpn: RPN: ArcFace tells classes apart by their directions"):
        build_model("faster_rcnn_fpn", CATEGORIES, ["loss@model.head.rpn.cls_loss=ArcFace", *small("faster_rcnn_fpn")])
