"""From a model's configuration to a detector: shapes flow from part to part, the number of classes from the data."""

from __future__ import annotations

from typing import Any

from detkit.config import build
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import Detector
from detkit.structures import Categories


def build_detector(cfg: Any, categories: Categories) -> Detector:
    """The detector that ``cfg`` (the ``model`` section) describes, for the classes of ``categories``.

    A section with ``_target_`` is a detector of its own; otherwise it has ``backbone``, ``neck`` and ``head``.
    """
    if "_target_" in cfg:
        return build(cfg, key="model", num_classes=len(categories))
    backbone = build(cfg["backbone"], key="model.backbone")
    neck = build(cfg["neck"], key="model.neck", in_spec=backbone.out_spec)
    head = build(cfg["head"], key="model.head", in_spec=neck.out_spec, num_classes=len(categories))
    return ComposedDetector(backbone=backbone, neck=neck, head=head)
