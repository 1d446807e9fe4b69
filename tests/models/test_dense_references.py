"""The losses of the grid and the heatmap head against plain loops over images, cells and predictors.

Two images of different sizes in one padded batch, objects in no order, ignored ones among them, one in the last column.
"""

import math

import pytest
import torch
from torchvision.ops import box_iou

from detkit.losses import PenaltyReducedFocal
from detkit.matching import Selector
from detkit.models.heads.centernet import CenterNetHead, RawCentres
from detkit.models.heads.yolov1 import RawGrid, YOLOv1Head
from detkit.structures import FeatureSpec, ImageMeta, Images, Target

SIZES = ((96, 128), (64, 160))
NUM_CLASSES = 3


def images():
    metas = tuple(ImageMeta(i, f"{i}.png", size, size) for i, size in enumerate(SIZES))
    return Images(torch.zeros(2, 3, 96, 160, dtype=torch.uint8), metas)


def targets(num_objects, seed):
    g = torch.Generator().manual_seed(seed)
    made = []
    for h, w in SIZES:
        corner = torch.rand(num_objects, 2, generator=g) * torch.tensor([w - 20.0, h - 20.0])
        size = 5 + torch.rand(num_objects, 2, generator=g) * torch.tensor([15.0, 12.0])
        boxes = torch.cat([corner, corner + size], 1)
        boxes[0] = torch.tensor([w - 6.0, 3.0, w, 12.0])
        ignore = torch.arange(num_objects) == 2
        made.append(Target(boxes, torch.randint(0, NUM_CLASSES, (num_objects,), generator=g), ignore))
    return made


def is_in(point, boxes):
    return any(x1 <= point[0] < x2 and y1 <= point[1] < y2 for x1, y1, x2, y2 in boxes.tolist())


