"""torchvision's Faster R-CNN and RetinaNet, first and second versions, under detkit's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from detkit.models.backbones.mobilenet_v3 import STAGE_STARTS
from detkit.models.converters.naming import COCO_91, Rename, check_present, check_rows, class_rows, renamed
from detkit.structures import Categories

#: Names before and after torchvision's change of 2022 (a ``.0`` for each wrapped convolution, ``.1`` for its norm).
_FEATURES: tuple[Rename, ...] = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.lateral.\1.\2"),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.output.\1.\2"),
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.1\.", r"neck.lateral.\1.norm."),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.1\.", r"neck.output.\1.norm."),
)

_RCNN: tuple[Rename, ...] = (
    *_FEATURES,
    (r"^rpn\.head\.(cls_logits|bbox_pred)\.", r"head.rpn.\1."),
    (r"^roi_heads\.box_head\.fc6\.", "head.roi.network.fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "head.roi.network.fcs.1."),
    (r"^roi_heads\.box_head\.([0-3])\.0\.", r"head.roi.network.convs.\1."),
    (r"^roi_heads\.box_head\.([0-3])\.1\.", r"head.roi.network.convs.\1.norm."),
    (r"^roi_heads\.box_head\.5\.", "head.roi.network.fcs.0."),
    (r"^roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"head.roi.network.\1."),
)
_ONE_RPN_CONV: Rename = (r"^rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)$", r"head.rpn.conv.\1")
_TWO_RPN_CONVS: tuple[Rename, ...] = (
    (r"^rpn\.head\.conv\.0\.0\.", "head.rpn.conv.0."),
    (r"^rpn\.head\.conv\.1\.0\.", "head.rpn.conv.2."),  # number 1 is the ReLU between them
)

_RETINA: tuple[Rename, ...] = (
    *_FEATURES,
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.extra_convs.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.extra_convs.1."),
    (r"^head\.classification_head\.conv\.(\d+)\.0\.", r"head.cls_tower.convs.\1."),
    (r"^head\.classification_head\.conv\.(\d+)\.1\.(?=\w+$)", r"head.cls_tower.convs.\1.norm."),
    (r"^head\.regression_head\.conv\.(\d+)\.0\.", r"head.box_tower.convs.\1."),
    (r"^head\.regression_head\.conv\.(\d+)\.1\.(?=\w+$)", r"head.box_tower.convs.\1.norm."),
    (r"^head\.classification_head\.cls_logits\.", "head.cls_logits."),
    (r"^head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
)

#: The towers of RetinaNet whose published names are from before that change: every second module is a ReLU.
_OLD_TOWER = re.compile(r"^(head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)$")

_MOBILENET = re.compile(r"^backbone\.body\.(\d+)\.")


def preset_of(state: Mapping[str, Tensor]) -> str:
    """The model preset of detkit's that is built as the network whose weights ``state`` holds."""
    if is_retinanet(state):
        return "retinanet_torchvision_v2" if _has(state, r"^head\.\w+\.conv\.0\.1\.") else "retinanet_torchvision"
    if _has(state, _MOBILENET.pattern):
        return "faster_rcnn_mobilenetv3_torchvision"
    is_second = _has(state, r"^roi_heads\.box_head\.\d\.")
    return "faster_rcnn_fpn_torchvision_v2" if is_second else "faster_rcnn_fpn_torchvision"


def is_retinanet(state: Mapping[str, Tensor]) -> bool:
    """Whether it is a RetinaNet of torchvision's rather than a Faster R-CNN."""
    return any(key.startswith("head.classification_head.") for key in state)


def from_torchvision(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    """A state dict of torchvision's Faster R-CNN or RetinaNet for the preset that :func:`preset_of` names.

    torchvision counts background as class 0, detkit last or, in RetinaNet, not at all. Classes are matched by name with
    the published COCO weights (91 rows, some unused), by position otherwise.

    Returns:
        the renamed state dict, and whether the class layers are in it: they are left out where the class lists differ.

    Raises:
        UnfitError: its last layers are missing, or do not fit each other.
    """
    return (_from_retinanet if is_retinanet(state) else _from_faster_rcnn)(state, categories)


def _from_retinanet(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    found = renamed({_new_tower(key): value for key, value in state.items()}, _RETINA, "torchvision's RetinaNet")
    layer, boxes = "head.cls_logits", "head.bbox_pred.bias"
    check_present(found, (f"{layer}.weight", f"{layer}.bias", boxes), "torchvision's RetinaNet")
    anchors = max(len(found[boxes]) // 4, 1)
    num = len(found[f"{layer}.bias"]) // anchors
    check_rows(found, dict.fromkeys((f"{layer}.weight", f"{layer}.bias"), num * anchors), "torchvision's RetinaNet")
    rows = class_rows(num, categories, COCO_91, 1)
    for kind in ("weight", "bias"):
        value = found.pop(f"{layer}.{kind}")
        if rows is not None:
            found[f"{layer}.{kind}"] = value.unflatten(0, (anchors, -1))[:, rows].flatten(0, 1)
    return found, rows is not None


def _from_faster_rcnn(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    rpn = _TWO_RPN_CONVS if _has(state, r"^rpn\.head\.conv\.1\.0\.") else (_ONE_RPN_CONV,)
    network = "head.roi.network"
    found = renamed({_staged(key): v for key, v in state.items()}, (*rpn, *_RCNN), "torchvision's Faster R-CNN")
    last = [f"{network}.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")]
    check_present(found, last, "torchvision's Faster R-CNN")
    num = len(found[last[1]])
    rows_of = {name: num if "cls_score" in name else 4 * num for name in last}
    check_rows(found, rows_of, "torchvision's Faster R-CNN")
    rows = class_rows(num, categories, COCO_91, 1)
    for name in last:
        value = found.pop(name)
        if rows is not None and "cls_score" in name:
            found[name] = value[[*rows, 0]]
        elif rows is not None:
            found[name] = value.unflatten(0, (-1, 4))[rows].flatten(0, 1)
    return found, rows is not None


def _new_tower(key: str) -> str:
    old = _OLD_TOWER.match(key)
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else key


def _staged(key: str) -> str:
    """A layer of MobileNetV3's row of layers as a layer of one of its stages."""
    found = _MOBILENET.match(key)
    if found is None:
        return key
    number = int(found[1])
    stage = sum(start <= number for start in STAGE_STARTS) - 1
    return f"backbone.body.stages.{stage}.{number - STAGE_STARTS[stage]}.{key[found.end() :]}"


def _has(state: Mapping[str, Tensor], pattern: str) -> bool:
    return any(re.match(pattern, key) for key in state)
