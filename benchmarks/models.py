"""The detectors of the recipes that are timed, torchvision's like them, and the calls that take most of their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import mobilenet_v2, resnet50
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from detkit.app.cli.composer import Composer
from detkit.models import Detector, build_detector
from detkit.structures import Categories

NUM_CLASSES = 3
#: height, width px: a 4:3 photograph at detectors' small size; divisible by 32, so that no padding differs
SIZE = (320, 416)
#: What each is composed by; Faster R-CNN with as many proposals as torchvision's.
RECIPES = {
    "faster_rcnn": ("experiment=faster_rcnn/bccd_mobilenetv2_fpn", "model.head.rpn.num_proposals=[2000,1000]"),
    "retinanet": ("experiment=retinanet/bccd_mobilenetv2_fpn",),
    "centernet": ("experiment=centernet/bccd_mobilenetv2",),
    "yolov1": ("experiment=yolov1/bccd_mobilenetv2",),
    "rfcn": ("experiment=rfcn/bccd_mobilenetv2",),
    "tridentnet": ("experiment=tridentnet/bccd_mobilenetv2",),
    "flow": ("experiment=flow/bccd_mobilenetv2",),
    "faster_rcnn_c4": (  # on R-FCN's map, of as many regions: see configs/experiment/rfcn/bccd_mobilenetv2.yaml
        "experiment=faster_rcnn/bccd_mobilenetv2_fpn", "model/backbone=mobilenetv2_dilated",
        "model.backbone.last_conv=false", "model/neck=single_level", "model.neck.out_channels=null",
        "model.head.rpn.anchors.scales=[1,2,4,8,16]", "model.head.rpn.num_before_nms=[6000,6000]",
        "model.head.rpn.num_proposals=[300,300]",
    ),
    "coco_r50": ("experiment=faster_rcnn/coco_r50_fpn_1x", "model.head.rpn.num_proposals=[2000,1000]"),
}  # fmt: skip
#: Those of the blood cells, which a CPU can take.
BCCD = tuple(name for name in RECIPES if name != "coco_r50")


def num_classes_of(name: str) -> int:
    """How many classes the data set of a recipe has."""
    return NUM_CLASSES if name in BCCD else 80


def recipe_detector(name: str, num_classes: int | None = None, overrides: Sequence[str] = ()) -> Detector:
    """The detector of a recipe in ``RECIPES`` with other ``overrides``, with random weights."""
    num = num_classes or num_classes_of(name)
    cfg = Composer()(*RECIPES[name], "model.backbone.weights=null", *overrides).cfg
    return build_detector(cfg.model, Categories(tuple(f"c{k}" for k in range(num)), tuple(range(num))))


def torchvision_peer(name: str, size: tuple[int, int] = SIZE) -> nn.Module | None:
    """Its like of torchvision for images of ``size``, as wide and with as many anchors; None where there is none."""
    peers = {
        "faster_rcnn": torchvision_faster_rcnn,
        "retinanet": torchvision_retinanet,
        "coco_r50": torchvision_coco_r50,
    }
    return peers[name](min_size=min(size), max_size=max(size)) if name in peers else None


def torchvision_faster_rcnn(**size: int) -> nn.Module:
    """With as many proposals."""
    backbone = _backbone({"3": "0", "6": "1", "13": "2", "18": "3"}, [24, 32, 96, 1280])
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(backbone, NUM_CLASSES + 1, rpn_anchor_generator=anchors, **size)


def torchvision_retinanet(**size: int) -> nn.Module:
    """With strides from 8 to 64, as the recipe has them."""
    backbone = _backbone({"6": "0", "13": "1", "18": "2"}, [32, 96, 1280], _OneMore(1280, 128))
    sizes = tuple(tuple(int(stride * scale) for scale in (3.0, 3.78, 4.762)) for stride in (8, 16, 32, 64))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(backbone, NUM_CLASSES, anchor_generator=anchors, **size)


def torchvision_coco_r50(**size: int) -> nn.Module:
    """Its ``fasterrcnn_resnet50_fpn``, with the norms and stages frozen as where it loads weights."""
    body = resnet50(norm_layer=FrozenBatchNorm2d)
    backbone = _resnet_fpn_extractor(body, trainable_layers=3)
    return FasterRCNN(backbone, num_classes_of("coco_r50") + 1, **size)


class _OneMore(ExtraFPNBlock):
    """One level above the pyramid, by a convolution on the backbone's last map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, 1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        return [*results, self.conv(x[-1])], [*names, "more"]


def _backbone(layers: dict[str, str], channels: list[int], extra: ExtraFPNBlock | None = None) -> BackboneWithFPN:
    return BackboneWithFPN(
        mobilenet_v2(norm_layer=FrozenBatchNorm2d).features, layers, channels, 128, extra_blocks=extra
    )


class Call(NamedTuple):
    """A convolution or a product of matrices below autograd, or the gradients of a convolution."""

    op: torch._ops.OpOverload
    arguments: Sequence[Any]


class _Kept(TorchDispatchMode):
    """Keeps every one that is run: layers that fold their norms into weights call no module."""

    OPS = (
        torch.ops.aten.convolution.default,
        torch.ops.aten.convolution_backward.default,
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.OPS:
            assert not kwargs
            self.calls.append(Call(func, [torch.randn_like(a) if isinstance(a, Tensor) else a for a in args]))
        return func(*args, **(kwargs or {}))


def heavy_calls(run: Callable[[], object]) -> list[Call]:
    """The convolutions and products in ``run``, in their order, each with random numbers of its shapes and strides."""
    with _Kept() as seen:
        run()
    return seen.calls


def replay(calls: Sequence[Call]) -> None:
    """Run ``calls`` and nothing else."""
    with torch.no_grad():
        for op, arguments in calls:
            op(*arguments)