def yolo_loop(raw, all_targets, stride):
    """Equation 3 of YOLOv1, cell by cell; means over the two images."""
    terms = dict.fromkeys(("xy", "wh", "obj", "noobj", "cls"), 0.0)
    for n, (target, (height, width)) in enumerate(zip(all_targets, SIZES, strict=True)):
        owner = {}
        for k, (x1, y1, x2, y2) in enumerate(target.boxes.tolist()):
            if target.ignore[k]:
                continue
            cell, size = (int((y1 + y2) / 2 // stride), int((x1 + x2) / 2 // stride)), (x2 - x1) * (y2 - y1)
            if cell not in owner or size > owner[cell][0]:
                owner[cell] = (size, k)
        for i in range(raw.boxes.shape[1]):
            for j in range(raw.boxes.shape[2]):
                middle = ((j + 0.5) * stride, (i + 0.5) * stride)
                outside = i * stride >= height or j * stride >= width
                skipped = outside or is_in(middle, target.boxes[target.ignore])
                responsible = None
                if (i, j) in owner:
                    responsible = object_terms(terms, raw, target, owner[i, j][1], (n, i, j), stride, (height, width))
                for predictor in range(raw.boxes.shape[3]):
                    if predictor != responsible and (responsible is not None or not skipped):
                        terms["noobj"] += 0.5 * raw.boxes[n, i, j, predictor, 4].item() ** 2
    return {name: term / len(SIZES) for name, term in terms.items()}


def object_terms(terms, raw, target, k, cell, stride, size):
    (n, i, j), (height, width) = cell, size
    x1, y1, x2, y2 = target.boxes[k].tolist()
    truth = ((x1 + x2) / 2 / stride - j, (y1 + y2) / 2 / stride - i)
    truth += (((x2 - x1) / width) ** 0.5, ((y2 - y1) / height) ** 0.5)
    found = []
    for x, y, root_w, root_h, _ in raw.boxes[n, i, j].tolist():
        cx, cy, w, h = (x + j) * stride, (y + i) * stride, root_w**2 * width, root_h**2 * height
        found.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    iou = box_iou(torch.tensor(found), target.boxes[k : k + 1])[:, 0].tolist()
    squares = [
        [(a - b) ** 2 for a, b in zip(predictor[:4], truth, strict=True)] for predictor in raw.boxes[n, i, j].tolist()
    ]
    if max(iou) > 0:
        responsible = iou.index(max(iou))
    else:
        responsible = min(range(len(iou)), key=lambda p: sum(squares[p]))
    terms["xy"] += 5 * sum(squares[responsible][:2])
    terms["wh"] += 5 * sum(squares[responsible][2:])
    terms["obj"] += (raw.boxes[n, i, j, responsible, 4].item() - iou[responsible]) ** 2
    for c, value in enumerate(raw.classes[n, i, j].tolist()):
        terms["cls"] += (value - int(c == target.labels[k])) ** 2
    return responsible


@pytest.mark.parametrize("seed", range(4))
def test_yolov1_equals_a_plain_loop(seed):
    stride = 32.0
    head = YOLOv1Head(in_spec=FeatureSpec((4,), (stride,)), num_classes=NUM_CLASSES, selector=Selector())
    g = torch.Generator().manual_seed(100 + seed)
    raw = RawGrid(torch.rand(2, 3, 5, 2, 5, generator=g), torch.rand(2, 3, 5, NUM_CLASSES, generator=g))
    if seed == 3:  # boxes that meet nothing: the nearest predictor answers, and that is the second one here and there
        raw.boxes[..., :2] += 9 * torch.rand(2, 3, 5, 2, 2, generator=g) + 4
    given = targets(5, seed)
    losses = head.loss_from_raw(raw, images(), given)
    expected = yolo_loop(raw, given, stride)
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_iou_that_confidence_learns_is_a_constant():
    head = YOLOv1Head(in_spec=FeatureSpec((4,), (32.0,)), num_classes=NUM_CLASSES, selector=Selector())
    boxes = torch.rand(2, 3, 5, 2, 5, requires_grad=True)
    losses = head.loss_from_raw(RawGrid(boxes, torch.rand(2, 3, 5, NUM_CLASSES)), images(), targets(5, 0))
    (gradient,) = torch.autograd.grad(losses.terms["obj"], boxes)
    assert (gradient[..., :4] == 0).all()
    assert (gradient[..., 4] != 0).any()


def official_radius(h, w, overlap=0.7):
    roots = []
    for a, b, c in (
        (1, h + w, w * h * (1 - overlap) / (1 + overlap)),
        (4, 2 * (h + w), (1 - overlap) * w * h),
        (4 * overlap, -2 * overlap * (h + w), (overlap - 1) * w * h),
    ):
        roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    return max(0, int(min(roots)))


def centernet_loop(raw, all_targets, stride):
    """Equations 1 to 4 of CenterNet, cell by cell."""
    _, num_classes, height, width = raw.heat.shape
    heat, peaks, used = torch.zeros_like(raw.heat), {}, torch.zeros_like(raw.heat, dtype=torch.bool)
    for n, (target, (h, w)) in enumerate(zip(all_targets, SIZES, strict=True)):
        for i in range(height):
            for j in range(width):
                middle = ((j + 0.5) * stride, (i + 0.5) * stride)
                inside = i * stride < h and j * stride < w
                used[n, :, i, j] = inside and not is_in(middle, target.boxes[target.ignore])
        for (x1, y1, x2, y2), label, ignore in zip(
            target.boxes.tolist(), target.labels.tolist(), target.ignore.tolist(), strict=True
        ):
            if ignore:
                continue
            x, y, bw, bh = (x1 + x2) / 2 / stride, (y1 + y2) / 2 / stride, (x2 - x1) / stride, (y2 - y1) / stride
            radius = official_radius(math.ceil(bh), math.ceil(bw))
            sigma = (2 * radius + 1) / 6
            for i in range(max(0, int(y) - radius), min(height, int(y) + radius + 1)):
                for j in range(max(0, int(x) - radius), min(width, int(x) + radius + 1)):
                    value = math.exp(-((i - int(y)) ** 2 + (j - int(x)) ** 2) / (2 * sigma**2))
                    heat[n, label, i, j] = max(heat[n, label, i, j].item(), value)
            place = (n, label, int(y), int(x))
            used[place] = True
            if place not in peaks or bw * bh < peaks[place][0]:
                peaks[place] = (bw * bh, (x - int(x), y - int(y)), (bw, bh))
    p = raw.heat.double().sigmoid()
    peak, other = -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log()
    terms = {"heat": (torch.where(heat == 1, peak, other) * used).sum().item(), "offset": 0.0, "size": 0.0}
    for (n, _, i, j), (_, offset, size) in peaks.items():
        terms["offset"] += sum(abs(raw.offsets[n, c, i, j].item() - offset[c]) for c in (0, 1)) / 2
        terms["size"] += 0.1 * sum(abs(raw.sizes[n, c, i, j].item() - size[c]) for c in (0, 1)) / 2
    assert num_classes == NUM_CLASSES
    return {name: term / len(peaks) for name, term in terms.items()}


@pytest.mark.parametrize("seed", range(3))
def test_centernet_equals_a_plain_loop(seed):
    stride = 4.0
    head = CenterNetHead(
        in_spec=FeatureSpec((4,), (stride,)),
        num_classes=NUM_CLASSES,
        heat_loss=PenaltyReducedFocal(),
        selector=Selector(),
    )
    g = torch.Generator().manual_seed(200 + seed)
    raw = RawCentres(
        torch.randn(2, NUM_CLASSES, 24, 40, generator=g),
        torch.randn(2, 2, 24, 40, generator=g),
        torch.randn(2, 2, 24, 40, generator=g),
    )
    given = targets(6, seed)
    losses = head.loss_from_raw(raw, images(), given)
    expected = centernet_loop(raw, given, stride)
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_heat_branch_starts_as_published():
    """Only offsets and sizes begin near zero: a heatmap that does would hand its features no gradient."""
    head = CenterNetHead(
        in_spec=FeatureSpec((64,), (4.0,)), num_classes=80, heat_loss=PenaltyReducedFocal(), selector=Selector()
    )
    raw = head([torch.randn(1, 64, 8, 8)])
    assert raw.heat.std() > 0.05
    assert raw.sizes.std() < 0.01
    free = CenterNetHead(
        in_spec=FeatureSpec((64,), (4.0,)),
        num_classes=80,
        heat_loss=PenaltyReducedFocal(),
        selector=Selector(),
        init_std=None,
    )
    assert free([torch.randn(1, 64, 8, 8)]).sizes.std() > 0.05
