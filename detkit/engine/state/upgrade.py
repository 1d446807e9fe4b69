"""Checkpoints of earlier formats under today's names: what moved, in their weights and in their configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Format 2 cut the RoI head in three and gave every head a selector.
_WEIGHTS_1 = (
    (r"^head\.roi\.(fcs|cls_score|bbox_pred)\.", r"head.roi.network.\1."),
    (r"^head\.roi\.deform\.", r"head.roi.pool."),
)
_POOLS_1 = {"align": "RoIAlign", "deform": "DeformRoIPool", "modulated_deform": "ModulatedDeformRoIPool"}
_OF_POOL = ("resolution", "sampling_ratio", "num_levels", "canonical_size", "canonical_stride")
_OF_NETWORK = ("hidden", "class_agnostic")
_OF_SELECTOR = ("score_threshold", "nms_iou", "max_detections", "min_size")


def upgrade_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of format 1 under the names of format 2."""
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _WEIGHTS_1:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run of format 1, as format 2 says it. One that is so already comes back as it is."""
    head = _at(config, "model", "head")
    if not isinstance(head, Mapping):
        return dict(config)
    if head.get("_target_") == "TwoStageHead" and _is_old_roi(head.get("roi")):
        head = {"rpn_levels": None, "roi_levels": None, **head, "roi": _roi(head["roi"])}
    elif "selector" not in head and any(name in head for name in _OF_SELECTOR):
        head = _with_selector(head)
    return {**config, "model": {**config["model"], "head": head}}


def _is_old_roi(roi: Any) -> bool:
    return isinstance(roi, Mapping) and roi.get("_target_") == "RoIHead" and "pool" not in roi


def _roi(roi: Mapping[str, Any]) -> dict[str, Any]:
    pool: dict[str, Any] = {"_target_": _POOLS_1[roi.get("pooling", "align")], **_taken(roi, _OF_POOL)}
    if pool["_target_"] == "RoIAlign":
        pool |= _taken(roi, ("aligned",))
    network = {"_target_": "RegionMLP", "_partial_": True, **_taken(roi, _OF_NETWORK)}
    moved = {*_OF_POOL, *_OF_NETWORK, "aligned", "pooling"}
    return _with_selector({"pool": pool, "network": network} | {k: v for k, v in roi.items() if k not in moved})


def _with_selector(head: Mapping[str, Any]) -> dict[str, Any]:
    selector = {"_target_": "Selector", **_taken(head, _OF_SELECTOR)}
    return {k: v for k, v in head.items() if k not in _OF_SELECTOR} | {"selector": selector}


def _taken(node: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: node[name] for name in names if name in node}


def _at(node: Any, *way: str) -> Any:
    for name in way:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
