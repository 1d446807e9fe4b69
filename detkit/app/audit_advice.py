"""What to change so that more objects get something to learn from; each change is tried on the boxes first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detkit.config import ConfigError, build
from detkit.models import Head
from detkit.structures import Batch, Categories, Images, Target

if TYPE_CHECKING:
    from detkit.app.audit import Audit, Planner

#: A positive reference should overlap its object so much. Assigners that give every object its best anchor give bad
#: ones too, and ties between anchors that all contain a small object give many of them.
GOOD_FIT = 0.5

#: Batches on which changes are tried.
_NUM_TRIED = 60

#: A change is worth its words from this gain on, as a share of all objects.
_WORTH = 0.02

#: Changes that are told.
_MOST = 4


@dataclass(frozen=True, slots=True)
class Advice:
    """``change``: an override for the command line, or what to do, empty for nothing; ``poor``: the share of objects
    with few references, as it is or with the change; ``text``: all of it for a reader."""

    text: str
    change: str
    poor: float


def advise(
    node: Mapping[str, Any], audit: Audit, planner: Planner, batches: Sequence[Batch], categories: Categories
) -> list[Advice]:
    """The changes that help, the best first; one line where nothing needs to change or helps.

    Args:
        node: the whole configuration, resolved.
    """
    chosen = batches[:: max(1, len(batches) // _NUM_TRIED)][:_NUM_TRIED]
    has_anchors = any(_anchor_nodes(node["model"]["head"], ""))
    words = "no reference that overlaps them by half" if has_anchors else "no reference"
    before = poor_share(planner, chosen)
    if before < _WORTH:
        return [Advice(f"{before:.1%} of the objects have {words}: nothing needs to change.", "", before)]
    tried = []
    for change, other, scale in _changes(node, audit, planner, categories):
        try:
            tried.append((poor_share(other, chosen, scale), change))
        except (ValueError, AssertionError):  # a head for one input size, say
            continue
    helpful = [
        Advice(f"{change}: {after:.1%} instead of {before:.1%} of the objects have {words}", change, after)
        for after, change in sorted(tried)
        if after < before - _WORTH
    ]
    if helpful:
        return helpful[:_MOST]
    instead = "neither other anchors nor a larger input change that much"
    return [Advice(f"{before:.1%} of the objects have {words}, and {instead}.", "", before)]


def poor_share(planner: Planner, batches: Sequence[Batch], scale: float = 1.0) -> float:
    """The share of objects without a reference that overlaps them enough, with the input ``scale`` times as large."""
    poor = total = 0
    for batch in batches:
        images, targets = _scaled(batch, scale)
        for target, found in zip(targets, planner.assigned(images, targets), strict=True):
            fit = found.fit[~target.ignore]
            poor, total = poor + int((fit < GOOD_FIT).sum()), total + len(fit)
    return poor / max(total, 1)


def _changes(
    node: Mapping[str, Any], audit: Audit, planner: Planner, categories: Categories
) -> Iterator[tuple[str, Planner, float]]:
    """Each change in words, the planner that has it, and the scale of the input."""
    poor = audit.sides[audit.poor]
    side = float(np.median(poor)) if len(poor) else float(np.median(audit.sides))
    for key, anchors in _anchor_nodes(node["model"]["head"], "model.head"):
        scales = anchors["scales"]
        wanted = round(side / min(planner.strides), 1)
        options = [[s / 2 for s in scales], sorted({*scales, min(scales) / 2}), sorted({*scales, max(scales) * 2})]
        options += [[s * 2 for s in scales], sorted({*scales, wanted})] if wanted > 0 else []
        for option in options:
            shown = "[" + ",".join(f"{s:g}" for s in option) + "]"
            yield f"{key}.scales={shown}", planner.with_head(_head(node, key, option, planner, categories)), 1.0
    for scale in (1.5, 2.0):
        yield f"an input {scale:g} times as large (the sizes in transform.train)", planner, scale


def _anchor_nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if node.get("_target_") == "AnchorGrid":
            yield key, node
        for name, value in node.items():
            yield from _anchor_nodes(value, f"{key}.{name}")


def _head(node: Mapping[str, Any], key: str, scales: Sequence[float], planner: Planner, categories: Categories) -> Head:
    """The head of the configuration with other anchor scales."""
    model = copy.deepcopy(dict(node["model"]))
    place: Any = {"model": model}
    for name in key.split("."):
        place = place[name]
    place["scales"] = list(scales)
    head = build(model["head"], key="model.head", in_spec=planner.out_spec, num_classes=len(categories))
    if not isinstance(head, Head):
        raise ConfigError(f"model.head: {type(head).__name__} is no head")
    return head


def _scaled(batch: Batch, scale: float) -> tuple[Images, Sequence[Target]]:
    if scale == 1:
        return batch.images, batch.targets

    def larger(size: tuple[int, int]) -> tuple[int, int]:
        return round(size[0] * scale), round(size[1] * scale)

    # padded as before: by the least common step of what loaders pad to and of what a pyramid wants
    h, w = (-(-side // 32) * 32 for side in larger(batch.images.padded_size))
    metas = tuple(replace(meta, size=larger(meta.size)) for meta in batch.images.meta)
    pixels = torch.zeros(1, dtype=torch.uint8).expand(len(metas), 3, h, w)
    return Images(pixels, metas), [replace(target, boxes=target.boxes * scale) for target in batch.targets]
