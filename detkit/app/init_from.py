"""Start from weights that are there already: a checkpoint of detkit's, or torchvision's published detector."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from detkit.config import ConfigError
from detkit.engine.checkpoint import load_checkpoint
from detkit.models.converters import from_torchvision, load_converted
from detkit.structures import Categories
from detkit.utils.log import logger

_TORCHVISION = "torchvision:"


def initialize(detector: nn.Module, source: str, categories: Categories) -> None:
    """Load the weights of ``source`` into ``detector``.

    Args:
        source: path of a checkpoint of detkit's, or ``torchvision:`` and the path of a state dict of its
            ``fasterrcnn_resnet50_fpn``. Layers for other classes than ``categories`` keep their random weights.

    Raises:
        ConfigError: there is no such file, or it does not fit the model.
    """
    try:
        if source.startswith(_TORCHVISION):
            _from_torchvision(detector, Path(source.removeprefix(_TORCHVISION)), categories)
        else:
            _from_checkpoint(detector, Path(source), categories)
    except (ValueError, OSError) as error:
        raise ConfigError(f"init_from: {error}") from error


def _from_torchvision(detector: nn.Module, path: Path, categories: Categories) -> None:
    if not path.is_file():
        raise ValueError(f"no file {path}")
    state, with_classes = from_torchvision(torch.load(path, map_location="cpu", weights_only=True), categories)
    missing = load_converted(detector, state)
    if missing:
        logger.warning("%s: %d tensors keep their random values: %s", path, len(missing), ", ".join(missing))
    if not with_classes:
        logger.warning("%s is of other classes: the last layers start anew", path)


def _from_checkpoint(detector: nn.Module, path: Path, categories: Categories) -> None:
    checkpoint = load_checkpoint(path)
    state, own = dict(checkpoint.weights), detector.state_dict()
    if difference := checkpoint.categories.difference(categories):
        other = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
        logger.warning("%s is of other classes (%s): starting anew with %s", path, difference, ", ".join(other))
        state = {k: v for k, v in state.items() if k not in other}
    load_converted(detector, state)
    logger.info("weights of %s, step %d", path, checkpoint.step)
