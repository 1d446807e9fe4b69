"""A training step of Faster R-CNN beside torchvision's, and the model and batch that other benchmarks take too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.timing import time_alternately
from detkit.app.cli.components import load_components
from detkit.app.cli.paths import config_dir
from detkit.models import Detector, build_detector
from detkit.structures import Categories, ImageMeta, Images, Target

#: height, width px: a 4:3 photograph at detectors' small size; divisible by 32, so that no padding differs
SIZE = (320, 416)
NUM_CLASSES = 3


def benchmark_training(device: torch.device, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of Faster R-CNN MobileNetV2-FPN: the same numbers of anchors, proposals and sampled regions."""
    images, targets = made_batch(batch, device)
    ours, theirs = small_faster_rcnn().to(device).train(), torchvision_model().to(device).train()
    pixels = [p.float() / 255 for p in images.pixels]
    dicts = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    return time_alternately(
        {
            "torchvision": training_step(theirs, lambda: torch.stack(list(theirs(pixels, dicts).values())).sum()),
            "detkit": training_step(ours, lambda: ours(images, targets).total),
        },
        repeats,
        device,
    )


def made_batch(batch: int, device: torch.device, num_classes: int = NUM_CLASSES) -> tuple[Images, list[Target]]:
    """Random pixels with 14 boxes in each image, as many as a blood-cell picture has."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *SIZE), generator=generator, dtype=torch.uint8)
    targets = []
    for _ in range(batch):
        corner = torch.rand(14, 2, generator=generator) * torch.tensor([SIZE[1] - 90.0, SIZE[0] - 90.0])
        boxes = torch.cat([corner, corner + 40 + 50 * torch.rand(14, 2, generator=generator)], dim=1)
        labels = torch.randint(0, num_classes, (14,), generator=generator)
        targets.append(Target(boxes, labels, torch.zeros(14, dtype=torch.bool)).to(device))
    metas = tuple(ImageMeta(i, f"{i}.png", SIZE, SIZE, key=i) for i in range(batch))
    return Images(pixels, metas).to(device), targets


def small_faster_rcnn(num_classes: int = NUM_CLASSES, overrides: Sequence[str] = ()) -> Detector:
    """Faster R-CNN on MobileNetV2 and a pyramid of 128 channels, with random weights."""
    load_components()
    own = [
        "+model=faster_rcnn_fpn", "model/backbone=mobilenetv2", "model.backbone.weights=null",
        "model.neck.out_channels=128", "model.head.rpn.anchors.scales=[4.0]",
        "model.head.rpn.num_proposals=[2000,1000]",
    ]  # fmt: skip
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=[*own, *overrides])
    return build_detector(cfg.model, Categories(tuple(f"c{k}" for k in range(num_classes)), tuple(range(num_classes))))


def torchvision_model() -> nn.Module:
    """Its like of torchvision: as wide, with as many anchors and proposals."""
    body = mobilenet_v2(norm_layer=FrozenBatchNorm2d).features
    backbone = BackboneWithFPN(body, {"3": "0", "6": "1", "13": "2", "18": "3"}, [24, 32, 96, 1280], 128)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(backbone, NUM_CLASSES + 1, rpn_anchor_generator=anchors, min_size=min(SIZE), max_size=max(SIZE))


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """``loss``, its gradients, and an update of ``model``."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
