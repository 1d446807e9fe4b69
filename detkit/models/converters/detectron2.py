"""detectron2's Faster R-CNN and RetinaNet with a ResNet and a feature pyramid, under detkit's names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from detkit.models.converters.naming import Rename, of_dense_classes, of_region_classes, renamed
from detkit.structures import Categories

#: What a file may hold beside weights; the style of its pixels is told from the first two.
BESIDE = re.compile(r"^(pixel_mean|pixel_std|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+)$")

#: detectron2 has the ratios of a size side by side, detkit the sizes of a ratio: of three each.
_BY_RATIO = [size * 3 + ratio for ratio in range(3) for size in range(3)]


def _features(finest: int) -> tuple[Rename, ...]:
    """ResNet and pyramid, whose finest level has the number ``finest``."""
    stages = [(rf"^backbone\.bottom_up\.res{i}\.(\d+)", rf"backbone.layer{i - 1}.\1") for i in range(2, 6)]
    levels = [(kind, i) for kind in ("lateral", "output") for i in range(finest, 6)]
    return (
        (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
        (r"^backbone\.bottom_up\.stem\.conv1\.", "backbone.conv1."),
        *((rf"{theirs}\.conv(\d)\.norm\.", rf"{ours}.bn\2.") for theirs, ours in stages),
        *((rf"{theirs}\.conv(\d)\.", rf"{ours}.conv\2.") for theirs, ours in stages),
        *((rf"{theirs}\.shortcut\.norm\.", rf"{ours}.downsample.1.") for theirs, ours in stages),
        *((rf"{theirs}\.shortcut\.", rf"{ours}.downsample.0.") for theirs, ours in stages),
        *((rf"^backbone\.fpn_{kind}{i}\.", f"neck.{kind}.{i - finest}.") for kind, i in levels),
        (r"^backbone\.top_block\.p6\.", "neck.extra_convs.0."),
        (r"^backbone\.top_block\.p7\.", "neck.extra_convs.1."),
    )


_RCNN: tuple[Rename, ...] = (
    *_features(2),
    (r"^proposal_generator\.rpn_head\.conv\.", "head.rpn.conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "head.rpn.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "head.rpn.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "head.roi.network.fcs.0."),
    (r"^roi_heads\.box_head\.fc2\.", "head.roi.network.fcs.1."),
    (r"^roi_heads\.box_predictor\.(cls_score|bbox_pred)\.", r"head.roi.network.\1."),
)
_RETINA: tuple[Rename, ...] = (
    *_features(3),
    *((rf"^head\.cls_subnet\.{2 * i}\.", f"head.cls_tower.convs.{i}.") for i in range(4)),
    *((rf"^head\.bbox_subnet\.{2 * i}\.", f"head.box_tower.convs.{i}.") for i in range(4)),
    (r"^head\.cls_score\.", "head.cls_logits."),
    (r"^head\.bbox_pred\.", "head.bbox_pred."),
)


def detectron2_preset(state: Mapping[str, Tensor]) -> str:
    """The model preset that is built as the network of ``state``."""
    return "retinanet_detectron2" if _is_retinanet(state) else "faster_rcnn_fpn_detectron2"


def from_detectron2(
    state: Mapping[str, Tensor], categories: Categories, names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], bool]:
    """A state dict of detectron2's for the preset that :func:`detectron2_preset` names; pixels stay as they are there.

    Args:
        names: of the classes in the file, if they are known; COCO's where it has 80.

    Returns:
        the renamed state dict, and whether the class layers are in it.

    Raises:
        UnfitError: its last layers are missing, or do not fit each other.
    """
    weights = {key: value for key, value in state.items() if not BESIDE.match(key)}
    if not _is_retinanet(state):
        found = renamed(weights, _RCNN, "detectron2's Faster R-CNN with a ResNet and a feature pyramid")
        return of_region_classes(found, categories, names, "detectron2's Faster R-CNN")
    found = renamed(weights, _RETINA, "detectron2's RetinaNet with a ResNet")
    found, with_classes = of_dense_classes(found, categories, names, "detectron2's RetinaNet")
    for layer in ("head.cls_logits", "head.bbox_pred"):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in found:
                found[name] = found[name].unflatten(0, (len(_BY_RATIO), -1))[_BY_RATIO].flatten(0, 1)
    return found, with_classes


def _is_retinanet(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("head.cls_subnet.") for key in state)
