"""Whether the data of a run have what it is for: objects to learn and to find, and no more than may come out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from detkit.config import ConfigError
from detkit.data.datasets.base import DetectionDataset
from detkit.data.sample import trainable_boxes
from detkit.engine.monitor import is_loss
from detkit.evaluation import CocoEvaluator, Evaluator
from detkit.matching import Selector
from detkit.utils.log import logger

_MOST_NAMED = 10
_MOST_SHARED = 3


def refuse_nothing_to_learn(dataset: DetectionDataset) -> None:
    """Refuse a training set without one box that a detector is to find.

    Raises:
        ConfigError: there is none; the message tells what there is instead, and the paths that were looked in.
    """
    if any((trainable_boxes(truth)[1] & ~truth.crowd).any() for truth in dataset.truths):
        return
    num_crowd = sum(int(truth.crowd.sum()) for truth in dataset.truths)
    num_boxes = sum(len(truth.boxes) for truth in dataset.truths)
    instead = f"{num_crowd} crowd or difficult, {num_boxes - num_crowd} without an area inside their image"
    lines = [
        f"data.train: nothing to learn: not one box to train on in {len(dataset)} images, "
        + (f"of {num_boxes} boxes: {instead}" if num_boxes else "which have no boxes at all"),
        f"looked in: {_places(dataset)}",
        *map(str, dataset.report.findings),
    ]
    raise ConfigError("\n  ".join(lines))


def warn_of_validation(
    train_set: DetectionDataset, val_set: DetectionDataset, evaluator: Evaluator | None, monitor: str
) -> None:
    """Say which scores of ``val_set`` will not be defined, and which of its classes nothing is learned of."""
    wanted = _totals(val_set)
    without_best = "" if is_loss(monitor) else f", so there will be no best.pt by trainer.monitor={monitor}"
    if not wanted.any():
        logger.warning(
            "data.val: not one object to find in %d images (looked in: %s): AP is not defined%s",
            *(len(val_set), _places(val_set), without_best),
        )
    elif isinstance(evaluator, CocoEvaluator) and not _is_defined(monitor, val_set, evaluator):
        logger.warning("data.val: no object of the size that %s counts%s", monitor, without_best)
    unlearned = [val_set.categories.names[k] for k in np.flatnonzero((wanted > 0) & (_totals(train_set) == 0))]
    if unlearned:
        more = ", ..." if len(unlearned) > _MOST_NAMED else ""
        logger.warning(
            "data.train: not one object of %d classes that data.val has; their AP will be 0: %s",
            *(len(unlearned), ", ".join(unlearned[:_MOST_NAMED]) + more),
        )


def warn_of_shared(train_set: DetectionDataset, val_set: DetectionDataset) -> None:
    """Say which pictures of ``val_set`` are trained on, whatever links lead to them: of those a score tells nothing."""
    known = set(_resolved([truth.file for truth in train_set.truths]))
    files = [truth.file for truth in val_set.truths]
    shared = [file for file, path in zip(files, _resolved(files), strict=True) if path in known]
    if shared:
        more = ", ..." if len(shared) > _MOST_SHARED else ""
        logger.warning(
            "%d of %d images of data.val are in data.train too (%s): AP will be too high",
            *(len(shared), len(files), ", ".join(Path(file).name for file in shared[:_MOST_SHARED]) + more),
        )


def _resolved(files: Sequence[str]) -> Iterator[str]:
    """Where each of ``files`` really lies: a folder is asked once, which costs less than a look at each file."""
    folders: dict[str, tuple[str, set[str]]] = {}
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder), _links_in(folder)
        place, links = folders[folder]
        yield os.path.realpath(file) if name in links else os.path.join(place, name)


def _links_in(folder: str) -> set[str]:
    if not os.path.isdir(folder or "."):
        return set()
    with os.scandir(folder or ".") as entries:
        return {entry.name for entry in entries if entry.is_symlink()}


def warn_of_limits(dataset: DetectionDataset, split: str, detector: nn.Module, evaluator: Evaluator | None) -> None:
    """Say where an image has more objects than detections may come out or count, and what that costs at least."""
    for name, module in detector.named_modules():
        selector = getattr(module, "selector", None)
        if isinstance(selector, Selector):
            key = f"model.{name}.selector.max_detections={selector.max_detections}"
            _warn_of_limit(dataset, split, key, selector.max_detections, of_class=False)
    if isinstance(evaluator, CocoEvaluator):
        limit = evaluator.max_detections[-1]
        key = f"evaluator.max_detections={list(evaluator.max_detections)}"
        _warn_of_limit(dataset, split, key, limit, of_class=True)


def highest_recall(dataset: DetectionDataset, limit: int, of_class: bool) -> tuple[int, float]:
    """What a perfect detector reaches where ``limit`` detections of an image count, or of an image and class.

    Returns:
        How many images have more objects, and the largest mean of the classes' recall: where not all objects of an
        image can come out, those of the rarest classes do.
    """
    totals = _totals(dataset)
    lost = np.zeros(len(totals))
    num_images = 0
    rare_first = np.argsort(totals, kind="stable")
    for counts in _counts(dataset):
        if of_class:
            found = np.minimum(counts, limit)
        else:
            room = limit - np.concatenate([[0], np.cumsum(counts[rare_first])[:-1]])
            found = np.zeros_like(counts)
            found[rare_first] = np.minimum(counts[rare_first], np.maximum(room, 0))
        num_images += bool((found < counts).any())
        lost += counts - found
    seen = totals > 0
    return num_images, float(np.mean(1 - lost[seen] / totals[seen])) if seen.any() else 1.0


def _warn_of_limit(dataset: DetectionDataset, split: str, key: str, limit: int, of_class: bool) -> None:
    num_images, recall = highest_recall(dataset, limit, of_class)
    if num_images:
        logger.warning(
            "%s: more objects%s than %s lets %s in %d of %d images: even a perfect detector reaches no AR above %.3f",
            *(split, " of a class" if of_class else "", key, "count" if of_class else "out"),
            *(num_images, len(dataset), recall),
        )


def _counts(dataset: DetectionDataset) -> Iterator[np.ndarray]:
    """The objects of each class (K,) in each image; crowds are none."""
    for truth in dataset.truths:
        yield np.bincount(truth.labels[~truth.crowd], minlength=len(dataset.categories))


def _totals(dataset: DetectionDataset) -> np.ndarray:
    return sum(_counts(dataset), np.zeros(len(dataset.categories), dtype=np.int64))


def _is_defined(monitor: str, dataset: DetectionDataset, evaluator: CocoEvaluator) -> bool:
    area = next((m.area for m in evaluator.definitions if m.name == monitor), None)
    low, high = next(bounds for name, *bounds in evaluator.settings.areas if name == (area or "all"))
    return any(((t.area >= low) & (t.area <= high) & ~t.crowd).any() for t in dataset.truths)


def _places(dataset: DetectionDataset) -> str:
    """The paths that the data set was read from, as far as they are known."""
    folders = sorted({str(Path(truth.file).parent) for truth in dataset.truths})[:_MOST_NAMED]
    return ", ".join(dict.fromkeys([dataset.report.source, *dataset.looked_in, *folders]))
