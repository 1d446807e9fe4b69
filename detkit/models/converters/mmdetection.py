"""mmdetection's Faster R-CNN, RetinaNet and CenterNet, each with a ResNet, under detkit's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from detkit.models.converters.naming import Rename, of_dense_classes, of_region_classes, of_rows, renamed
from detkit.structures import Categories

_BACKBONE: Rename = (r"^backbone\.", "backbone.")
_RCNN: tuple[Rename, ...] = (
    _BACKBONE,
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"neck.lateral.\1."),
    (r"^neck\.fpn_convs\.(\d+)\.conv\.", r"neck.output.\1."),
    (r"^rpn_head\.rpn_conv\.", "head.rpn.conv."),
    (r"^rpn_head\.rpn_cls\.", "head.rpn.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "head.rpn.bbox_pred."),
    (r"^roi_head\.bbox_head\.shared_fcs\.(\d+)\.", r"head.roi.network.fcs.\1."),
    (r"^roi_head\.bbox_head\.fc_cls\.", "head.roi.network.cls_score."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "head.roi.network.bbox_pred."),
)
_RETINA: tuple[Rename, ...] = (
    _BACKBONE,
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"neck.lateral.\1."),
    (r"^neck\.fpn_convs\.([012])\.conv\.", r"neck.output.\1."),
    (r"^neck\.fpn_convs\.3\.conv\.", "neck.extra_convs.0."),
    (r"^neck\.fpn_convs\.4\.conv\.", "neck.extra_convs.1."),
    (r"^bbox_head\.cls_convs\.(\d+)\.conv\.", r"head.cls_tower.convs.\1."),
    (r"^bbox_head\.reg_convs\.(\d+)\.conv\.", r"head.box_tower.convs.\1."),
    (r"^bbox_head\.retina_cls\.", "head.cls_logits."),
    (r"^bbox_head\.retina_reg\.", "head.bbox_pred."),
)
#: A step is two of their layers: a convolution, deformable with an offset of its own, and a transposed one.
_CENTERNET: tuple[Rename, ...] = (
    _BACKBONE,
    *((rf"^neck\.deconv_layers\.{2 * i}\.conv\.conv_offset\.", f"neck.steps.{i}.conv.offset.") for i in range(3)),
    *((rf"^neck\.deconv_layers\.{2 * i}\.conv\.", f"neck.steps.{i}.conv.") for i in range(3)),
    *((rf"^neck\.deconv_layers\.{2 * i}\.bn\.", f"neck.steps.{i}.conv_norm.") for i in range(3)),
    *((rf"^neck\.deconv_layers\.{2 * i + 1}\.conv\.", f"neck.steps.{i}.up.") for i in range(3)),
    *((rf"^neck\.deconv_layers\.{2 * i + 1}\.bn\.", f"neck.steps.{i}.up_norm.") for i in range(3)),
    (r"^bbox_head\.heatmap_head\.([02])\.", r"head.heat.\1."),
    (r"^bbox_head\.offset_head\.([02])\.", r"head.offsets.\1."),
    (r"^bbox_head\.wh_head\.([02])\.", r"head.sizes.\1."),
)


def mmdetection_preset(state: Mapping[str, Tensor]) -> str:
    """The model preset that is built as the network of ``state``."""
    if any(key.startswith("bbox_head.heatmap_head.") for key in state):
        return "centernet_mmdetection"
    is_retina = any(key.startswith("bbox_head.retina_cls.") for key in state)
    return "retinanet_mmdetection" if is_retina else "faster_rcnn_fpn_mmdetection"


def from_mmdetection(
    state: Mapping[str, Tensor], categories: Categories, names: Sequence[str] | None = None
) -> tuple[dict[str, Tensor], bool]:
    """A state dict of mmdetection's for the preset that :func:`mmdetection_preset` names; pixels stay as they are.

    Arguments, result and errors are those of :func:`~detkit.models.converters.detectron2.from_detectron2`.
    """
    preset = mmdetection_preset(state)
    if preset == "faster_rcnn_fpn_mmdetection":
        what = "mmdetection's Faster R-CNN"
        found = renamed(state, _RCNN, f"{what} with a ResNet and a feature pyramid")
        return of_region_classes(found, categories, names, what)
    if preset == "retinanet_mmdetection":
        return of_dense_classes(renamed(state, _RETINA, what := "mmdetection's RetinaNet"), categories, names, what)
    what = "mmdetection's CenterNet"
    found = renamed(state, _CENTERNET, f"{what} with a ResNet and deformable convolutions")
    return of_rows(found, ("head.heat.2.weight", "head.heat.2.bias"), categories, names, what)
