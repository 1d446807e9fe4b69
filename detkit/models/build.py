"""From a model's configuration to a detector: shapes flow from part to part, the number of classes from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detkit.config import ConfigError, build
from detkit.models.backbones.check import check_spec
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import Backbone, Detector
from detkit.structures import Categories


def build_detector(cfg: Any, categories: Categories) -> Detector:
    """The detector that ``cfg`` (the ``model`` section) describes, for the classes of ``categories``.

    A section with ``_target_`` is a detector of its own; otherwise it has ``backbone``, ``neck`` and ``head``.

    Raises:
        ConfigError: a part refuses its values, or the backbone's maps are not of the channels and strides it declares.
    """
    if "_target_" in cfg:
        return build(cfg, key="model", num_classes=len(categories))
    backbone = build(cfg["backbone"], key="model.backbone")
    _check_backbone(backbone, cfg["backbone"])
    neck = build(cfg["neck"], key="model.neck", in_spec=backbone.out_spec)
    head = build(cfg["head"], key="model.head", in_spec=neck.out_spec, num_classes=len(categories))
    return ComposedDetector(backbone=backbone, neck=neck, head=head)


def _check_backbone(backbone: Backbone, node: Mapping[str, Any]) -> None:
    name = f"{node['_target_']} {node['name']}" if "name" in node else node["_target_"]
    try:
        check_spec(backbone, backbone.out_spec, name, backbone.example_size)
    except ValueError as error:
        raise ConfigError(f"model.backbone: {error}") from error
