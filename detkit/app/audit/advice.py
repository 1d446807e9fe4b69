"""What to change so that more objects get something to learn from; each change is tried on the boxes first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from detkit.app.audit.found import GOOD_FIT, Advice, Audit
from detkit.app.audit.plan import Planner
from detkit.config import ConfigError, build
from detkit.models import AssigningHead, build_detector
from detkit.structures import Batch, Categories, Images

#: Objects, about, on which changes are tried: of COCO's images, which have seven each, 200 would take minutes.
_NUM_TRIED = 600

#: A map shows what an object is from two of its cells on (see tools/inspect_model.py).
_LEAST_CELLS = 2

#: From this share of such objects on, anchors of their size help less than a larger input: on data=shapes_tiny, where
#: it is a half, AR of small objects rose by 3 points with the anchors and by 15 with the input (docs/see_why.md).
_MANY_TINY = 0.25

#: A first look at all changes takes one of so many of these.
_SCREENED = 4

#: A change is worth its words from this gain on, as a share of all objects.
_WORTH = 0.02

#: Changes that are told beside a larger input.
_MOST = 3

#: Arguments of transforms that are sizes in px: all of them make the input larger.
_SIZES = ("size", "short", "long", "height", "width")


class _Change(NamedTuple):
    """``overrides`` for the command line, what they do in words, and the planner and the scale of the input that they
    amount to."""

    overrides: str
    words: str
    planner: Planner
    scale: float = 1.0


def advise(
    node: Mapping[str, Any],
    sizes: Mapping[str, Any],
    audit: Audit,
    planner: Planner,
    batches: Sequence[Batch],
    categories: Categories,
) -> list[Advice]:
    """The changes that help, the best first, and a larger input last, or first for tiny objects.

    One line where nothing needs to change or helps.

    Args:
        node: the whole configuration, resolved.
        sizes: its ``transform`` as it was written, where one size may stand for many.
    """
    chosen = batches[:: max(1, len(audit.labels) // _NUM_TRIED)]
    has_anchors = any(_anchor_nodes(node["model"], ""))
    words = "no reference that overlaps them by half" if has_anchors else "no reference"
    before = poor_share(planner, chosen)
    if before < _WORTH:
        return [Advice(f"{before:.1%} of the objects have {words}: nothing needs to change.", "", before)]
    changes = list({c.overrides: c for c in _changes(node, sizes, audit, planner, categories)}.values())
    tiny = float((audit.sides[audit.poor] < _LEAST_CELLS * min(planner.strides)).mean()) if has_anchors else 0.0
    promising = _the_best(_tried(changes, chosen[::_SCREENED]), 2 * _MOST, tiny)
    number = sum(len(batch) for batch in chosen)
    notes = f" (tried on {number} of the images)" if number < audit.num_images else ""
    if tiny >= _MANY_TINY:
        notes += f"; {tiny:.0%} of them are smaller than two cells of the finest level, where anchors help little"
    helpful = []
    for after, (overrides, what, *_) in _the_best(_tried([c for _, c in promising], chosen), _MOST, tiny):
        if after < before - _WORTH:
            shares = f"{after:.1%} instead of {before:.1%} of the objects have {words}"
            helpful.append(Advice(f"{overrides}: {what}; {shares}{notes}", overrides, after))
    if helpful:
        return helpful
    return [Advice(f"{before:.1%} of the objects have {words}, and no change that was tried helps much.", "", before)]


def _tried(changes: Sequence[_Change], batches: Sequence[Batch]) -> list[tuple[float, _Change]]:
    """The share of objects with few references after each of ``changes``."""
    tried = []
    for change in changes:
        with suppress(ValueError, AssertionError):  # a head for one input size
            tried.append((poor_share(change.planner, batches, change.scale), change))
    return tried


def _the_best(tried: Sequence[tuple[float, _Change]], count: int, tiny: float) -> list[tuple[float, _Change]]:
    """The changes to tell of: ``count`` at the same input size, which cost little, before a larger input.

    The larger input comes first where a share ``tiny`` of the objects is so small that the maps hardly show them, which
    no other anchors change.
    """
    ordered = sorted(tried, key=lambda each: each[0])
    same, larger = ([each for each in ordered if (each[1].scale > 1) == is_larger] for is_larger in (False, True))
    if tiny < _MANY_TINY:
        return same[:count] + larger[:1]
    return larger[:1] + same[:count]


def poor_share(planner: Planner, batches: Sequence[Batch], scale: float = 1.0) -> float:
    """The share of objects without a reference that overlaps them enough, with the input ``scale`` times as large."""
    poor = total = 0
    scaled = [_scaled(batch, scale) for batch in batches]
    for batch, assigned in zip(scaled, planner.each(scaled), strict=True):
        for target, found in zip(batch.targets, assigned, strict=True):
            fit = found.fit[~target.ignore]
            poor, total = poor + int((fit < GOOD_FIT).sum()), total + len(fit)
    return poor / max(total, 1)


def _changes(
    node: Mapping[str, Any], sizes: Mapping[str, Any], audit: Audit, planner: Planner, categories: Categories
) -> Iterator[_Change]:
    for key, anchors in _anchor_nodes(node["model"], "model"):
        for name, words, values in _other_anchors(anchors, audit, planner.strides):
            other = planner.with_head(_head(node, f"{key}.{name}", values, planner, categories))
            yield _Change(f"{key}.{name}={_in_yaml(values)}", words, other)
    for values, words in _other_values(node["model"], audit, planner):
        with suppress(ValueError):  # the backbone has no such stride
            other = Planner(build_detector(_with(node, values), categories))
            yield _Change(" ".join(f"{key}={_in_yaml(value)}" for key, value in values.items()), words, other)
    long_side = float(np.median([max(meta.size) for meta in audit.metas]))
    for scale in (1.5, 2.0):
        words = f"an input {scale:g} times as large, which takes about {scale**2:.2g} times as long"
        yield _Change(_larger_input(sizes, scale, long_side), words, planner, scale)


def _other_values(model: Mapping[str, Any], audit: Audit, planner: Planner) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Keys with other values, other than anchors', and what they change."""
    if isinstance(stride := model.get("neck", {}).get("stride"), int) and stride > 1:
        yield {"model.neck.stride": stride // 2}, "cells of half the side"
    for values, words in planner.asked.alternatives(torch.from_numpy(audit.boxes[audit.poor])):
        yield {f"model.{name}": value for name, value in values.items()}, words


def _anchor_nodes(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if node.get("_target_") == "AnchorGrid":
            yield key, node
        for name, value in node.items():
            yield from _anchor_nodes(value, f"{key}.{name}")


def _other_anchors(
    anchors: Mapping[str, Any], audit: Audit, strides: Sequence[float]
) -> Iterator[tuple[str, str, list[float]]]:
    """An argument of AnchorGrid, what changes, and another value for it."""
    scales, ratios = sorted(anchors["scales"]), sorted(anchors["ratios"])
    yield "scales", "anchors half as large", [s / 2 for s in scales]
    yield "scales", "anchors a quarter as large", [s / 4 for s in scales]
    yield "scales", "anchors twice as large", [s * 2 for s in scales]
    yield "scales", "smaller anchors too", [scales[0] / 2, *scales]
    yield "scales", "smaller anchors too", [scales[0] / 4, scales[0] / 2, *scales]
    yield "scales", "larger anchors too", [*scales, scales[-1] * 2]
    for stride in (min(strides), max(strides)):
        # what the poor ones are on the finest level, where the small ones belong, or on the coarsest
        wanted = (np.quantile(audit.sides[audit.poor], (0.25, 0.5, 0.75)) / stride).round(1)
        if wanted[0] > 0:
            yield "scales", "anchors of their size too", sorted({*scales, float(wanted[1])})
            yield "scales", "anchors of their sizes too", sorted({*scales, float(wanted[0]), float(wanted[2])})
    yield "ratios", "wider anchors too", [ratios[0] / 2, *ratios]
    yield "ratios", "taller anchors too", [*ratios, ratios[-1] * 2]
    yield "ratios", "wider and taller anchors too", [ratios[0] / 2, *ratios, ratios[-1] * 2]


def _head(
    node: Mapping[str, Any], key: str, value: Sequence[float], planner: Planner, categories: Categories
) -> AssigningHead:
    """The head of the configuration with another value at ``key``."""
    model = _with(node, {key: list(value)})
    head = build(model["head"], key="model.head", in_spec=planner.out_spec, num_classes=len(categories))
    if not isinstance(head, AssigningHead):
        raise ConfigError(f"model.head: {type(head).__name__} does not assign by where objects are")
    return head


def _with(node: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The model of the configuration with other ``values`` at their keys."""
    changed: Any = {"model": copy.deepcopy(dict(node["model"]))}
    for key, value in values.items():
        *way, last = key.split(".")
        place = changed
        for name in way:
            place = place[name]
        place[last] = value
    return changed["model"]


def _in_yaml(value: Any) -> str:
    """``value`` as an override has it: numbers by %g, lists of them in brackets, false and true."""
    if isinstance(value, list):
        return "[" + ",".join(map(_in_yaml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _larger_input(sizes: Mapping[str, Any], scale: float, long_side: float) -> str:
    """Overrides that make the input larger: each size that is written down, or a step that resizes where none is."""
    written = [f"transform.{key}={_times(value, scale)}" for key, value in _written_sizes(sizes)]
    if written:
        return " ".join(written)
    size = round(long_side * scale)
    return " ".join(f"'transform.{split}.resize={{_target_: ResizeFit, size: {size}}}'" for split in ("train", "val"))


def _written_sizes(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of the sizes in ``node``; those that follow another one are texts, and left out."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        here = f"{key}.{name}" if key else name
        if name in _SIZES and isinstance(value, (int, list)):
            yield here, value
        yield from _written_sizes(value, here)


def _times(value: Any, scale: float) -> str:
    if isinstance(value, list):
        return "[" + ",".join(_times(v, scale) for v in value) + "]"
    return str(round(value * scale))


def _scaled(batch: Batch, scale: float) -> Batch:
    if scale == 1:
        return batch

    def larger(size: tuple[int, int]) -> tuple[int, int]:
        return round(size[0] * scale), round(size[1] * scale)

    # padded as before: by the least common step of what loaders pad to and of what a pyramid wants
    h, w = (-(-side // 32) * 32 for side in larger(batch.images.padded_size))
    metas = tuple(replace(meta, size=larger(meta.size)) for meta in batch.images.meta)
    pixels = torch.zeros(1, dtype=torch.uint8).expand(len(metas), 3, h, w)
    targets = tuple(replace(target, boxes=target.boxes * scale, landmarks=None) for target in batch.targets)
    return Batch(Images(pixels, metas), targets)
