"""Detectors by format: the form of fixed sizes finds what the detector finds, and so does the file made of it."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from detkit.app.export.check import ResizedDetector, partners
from detkit.config import ConfigError
from detkit.data.transforms.plan import resize_image
from detkit.matching import AnchorGrid, Selector, SoftSelector
from detkit.matching.fixed import ABSENT, Marked, over_smaller_marks, peaks, select_marked, select_of_classes
from detkit.matching.groups import nms_over_smaller
from detkit.models.calibrated import Calibrated
from detkit.models.detector import ComposedDetector
from detkit.models.export import NoFormError, made_program
from detkit.models.export.form import scaled_up
from detkit.models.export.pools import _within
from detkit.models.export.resize import Resized
from detkit.models.export.runtime import ExportedDetector, onnx_run, onnx_session, torch_run
from detkit.models.export.trace import traced, write_onnx
from detkit.models.interfaces import Detector
from detkit.structures import Affine, Categories, Detections, FeatureSpec, ImageMeta, Images
from tests.models.builders import build_model, small

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
LINE = ["model/head=two_stage_deform_pool"]
CHANCE = [
    "model.head.steps=2",
    "flow_path@model.head.path=CosinePath",
    "model.head.path.eta=1.0",
    "model.head.renewal=0.3",
]
TINY_DECODER = ["model.head.decoder.num_stages=2", "model.head.decoder.width=32", "model.head.num_boxes=40"]
MODULATED = ["model/head=two_stage_modulated_deform_pool", "model.head.roi.pool.hidden=16"]
SECOND = ["model.head.rpn.min_score=0.5"]
SOFT = [  # slivers overlap by what rounding says
    "selector@model.head.roi.selector=SoftSelector",
    "model.head.roi.selector.min_size=4",
]
CASCADE = ["model.thresholds=[0.5,0.45,0.15]", "model.num_landmarks=2", "model.max_candidates=40"]

#: Every detector with each of its poolings and convolutions: its preset, overrides, the side that two cells of each
#: of its maps take, and whether convolutions are gathered.
TABLE = {
    "RetinaNet": ("retinanet", [], 160, False),
    "RetinaNet, torchvision's": ("retinanet_torchvision", [], 160, False),
    "RetinaNet, torchvision's second": ("retinanet_torchvision_v2", [], 160, False),
    "RetinaNet, detectron2's": ("retinanet_detectron2", ["model.backbone.pixel_std=null"], 160, False),
    "RetinaNet, mmdetection's": ("retinanet_mmdetection", [], 160, False),
    "RetinaNet, soft-NMS": ("retinanet", ["selector@model.head.selector=SoftSelector"], 160, False),
    "Faster R-CNN": ("faster_rcnn_fpn", [], 160, False),
    "Faster R-CNN, torchvision's": ("faster_rcnn_fpn_torchvision", [], 160, False),
    "Faster R-CNN, torchvision's second": ("faster_rcnn_fpn_torchvision_v2", SECOND, 160, False),
    "Faster R-CNN, torchvision's on MobileNetV3": ("faster_rcnn_mobilenetv3_torchvision", [], 160, False),
    "Faster R-CNN, detectron2's": ("faster_rcnn_fpn_detectron2", ["model.backbone.pixel_std=null"], 160, False),
    "Faster R-CNN, mmdetection's": ("faster_rcnn_fpn_mmdetection", [], 160, False),
    "Faster R-CNN, deformable pooling": ("faster_rcnn_fpn", LINE, 160, False),
    "Faster R-CNN, modulated deformable pooling": ("faster_rcnn_fpn", MODULATED, 160, False),
    "Faster R-CNN, soft-NMS": ("faster_rcnn_fpn", SOFT, 160, False),
    "Faster R-CNN, SNIP": ("faster_rcnn_snip", [], 96, False),
    "R-FCN": ("rfcn", [], 96, False),
    "R-FCN, deformable": ("rfcn", ["model.head.roi.pool.deformable=true"], 96, False),
    "TridentNet": ("tridentnet", ["model.head.of_original=false"], 96, False),
    "TridentNet, all sizes in each branch": ("tridentnet", ["model.head.valid_ranges=null"], 96, False),
    "TridentNet, the middle branch alone": ("tridentnet", ["model.backbone.trident=[2]"], 96, False),
    "CenterNet": ("centernet", [], 96, False),
    "CenterNet, DCNv2": ("centernet", ["model/neck=upsample_dcn"], 96, False),
    "CenterNet, DCNv2 gathered": ("centernet", ["model/neck=upsample_dcn"], 96, True),
    "CenterNet, mmdetection's": ("centernet_mmdetection", [], 96, False),
    "YOLOv1": ("yolov1", [], 96, False),
    "YOLOv1, the paper's": ("yolov1_paper", [], 64, False),
    "Flow": ("flow", ["model.head.steps=2"], 160, False),
    "Flow, with chance": ("flow", CHANCE, 160, False),
    "DiffusionDet": ("flow", ["model/head=diffusiondet", "model.head.steps=2", *TINY_DECODER], 160, False),
    "MTCNN": ("mtcnn", CASCADE, 64, False),
}

#: Those whose file takes images of one size alone.
ONE_SIZE = ("YOLOv1, the paper's", "MTCNN")


def awake(model, overrides):
    """A small detector whose head and offsets have moved from their start."""
    torch.manual_seed(3 if model == "mtcnn" else 0)  # its stages let some boxes through, and not all
    detector = build_model(model, CATEGORIES, [*small(model), *overrides]).eval()
    for name, parameter in detector.named_parameters():
        if name.startswith("head") or "offset" in name:
            grown = 0.3 + torch.rand_like(parameter) / 2 if parameter.ndim == 1 else torch.randn_like(parameter) / 150
            parameter.data += grown
        if model == "mtcnn" and name.endswith(("_1.weight", "_2.weight")):  # the layers that answer
            parameter.data *= 8 if "_1." in name else 2
    if "mobilenet" in model:  # too deep for random weights: nothing would come through, or numbers that rounding turns
        settle(detector.backbone)
        for parameter in detector.neck.parameters():
            parameter.data *= 0.2
    for module in detector.modules():
        if hasattr(module, "selector"):
            module.selector.score_threshold = 0.0
    return detector


def settle(backbone):
    """Let the batch norms of ``backbone`` take the statistics of noise."""
    for module in backbone.modules():
        if hasattr(module, "momentum"):
            module.momentum = None
    with torch.no_grad():
        backbone.train()(torch.randn(4, 3, 64, 96))
    backbone.eval()


def pixels(*shape, seed=1):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def padded(images):
    """``images`` (B, 3, H, W) as the loader makes them a batch."""
    h, w = images.shape[2:]
    metas = tuple(ImageMeta(i, f"{i}.png", (h, w), (h, w)) for i in range(len(images)))
    return Images(F.pad(images, (0, -w % 32, 0, -h % 32)), metas)


def same(here, there):
    assert len(here) == len(there)
    for one, two in zip(here, there, strict=True):
        two = Detections(*two) if isinstance(two, tuple) else two
        assert len(one) > 0
        assert (one.landmarks is None) == (two.landmarks is None)
        _, left = partners(one, two)
        assert not left
        assert (two.scores.diff() <= 0).all()


@pytest.mark.parametrize("name", TABLE)
def test_the_form_finds_what_the_detector_finds(name):
    model, overrides = TABLE[name][:2]
    detector = awake(model, overrides)
    images = pixels(2, 3, 64, 128) if model == "yolov1_paper" else pixels(2, 3, 70, 101)
    with torch.no_grad():
        same(detector(padded(images)), made_program(detector, size_divisor=32).of(images))
        turned = made_program(detector, size_divisor=32, channels_last=True).of(images.permute(0, 2, 3, 1))
        same(detector(padded(images)), turned)


def compare(name, tmp_path, suffix, fixed):
    """Write the detector ``name``, and run it on twenty images; of other sizes and numbers where it is not ``fixed``."""
    model, overrides, side, gathered = TABLE[name]
    detector = awake(model, overrides)
    size = (64, 128) if model == "yolov1_paper" else (70, 101) if fixed else (side + 2, side + 62)
    graph = traced(made_program(detector, size_divisor=32), size, fixed=fixed, gathered=gathered)
    path = tmp_path / f"model{suffix}"
    if suffix == ".onnx":
        write_onnx(graph, path, {"made": "here"})
        run = onnx_run(onnx_session(path))
    else:
        torch.export.save(graph, path)
        run = torch_run(path)
    if fixed:
        shapes = [(1, *size)] * 20
    elif suffix == ".onnx":
        shapes = [(2, 70, 101), (3, 128, 130), *((1, 33 + 7 * i, 61 + 11 * (7 * i % 20)) for i in range(20))]
    else:  # torch's programs hold to two cells of every map
        shapes = [(2, side + 6, side + 37), (1, side + 32, side), (2, side, side + 64)]
    for number, (batch, h, w) in enumerate(shapes):
        images = pixels(batch, 3, h, w, seed=number)
        columns = [torch.as_tensor(o) for o in run(images.numpy())]
        there = [Detections(*(c[one[2] >= 0] for c in one)) for one in zip(*columns, strict=True)]
        with torch.no_grad():
            same(detector(padded(images)), there)


@pytest.mark.parametrize("name", [ONE_SIZE[0], pytest.param(ONE_SIZE[1], marks=pytest.mark.slow)])
def test_a_file_of_one_size_agrees(name, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    compare(name, tmp_path, ".onnx", fixed=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TABLE if n not in ONE_SIZE])
def test_an_onnx_file_agrees_for_images_of_any_size_and_number(name, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    compare(name, tmp_path, ".onnx", fixed=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_a_program_of_torch_agrees(name, tmp_path):
    compare(name, tmp_path, ".pt2", fixed=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in TABLE if n not in ONE_SIZE])
def test_a_program_of_torch_agrees_for_images_of_any_size_and_number(name, tmp_path):
    compare(name, tmp_path, ".pt2", fixed=False)


def test_maps_are_cut_to_images_whose_size_needs_no_padding_too():
    """Traced where padding is cut off, a program must not hold to it that something is."""

    class Cut(nn.Module):
        def forward(self, images):
            h, w = images.shape[-2:]
            maps = F.avg_pool2d(F.pad(images, (0, -w % 32, 0, -h % 32)), 8)
            return _within(maps, 8.0, (h, w)).flatten(1).sum(dim=1)

    made = torch.export.export(
        Cut(), (torch.zeros(2, 1, 98, 158),), dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    ).module()
    for h, w in ((98, 158), (96, 128), (70, 101)):
        images = torch.rand(3, 1, h, w)
        torch.testing.assert_close(made(images), Cut()(images))


def test_a_program_says_which_images_it_is_not_made_for(tmp_path):
    class Least(nn.Module):
        def forward(self, images):
            return F.avg_pool2d(images.float(), 8).flatten(1)

    path = tmp_path / "least.pt2"
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    torch.export.save(
        torch.export.export(Least(), (torch.zeros(2, 3, 32, 48, dtype=torch.uint8),), dynamic_shapes=(free,)), path
    )
    run = torch_run(path)
    assert run(np.zeros((2, 3, 24, 16), dtype=np.uint8))[0].shape == (18,)
    images = padded(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    named = rf"{images.meta[0].file}: .*least.pt2 is made for images of other sizes than 1 x 3 x 4 x 4\."
    with pytest.raises(ConfigError, match=named):
        ExportedDetector(run)(images)


def test_thresholds_of_classes_are_inside():
    detector = awake("centernet", [])
    images = pixels(2, 3, 70, 101)
    with torch.no_grad():
        plain = detector(padded(images))
        middle = [float(torch.cat([d.scores[d.labels == k] for d in plain]).median()) for k in range(3)]
        calibrated = Calibrated(detector, middle)
        same(calibrated(padded(images)), made_program(calibrated, size_divisor=32).of(images))
    assert sum(map(len, calibrated(padded(images)))) < sum(map(len, plain))


def test_what_has_no_form_is_named():
    whole = type("Whole", (Detector,), {"forward": lambda self, images, targets=None: []})()
    with pytest.raises(NoFormError, match="model: Whole is no detector of backbone, neck and head: it has no export"):
        made_program(whole, size_divisor=32)
    mtcnn = build_model("mtcnn", CATEGORIES, small("mtcnn")).eval()
    with pytest.raises(
        NoFormError, match=r"model.max_candidates: null lets any number .*: give model.max_candidates=N"
    ):
        made_program(mtcnn, size_divisor=32)(pixels(1, 3, 64, 64))
    with pytest.raises(NoFormError, match=r"model: MTCNN's image pyramid has as many steps .*: give size=\[H,W\]"):
        traced(made_program(mtcnn, size_divisor=32), (64, 94))
    detector = awake("centernet", [])
    with pytest.raises(NoFormError, match="maps scores"):
        made_program(Calibrated(detector, [0.1] * 3, lambda s: s), size_divisor=32)
    strange = ComposedDetector(backbone=detector.backbone, neck=detector.neck, head=torch.nn.Identity())
    with pytest.raises(
        NoFormError, match=r"Identity has no export form; there are those of CenterNetHead, FlowHead, MTCNN, RetinaHead"
    ):
        made_program(strange, size_divisor=32)(pixels(1, 3, 64, 64))
    merged = awake("faster_rcnn_snip", ["model.head.merge={_target_:SoftNMS}"])
    with pytest.raises(NoFormError, match="SoftNMS has no export form"):
        made_program(merged, size_divisor=32)(pixels(1, 3, 64, 64))


def test_an_exported_file_of_one_size_refuses_others():
    one = ExportedDetector(lambda images: (), size=(64, 64))
    with pytest.raises(ConfigError, match=r"0.png: 64 x 70 px, and the file takes images of 64 x 64 px alone"):
        one(padded(pixels(1, 3, 64, 70)))
    with pytest.raises(ConfigError, match="no losses"):
        one(padded(pixels(1, 3, 64, 64)), [])


def test_an_exported_file_sees_the_nearest_grey_level():
    """Resized views have pixels between the levels, and a cubic one beyond them."""
    seen = []
    one = ExportedDetector(lambda images: (seen.append(images), (np.zeros((1, 0, 4)), *np.zeros((2, 1, 0))))[1])
    images = padded(pixels(1, 3, 32, 32))
    given = torch.tensor([99.6, 99.4, -3.0, 260.0, 254.99])
    values = images.pixels.float()
    values[0, 0, 0, :5] = given
    one(replace(images, pixels=values))
    assert seen[0][0, 0, 0, :5].tolist() == [100, 99, 0, 255, 255]
    np.testing.assert_array_equal(seen[0][0, :, 1:], images.pixels[0, :, 1:])


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_by_the_smaller_area_in_place_is_the_greedy_one(threshold):
    """Boxes that beat each other in long chains, with equal scores among them."""
    g = torch.Generator().manual_seed(0)
    corner = 30 * torch.rand(80, 2, generator=g)
    boxes = torch.cat([corner, corner + 5 + 25 * torch.rand(80, 2, generator=g)], dim=1)
    scores = (10 * torch.rand(3, 80, generator=g)).round() / 10
    scores[scores < 0.3] = ABSENT
    marks = over_smaller_marks(boxes, scores, threshold, 1.0)
    for own, kept in zip(scores, marks, strict=True):
        (place,) = (own > ABSENT).nonzero(as_tuple=True)
        wanted = place[nms_over_smaller(boxes[place], own[place], torch.zeros_like(place), threshold, 1.0)]
        assert 3 < len(wanted) < len(place)
        assert kept.nonzero()[:, 0].tolist() == sorted(wanted.tolist())


def test_a_cascade_finds_nothing_in_images_smaller_than_any_object():
    detector = awake("mtcnn", CASCADE)
    with torch.no_grad():
        assert [len(found.boxes) for found in made_program(detector, size_divisor=32).of(pixels(1, 3, 9, 40))] == [0]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    "selector",
    [partial(Selector, nms_iou=0.3), partial(Selector, nms_iou=None), SoftSelector, partial(SoftSelector, sigma=0.05)],
)
@pytest.mark.parametrize("most", [20, 4])
def test_selection_in_place_is_selection(agnostic, selector, most):
    """Against the selector that removes, for boxes of each class and shared ones."""
    g = torch.Generator().manual_seed(0)
    selector = selector(score_threshold=0.3, max_detections=most, min_size=8.0, class_agnostic=agnostic)
    for own in (3, 1):
        corner = 80 * torch.rand(40, own, 2, generator=g) - 10
        boxes = torch.cat([corner, corner + 40 * torch.rand(40, own, 2, generator=g)], dim=2)
        scores = torch.rand(40, 3, generator=g)
        wanted = selector.of_each_class(boxes, scores, (60, 80))
        found = select_of_classes(boxes[None], scores[None], (60, 80), selector)
        kept = found.labels[0] >= 0
        assert 0 < len(wanted) == int(kept.sum())
        torch.testing.assert_close(found.scores[0][kept], wanted.scores)
        torch.testing.assert_close(found.boxes[0][kept], wanted.boxes)
        assert torch.equal(found.labels[0][kept], wanted.labels)
        one_class = scores.argmax(dim=1)
        best = scores.amax(dim=1)
        wanted = selector.of_one_class(boxes[:, 0], best, one_class, (60, 80))
        found = select_marked(Marked(boxes[None, :, 0], best[None], one_class[None]), (60, 80), selector, 3)
        kept = found.labels[0] >= 0
        torch.testing.assert_close(found.boxes[0][kept], wanted.boxes)
        torch.testing.assert_close(found.scores[0][kept], wanted.scores)


def test_what_soft_nms_rounds_to_the_threshold_is_not_above_it():
    boxes, scores = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20]])[:, None], torch.tensor([[0.9], [0.8]])
    selector = SoftSelector(score_threshold=0.0, sigma=0.009)  # 0.8 exp(-1 / 0.009) is above 0 in float64 alone
    assert len(selector.of_each_class(boxes, scores, (60, 80))) == 1
    assert select_of_classes(boxes[None], scores[None], (60, 80), selector).labels[0].tolist()[:2] == [0, -1]


def test_of_equal_neighbours_the_first_is_the_peak():
    heat = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.2, 0.9], [0.0, 0.9, 0.3]])[None, None]
    high = peaks(heat)[0, 0]
    assert high.nonzero().tolist() == [[0, 0], [1, 2]]


def test_sides_of_maps_are_rounded_up():
    assert [scaled_up(side, 1 / 8) for side in (64, 65, 71, 72)] == [8, 9, 9, 9]
    assert scaled_up(7, 2.0) == 14
    assert scaled_up(7, 0.75) == 6


def test_anchors_stand_where_they_stood():
    """The order of plain loops, cell by cell."""
    grid = AnchorGrid(in_spec=FeatureSpec((4,), (8.0,)), scales=(1.0,), ratios=(1.0,))
    (anchors,) = grid([(2, 3)], torch.device("cpu"))
    wanted = [[8 * x - 4, 8 * y - 4, 8 * x + 4, 8 * y + 4] for y in range(2) for x in range(3)]
    assert anchors.tolist() == wanted
    (inside,) = grid.inside([(2, 3)], (8, 17), torch.device("cpu"))
    assert inside.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("before", "after"), [((48, 60), (32, 40)), ((30, 41), (60, 82)), ((90, 120), (30, 41)), ((48, 60), (24, 40))]
)
def test_images_are_resized_as_the_transforms_resize_them(before, after):
    image = pixels(3, *before)
    wanted = resize_image(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), *after)
    resized = Resized(before, after)
    off = (resized(image[None])[0].permute(1, 2, 0) - torch.from_numpy(wanted)).abs()
    assert off.max() <= 1, "cv2 counts in fixed point"
    assert off.mean() < 0.1
    whole = torch.tensor([0.0, 0, after[1], after[0]])
    assert resized.back(whole).tolist() == pytest.approx([0, 0, before[1], before[0]])


def test_a_program_that_resizes_finds_what_the_detector_finds_behind_it():
    detector = awake("centernet", [])
    resized = Resized((70, 101), (140, 202))
    images = pixels(1, 3, 70, 101)
    meta = ImageMeta(0, "0.png", (70, 101), (70, 101))
    with torch.no_grad():
        here = ResizedDetector(detector, resized, 32)(Images(images, (meta,)))
        same(here, made_program(detector, size_divisor=32, resized=resized).of(images))
        plain = detector(padded(resized(images).to(torch.uint8)))[0]
    torch.testing.assert_close(here[0].boxes, plain.boxes / 2)


def test_ranges_of_the_original_are_known_where_the_program_resizes():
    """TridentNet's sizes, small enough here to leave something out: by the program's own factor, or not at all."""
    ranges = "model.head.valid_ranges=[[0,10],[6,14],[10,null]]"
    detector = awake("tridentnet", [ranges, "model.head.of_original=true"])
    resized, images = Resized((70, 101), (140, 202)), pixels(1, 3, 70, 101)
    meta = ImageMeta(
        0, "0.png", (70, 101), (35, 51), affine=Affine(2.0, 2.0)
    )  # the program's original is what it takes
    with torch.no_grad():
        here = ResizedDetector(detector, resized, 32)(Images(images, (meta,)))
        there = made_program(detector, size_divisor=32, resized=resized).of(images)
        same(here, there)
        detector.head.of_original = False
        (other,) = ResizedDetector(detector, resized, 32)(Images(images, (meta,)))
        detector.head.of_original = True
        assert partners(other, here[0])[1], "the ranges matter"
        with pytest.raises(NoFormError, match=r"model\.head\.of_original: a file does not know how large"):
            made_program(detector, size_divisor=32)(images)
