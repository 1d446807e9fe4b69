"""State dicts of other libraries under detkit's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkit.structures import Categories

#: torchvision's names, before and after its change of 2022 (a ``.0`` for each wrapped convolution), to detkit's
_RENAMES = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.lateral.\1.\2"),
    (r"^backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(weight|bias)$", r"neck.output.\1.\2"),
    (r"^rpn\.head\.conv\.(?:0\.0\.)?(weight|bias)$", r"head.rpn.conv.\1"),
    (r"^rpn\.head\.(cls_logits|bbox_pred)\.", r"head.rpn.\1."),
    (r"^roi_heads\.box_head\.fc6\.", "head.roi.network.fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "head.roi.network.fcs.1."),
    (r"^roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"head.roi.network.\1."),
)

#: the same for its RetinaNet
_RETINA_RENAMES = (
    *_RENAMES[:3],
    (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.extra_convs.0."),
    (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.extra_convs.1."),
    (r"^head\.classification_head\.conv\.(\d+)\.0\.(weight|bias)$", r"head.cls_tower.convs.\1.\2"),
    (r"^head\.regression_head\.conv\.(\d+)\.0\.(weight|bias)$", r"head.box_tower.convs.\1.\2"),
    (r"^head\.classification_head\.cls_logits\.", "head.cls_logits."),
    (r"^head\.regression_head\.bbox_reg\.", "head.bbox_pred."),
)

#: of its towers, whose published names are from before that change: every second module is a ReLU
_OLD_TOWER = re.compile(r"^(head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)$")


def from_torchvision(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    """A state dict of torchvision's ``fasterrcnn_resnet50_fpn`` or ``retinanet_resnet50_fpn``: see below."""
    is_retina = any(key.startswith("head.classification_head.") for key in state)
    return (from_retinanet if is_retina else from_faster_rcnn)(state, categories)


def from_retinanet(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    """A state dict of torchvision's ``retinanet_resnet50_fpn`` for detkit's model ``retinanet_torchvision``.

    torchvision has a row for class 0, which nothing ever is; classes are matched as in :func:`from_faster_rcnn`.

    Raises:
        ValueError: a key that such a model does not have.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        old = _OLD_TOWER.match(key)
        name = _rename(f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else key, _RETINA_RENAMES)
        if key.endswith("num_batches_tracked"):
            continue
        if name is None:
            raise ValueError(f"{key!r} is not a key of torchvision's retinanet_resnet50_fpn")
        renamed[name] = value
    layer, boxes = "head.cls_logits", "head.bbox_pred.bias"
    if f"{layer}.bias" not in renamed or boxes not in renamed:
        raise ValueError("the state dict of torchvision's retinanet_resnet50_fpn must have both of its last layers")
    anchors = len(renamed[boxes]) // 4
    rows = _class_rows(len(renamed[f"{layer}.bias"]) // anchors, categories)
    for kind in ("weight", "bias"):
        value = renamed.pop(f"{layer}.{kind}")
        if rows is not None:
            renamed[f"{layer}.{kind}"] = value.unflatten(0, (anchors, -1))[:, rows].flatten(0, 1)
    return renamed, rows is not None


def from_faster_rcnn(state: Mapping[str, Tensor], categories: Categories) -> tuple[dict[str, Tensor], bool]:
    """A state dict of torchvision's ``fasterrcnn_resnet50_fpn`` for detkit's model ``faster_rcnn_fpn_torchvision``.

    torchvision counts background as class 0, detkit last. Classes are matched by name with the published COCO weights
    (91 rows, some unused), by position otherwise.

    Returns:
        the renamed state dict, and whether the class layers are in it: they are left out where the class lists differ.

    Raises:
        ValueError: a key that such a model does not have.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        name = _rename(key, _RENAMES)
        if name is None:
            raise ValueError(f"{key!r} is not a key of torchvision's fasterrcnn_resnet50_fpn")
        renamed[name] = value
    score = "head.roi.network.cls_score.weight"
    if score not in renamed:
        raise ValueError("the state dict of torchvision's fasterrcnn_resnet50_fpn must have a box predictor")
    rows = _class_rows(renamed[score].shape[0], categories)
    for layer in ("cls_score", "bbox_pred"):
        for kind in ("weight", "bias"):
            name = f"head.roi.network.{layer}.{kind}"
            value = renamed.pop(name)
            if rows is not None and layer == "cls_score":
                renamed[name] = value[[*rows, 0]]
            elif rows is not None:
                renamed[name] = value.unflatten(0, (-1, 4))[rows].flatten(0, 1)
    return renamed, rows is not None


def _rename(key: str, renames: Sequence[tuple[str, str]]) -> str | None:
    for pattern, replacement in renames:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return None


def _class_rows(num_rows: int, categories: Categories) -> Sequence[int] | None:
    """The rows of torchvision's predictor that belong to ``categories``; None where they cannot be told."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if num_rows == len(names) and set(categories.names) <= set(names):
        return [names.index(name) for name in categories.names]
    if num_rows == len(categories) + 1:
        return list(range(1, num_rows))
    return None


def load_converted(model: torch.nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load ``state`` into ``model`` and return the names that it lacks.

    Raises:
        ValueError: a name that the model does not have, or a tensor of another shape.
    """
    own = model.state_dict()
    foreign = sorted(state.keys() - own.keys())
    wrong = [
        f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
        for k in sorted(state.keys() & own.keys())
        if state[k].shape != own[k].shape
    ]
    if foreign or wrong:
        raise ValueError(
            f"the weights do not fit the model: {len(foreign)} unknown {foreign[:3]}, {len(wrong)} of another shape "
            f"{wrong[:3]}"
        )
    model.load_state_dict(dict(state), strict=False)
    return sorted(own.keys() - state.keys())
