"""Start from weights that are there already: a checkpoint of detkit's, or a published detector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detkit.app.assemble.parts import without_pretrained_weights
from detkit.app.assemble.weights_origin import check_norms, describe_origin
from detkit.config import ConfigError
from detkit.engine.state.checkpoint import CheckpointError, load_checkpoint
from detkit.models import build_detector
from detkit.models.backbones.weights import read_state
from detkit.models.converters import from_torchvision, load_converted, preset_of
from detkit.models.mtcnn.published import from_published
from detkit.structures import Categories
from detkit.utils.download import is_url, local_copy
from detkit.utils.log import logger

_TORCHVISION = "torchvision:"
_MTCNN = "mtcnn:"

#: Models of torchvision's that are taken by their names.
_PUBLISHED = (
    *("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"),
)


def initialize(detector: nn.Module, source: str, categories: Categories, model: Mapping[str, Any]) -> None:
    """Load the weights of ``source`` into ``detector``.

    Args:
        source: path or URL of a checkpoint of detkit's; or ``torchvision:`` and the name of one of its detectors (see
            docs/models.md), or the path of a state dict of one; or ``mtcnn:`` and the folder of pnet.pt, rnet.pt and
            onet.pt. Layers for other classes than ``categories`` keep their random weights.
        model: the configuration that ``detector`` was built from.

    Raises:
        ConfigError: there is no such file, it does not fit the model, or its batch norms have another epsilon.
    """
    try:
        path = local_copy(source) if is_url(source) else _path(source.removeprefix(_TORCHVISION), source)
        if source.startswith(_TORCHVISION):
            _from_torchvision(detector, path, categories, model)
        elif source.startswith(_MTCNN):
            _from_mtcnn(detector, Path(source.removeprefix(_MTCNN)))
        else:
            _from_checkpoint(detector, path, categories, model)
    except (ValueError, OSError) as error:
        raise ConfigError(f"init_from: {error}") from error


def _path(name: str, source: str) -> Path:
    """The file that ``name`` means: its path, or torchvision's published file of a model of that name, fetched once."""
    if not source.startswith(_TORCHVISION) or name not in _PUBLISHED:
        return Path(name)
    url = get_model_weights(name)["COCO_V1"].url
    torch.hub.load_state_dict_from_url(url, progress=True, check_hash=True, weights_only=True)
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _from_torchvision(detector: nn.Module, path: Path, categories: Categories, model: Mapping[str, Any]) -> None:
    try:
        published = read_state(path, f"the path of a state dict, or one of {', '.join(_PUBLISHED)}")
        state, with_classes = from_torchvision(published, categories)
    except ValueError as error:
        hint = describe_origin(path)
        raise ValueError(f"{error}{hint if _TORCHVISION not in hint else ''}") from error
    if doubt := check_norms(detector, published, path):
        logger.warning("%s", doubt)
    try:
        missing = load_converted(detector, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; these are weights for model={preset_of(published)}") from error
    if not with_classes:
        missing = [name for name in missing if name not in class_layers(model, categories)]
    if missing:
        logger.warning("%s: %d tensors keep their random values: %s", path, len(missing), ", ".join(missing))
    if not with_classes:
        logger.warning("%s is of other classes: the last layers start anew", path)


def _from_mtcnn(detector: nn.Module, folder: Path) -> None:
    state, with_classes = from_published(folder, detector.state_dict())
    load_converted(detector, state)
    if not with_classes:
        logger.warning("%s is of one class: the layer of the classes, onet.dense6_1, starts anew", folder)


def _from_checkpoint(detector: nn.Module, path: Path, categories: Categories, model: Mapping[str, Any]) -> None:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{describe_origin(path)}") from error
    state = dict(checkpoint.weights)
    if difference := checkpoint.categories.difference(categories):
        layers = class_layers(model, categories)
        logger.warning("%s is of other classes (%s): starting anew with %s", path, difference, ", ".join(layers))
        state = {k: v for k, v in state.items() if k not in layers}
    state = _without_counts(_without_other_head(state, checkpoint.config, model, path), detector)
    missing = load_converted(detector, state)
    logger.info("weights of %s, step %d; %d tensors keep their random values", path, checkpoint.step, len(missing))


def _without_other_head(
    state: dict[str, Tensor], stored: Mapping[str, Any], model: Mapping[str, Any], path: Path
) -> dict[str, Tensor]:
    """``state`` without the head's tensors where that was one of another class: features are of use to any head."""
    heads = [(m.get("head") or {}).get("_target_") for m in (stored.get("model") or {}, model)]
    if None in heads or heads[0] == heads[1]:
        return state
    logger.warning("%s has a %s, which is not used: %s starts anew", path, *heads)
    return {k: v for k, v in state.items() if not k.startswith("head.")}


def _without_counts(state: dict[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """``state`` without the counters of batch norms that are frozen in ``detector``, which count no batches."""
    own, count = detector.state_dict(), "num_batches_tracked"
    return {k: v for k, v in state.items() if k in own or not (k.endswith(f".{count}") and _has_norm(own, k, count))}


def _has_norm(own: Mapping[str, Tensor], name: str, count: str) -> bool:
    return f"{name.removesuffix(count)}running_mean" in own


def class_layers(model: Mapping[str, Any], categories: Categories) -> list[str]:
    """The tensors of ``model`` whose shape depends on the number of classes."""
    node = copy.deepcopy(dict(model))
    without_pretrained_weights(node)
    shapes = []
    with torch.device("meta"):  # shapes alone, no memory
        for num in (len(categories), len(categories) + 1):
            made = Categories(tuple(map(str, range(num))), tuple(range(num)))
            shapes.append({k: v.shape for k, v in build_detector(node, made).state_dict().items()})
    return [name for name, shape in shapes[0].items() if shape != shapes[1][name]]
