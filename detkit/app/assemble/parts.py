"""The pieces of an experiment, built from its configuration: what the tools have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from detkit.config import ConfigError, build
from detkit.config.ranges import check_range
from detkit.config.registry import default_node, parameters, resolve
from detkit.config.validate import is_component
from detkit.data.balance import classes_of_images
from detkit.data.datasets.base import DetectionDataset
from detkit.data.subset import Subset
from detkit.data.transforms import Transform
from detkit.evaluation import Evaluator
from detkit.models import Backbone
from detkit.structures import Categories
from detkit.utils.log import logger

#: More of them than any machine has cores cannot even be started.
_MOST_THREADS = 1024

#: Seconds in thirty days; torch takes no such number without end.
_LONGEST_WAIT = 30 * 24 * 3600


def check_values(node: Mapping[str, Any]) -> None:
    """Refuse what no number at the root of a configuration can mean.

    Raises:
        ConfigError: the message names the key.
    """
    check_range("threads", node.get("threads"), 1, _MOST_THREADS)
    check_range("seed", node.get("seed"), 0, 2**63 - 1)
    check_range("process_timeout", node.get("process_timeout"), 1, _LONGEST_WAIT)


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means; "auto" is CUDA where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith(("Expected one of", "Invalid device string")):  # and all that torch was ever built for
            reason = "it may be auto, cpu, cuda or cuda:N"
        raise ConfigError(f"device: {name!r} is not there: {reason}") from error
    return device


def build_dataset(data: Mapping[str, Any], split: str) -> DetectionDataset:
    """The ``split`` of a ``data`` section, with what its check found in the log.

    Raises:
        ConfigError: it cannot be opened, or the subset cannot be taken of it.
    """
    dataset = part_of(build(data[split], key=f"data.{split}"), data, split)
    logger.info("%s", dataset.report)
    return dataset


def part_of(dataset: DetectionDataset, data: Mapping[str, Any], split: str) -> DetectionDataset:
    """Of the whole ``split`` of a ``data`` section what its subset says is seen.

    Raises:
        ConfigError: the subset cannot be taken of it.
    """
    if split != "train" or data.get("subset") is None:
        return dataset
    try:
        return Subset(**data["subset"]).of(dataset)
    except ValueError as error:
        raise ConfigError(f"data.subset.{error}") from error


def build_transforms(steps: Mapping[str, Any], key: str) -> list[Transform]:
    """The steps in their order; a step set to null is left out."""
    return [build(step, key=f"{key}.{name}") for name, step in steps.items() if step is not None]


def without_pretrained_weights(model: dict[str, Any]) -> None:
    """Let the backbone of a ``model`` section start at random: a checkpoint is about to bring its weights."""
    backbone = model.get("backbone", {})
    if is_component(backbone):
        withhold_pretrained_weights(backbone, resolve(backbone["_target_"]))


def withhold_pretrained_weights(node: dict[str, Any], cls: type) -> None:
    """Let ``node`` of the class ``cls`` start at random where it is a backbone, also one that takes weights unasked."""
    known = parameters(cls) if issubclass(cls, Backbone) else {}
    for argument, value in (("weights", None), ("pretrained", False), ("checkpoint", None)):
        if argument in known:
            node[argument] = value


def warn_of_frozen_chance(model: Mapping[str, Any], detector: nn.Module) -> None:
    """Say where stages of a backbone stay at the random values that they start from; nothing else brings weights."""
    backbone = model.get("backbone", {})
    if not is_component(backbone):
        return
    cls = resolve(backbone["_target_"])
    chosen = default_node(cls) | dict(backbone)
    at_random = dict(chosen)
    withhold_pretrained_weights(at_random, cls)
    frozen = [name for name, p in detector.named_parameters() if name.startswith("backbone.") and not p.requires_grad]
    if frozen and at_random == chosen:
        logger.warning(
            "model.backbone starts from random weights, and %d of its tensors are frozen at them, %s to %s: name "
            "weights (init_from or those of model.backbone), or let all stages train (model.backbone.frozen_stages=0)",
            len(frozen), frozen[0], frozen[-1],
        )  # fmt: skip


def check_same_classes(train: Categories, other: Categories, what: str) -> None:
    """Refuse a data set of other classes than the ones trained on.

    Raises:
        ConfigError: the message tells the difference.
    """
    if difference := train.difference(other):
        raise ConfigError(f"{what} has other classes than the model: {difference}")


def build_evaluator(
    node: Mapping[str, Any], dataset: DetectionDataset, training: Callable[[], DetectionDataset]
) -> Evaluator:
    """The evaluator of ``node`` for ``dataset``.

    Args:
        training: opens the training data, of which some numbers ask how frequent a class is there: in all of its
            images, so that these are numbers of the same classes whatever subset a detector has seen.

    Raises:
        ConfigError: its values do not fit, or there is no training data where it is needed.
    """
    runtime: dict[str, Any] = {"categories": dataset.categories, "truths": dataset.truths}
    if node.get("frequency_bounds") is not None:
        train_set = training().whole
        _, label = classes_of_images(train_set.truths)
        runtime["class_images"] = np.bincount(label, minlength=len(train_set.categories)).tolist()
    return build(node, key="evaluator")(**runtime)
