"""Models for tests, composed as a user's command line composes them."""

from collections.abc import Sequence

import torch
from hydra import compose, initialize_config_dir
from torch import nn

import detkit.models
from detkit.app.cli.paths import config_dir
from detkit.config import validate
from detkit.models import Detector, build_detector
from detkit.structures import Categories, ImageMeta, Images, Target

#: ResNets that are quick to run, without pretrained weights
SMALL = [
    *("model.backbone.weights=null", "model.backbone.norm=bn", "model.backbone.frozen_stages=0"),
    "model.backbone.width=16",
]
_SMALL_RCNN = ["model/backbone=resnet18", *SMALL, "model.head.roi.network.hidden=[64]"]
_PLAIN_STRIDES = ["model.backbone.stride_in_1x1=false"]  # its blocks have no 1x1 convolution
_SMALL_MODELS = {
    "faster_rcnn_fpn": _SMALL_RCNN,
    "faster_rcnn_fpn_torchvision": [*_SMALL_RCNN, "model.backbone.norm_eps=1e-5"],  # its 0 is for published statistics
    "retinanet_torchvision": ["model/backbone=resnet18", *SMALL, "model.backbone.norm_eps=1e-5"],
    "faster_rcnn_fpn_torchvision_v2": [*_SMALL_RCNN, "model.head.roi.network.convs=[16]"],
    "faster_rcnn_mobilenetv3_torchvision": [
        *("model.backbone.norm=bn", "model.backbone.frozen_stages=0", "model.head.roi.network.hidden=[64]"),
        "model.head.rpn.min_score=0.0",  # it says nothing yet
    ],
    "faster_rcnn_fpn_detectron2": [*_SMALL_RCNN, *_PLAIN_STRIDES],
    "retinanet_detectron2": ["model/backbone=resnet18", *SMALL, *_PLAIN_STRIDES],
    "faster_rcnn_fpn_mmdetection": _SMALL_RCNN,
    "rfcn": ["model/backbone=resnet18", *SMALL, "model.backbone.dilate_last=true"],
    "tridentnet": [
        *("model/backbone=resnet18", *SMALL, "model.backbone.trident=[1,2,3]", "model.backbone.levels=[4]"),
        "model.head.inner.roi.network.hidden=[64]",
    ],
    "faster_rcnn_snip": [
        *("model/backbone=resnet18", *SMALL, "model.backbone.levels=[4]"),
        "model.head.inner.roi.network.hidden=[64]",
    ],
    "diffusiondet": [
        *("model/backbone=resnet18", *SMALL, "model.neck.out_channels=32", "model.head.num_boxes=60"),
        *("model.head.decoder.num_stages=2", "model.head.decoder.width=32", "model.head.decoder.hidden=64"),
    ],
    "mtcnn": ["model.min_size=12", "model.thresholds=[0.5,0.5,0.1]"],
    # 64 x 96 px are 1 x 2 cells of stride 64
    "yolov1_paper": ["model.backbone.width=4", "model.head.grid_size=[1,2]", "model.head.hidden=16"],
}


def small(name: str) -> list[str]:
    """The overrides that make ``model=name`` small."""
    return _SMALL_MODELS.get(name, ["model/backbone=resnet18", *SMALL])


def build_awake(name: str, categories: Categories, overrides: Sequence[str] = ()) -> Detector:
    """A small ``model=name`` whose head has moved from its start, where many say nothing and all biases are zero."""
    torch.manual_seed(0)
    detector = build_model(name, categories, [*small(name), *overrides])
    for parameter in getattr(detector, "head", nn.Module()).parameters():
        parameter.data += (
            0.3 + torch.rand_like(parameter) / 2 if parameter.ndim == 1 else torch.randn_like(parameter) / 150
        )
    for module in detector.modules():
        if hasattr(module, "selector"):
            module.selector.score_threshold = 0.0
    return detector


def compose_model(name: str, overrides: Sequence[str] = ()):
    """The ``model`` section for ``model=name``."""
    assert detkit.models
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(overrides=[f"+model={name}", *overrides]).model


def build_model(name: str, categories: Categories, overrides: Sequence[str] = ()) -> Detector:
    """The detector for ``model=name``, validated part by part first."""
    cfg = compose_model(name, overrides)
    for part in [cfg] if "_target_" in cfg else cfg.values():
        validate(part)
    return build_detector(cfg, categories)


def images(*sizes: tuple[int, int]) -> Images:
    """A black batch of images of ``sizes`` (height, width) px."""
    h, w = (max(s[i] for s in sizes) for i in (0, 1))
    metas = tuple(ImageMeta(i, f"{i}.png", s, s) for i, s in enumerate(sizes))
    return Images(torch.zeros(len(sizes), 3, h, w, dtype=torch.uint8), metas)


def target(
    *boxes: Sequence[float], labels: Sequence[int] | None = None, ignore: Sequence[bool] | None = None
) -> Target:
    """Objects at ``boxes``, all of class 0 and none to be ignored unless said."""
    n = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        torch.tensor([0] * n if labels is None else labels, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
    )
