"""Start from weights that are there already: a checkpoint of detkit's, or a published detector."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detkit.app.assemble.parts import without_pretrained_weights
from detkit.app.assemble.weights_origin import check_norms, describe_origin
from detkit.config import ConfigError
from detkit.engine.bad_steps.finite import refuse_bad_tensors
from detkit.engine.state.checkpoint import CheckpointError, load_checkpoint
from detkit.models import build_detector
from detkit.models.backbones.weights import published_file, read_state
from detkit.models.converters import (
    Foreign,
    Library,
    Style,
    UnfitError,
    backbone_keys,
    faults_of,
    from_torchvision,
    load_converted,
    preset_of,
    read_foreign,
    same_stats,
)
from detkit.models.mtcnn.published import from_published
from detkit.structures import Categories, PixelStats
from detkit.structures.feature_spec import IMAGENET_STATS
from detkit.utils.download import is_url, local_copy
from detkit.utils.log import logger

_TORCHVISION = "torchvision:"
_MTCNN = "mtcnn:"

#: Libraries whose checkpoint files are read.
FOREIGN: tuple[Library, ...] = ("detectron2", "mmdetection")

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
            docs/weights.md), or the path of a state dict of one; or ``detectron2:`` or ``mmdetection:`` and the path of
            a checkpoint; or ``mtcnn:`` and the folder of pnet.pt, rnet.pt and onet.pt. Layers for other classes than
            ``categories`` keep their random weights.
        model: the configuration that ``detector`` was built from.

    Raises:
        ConfigError: there is no such file, it does not fit the model, a weight is not finite, or its batch norms have
            another epsilon.
    """
    try:
        path = local_copy(source) if is_url(source) else _path(source.removeprefix(_TORCHVISION), source)
        if source.startswith(_TORCHVISION):
            _from_torchvision(detector, path, categories, model)
        elif source.startswith(_MTCNN):
            _from_mtcnn(detector, Path(source.removeprefix(_MTCNN)))
        elif library_of(source) is not None:
            from_foreign(detector, source, categories, model)
        else:
            _from_checkpoint(detector, path, categories, model)
    except (ValueError, OSError) as error:
        raise ConfigError(f"init_from: {error}") from error


def _path(name: str, source: str) -> Path:
    """The file that ``name`` means: its path, or torchvision's published file of a model of that name, fetched once."""
    if not source.startswith(_TORCHVISION) or name not in _PUBLISHED:
        return Path(name)
    return published_file(get_model_weights(name)["COCO_V1"].url)


def _from_torchvision(detector: nn.Module, path: Path, categories: Categories, model: Mapping[str, Any]) -> None:
    try:
        published = read_state(path, f"the path of a state dict, or one of {', '.join(_PUBLISHED)}")
        with _all_faults(detector):
            state, with_classes = from_torchvision(published, categories)
    except ValueError as error:
        hint, where = describe_origin(path), "" if str(path) in str(error) else f"{path}: "
        raise ValueError(f"{where}{error}{hint if _TORCHVISION not in hint else ''}") from error
    if doubt := check_norms(detector, published, path):
        logger.warning("%s", doubt)
    missing = _placed(detector, state, path, preset_of(published))
    if not with_classes:
        missing = _without_class_layers(missing, path, model, categories)
    _warn_of(missing, path)


def from_foreign(
    detector: nn.Module,
    source: str,
    categories: Categories,
    model: Mapping[str, Any],
    names: tuple[str, ...] | None = None,
) -> list[str]:
    """:func:`initialize` of a checkpoint of detectron2's or mmdetection's.

    Args:
        names: of the classes in the file, whatever that says; None for what it says.

    Returns:
        the tensors of ``detector`` that the file lacks, without the layers of other classes.

    Raises:
        ValueError: it cannot be read, or does not fit the model.
    """
    library = library_of(source)
    assert library is not None
    path = Path(source.partition(":")[2])
    foreign = read_foreign(library, path)
    foreign = foreign if names is None else dataclasses.replace(foreign, names=names)
    try:
        with _all_faults(detector):
            state, with_classes = foreign.converted(categories, _style_of(model, foreign))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_norms(detector, foreign.state, path, known=library)
    missing = _placed(detector, state, path, foreign.preset)
    if not with_classes:
        missing = _without_class_layers(missing, path, model, categories)
    _warn_of(missing, path)
    return missing


def library_of(source: str) -> Library | None:
    """Whose checkpoint ``source`` names, by its beginning; None where it is another kind."""
    return next((library for library in FOREIGN if source.startswith(f"{library}:")), None)


def is_checkpoint(source: str) -> bool:
    """Whether ``source`` names a checkpoint of detkit's, and not weights of another library."""
    return not source.startswith((_TORCHVISION, _MTCNN)) and library_of(source) is None


def _style_of(model: Mapping[str, Any], foreign: Foreign) -> Style:
    """How the backbone of ``model`` takes pixels and strides, which must be as the file has told."""
    backbone = model.get("backbone") or {}
    style: Style = "caffe" if backbone.get("stride_in_1x1") else "pytorch"
    stats = PixelStats(
        _triple(backbone.get("pixel_mean"), IMAGENET_STATS.mean), _triple(backbone.get("pixel_std"), IMAGENET_STATS.std)
    )
    told = foreign.style or style
    wanted = foreign.pixels_by(told).stats
    if style == told and same_stats(stats, wanted):
        return style
    strides = str(style == "caffe").lower()
    has = f"stride_in_1x1={strides}, pixel_std={_numbers(stats.std)} and pixel_mean={_numbers(stats.mean)}"
    if foreign.style is None and foreign.pixels is None:
        raise ValueError(
            f"model.backbone has {has}; weights of other libraries that do not tell their pixels go with true and "
            "pixel_std=[1,1,1] (the style caffe) or with false and null (pytorch), and pixel_mean=null"
        )
    words = " ".join(f"model.backbone.{key}={value}" for key, value in backbone_keys(told, wanted).items())
    raise ValueError(
        f"the file is of the style {told}, pixels in RGB of mean {_numbers(wanted.mean)} and deviation "
        f"{_numbers(wanted.std)}; model.backbone has {has}: set {words}"
    )


def _triple(values: Sequence[float] | None, default: tuple[float, float, float]) -> tuple[float, float, float]:
    r, g, b = default if values is None else map(float, values)
    return r, g, b


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.7g}' for value in values)}]"


def _placed(detector: nn.Module, state: Mapping[str, Tensor], path: Path, preset: str | None = None) -> list[str]:
    """Load ``state``; the names that it lacks."""
    refuse_bad_tensors(state, f"{path} is of no use")
    try:
        return load_converted(detector, state)
    except ValueError as error:
        hint = f"; these are weights for model={preset}" if preset else ""
        raise ValueError(f"{path}: {error}{hint}") from error


@contextmanager
def _all_faults(detector: nn.Module) -> Iterator[None]:
    """Where the last layers of a file do not fit each other, say of all its other tensors too whether they fit."""
    try:
        yield
    except UnfitError as error:
        faults = faults_of(detector, error.found, error.last)
        raise ValueError(f"{error}{f'; beside these {faults}' if faults else ''}") from error


def _without_class_layers(
    missing: Sequence[str], path: Path, model: Mapping[str, Any], categories: Categories
) -> list[str]:
    logger.warning("%s is of other classes: the last layers start anew", path)
    layers = class_layers(model, categories)
    return [name for name in missing if name not in layers]


def _warn_of(missing: Sequence[str], path: Path) -> None:
    if missing:
        logger.warning("%s: %d tensors keep their random values: %s", path, len(missing), ", ".join(missing))


def _from_mtcnn(detector: nn.Module, folder: Path) -> None:
    state, with_classes = from_published(folder, detector.state_dict())
    missing = _placed(detector, state, folder, "mtcnn")
    if not with_classes:
        logger.warning("%s is of one class: the layer of the classes, onet.dense6_1, starts anew", folder)
    _warn_of([name for name in missing if with_classes or not name.startswith("onet.dense6_1.")], folder)


def _from_checkpoint(detector: nn.Module, path: Path, categories: Categories, model: Mapping[str, Any]) -> None:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{describe_origin(path)}") from error
    state = dict(checkpoint.weights)
    anew: set[str] = set()
    if difference := checkpoint.categories.difference(categories):
        layers = class_layers(model, categories)
        logger.warning("%s is of other classes (%s): starting anew with %s", path, difference, ", ".join(layers))
        anew |= set(layers)
    if _has_other_head(checkpoint.config, model, path):
        anew |= {k for k in (*state, *detector.state_dict()) if k.startswith("head.")}
    state = _without_counts({k: v for k, v in state.items() if k not in anew}, detector)
    missing = _placed(detector, state, path)
    _warn_of([name for name in missing if name not in anew], path)
    logger.info("weights of %s, step %d", path, checkpoint.step)


def _has_other_head(stored: Mapping[str, Any], model: Mapping[str, Any], path: Path) -> bool:
    """Whether the checkpoint's head is of another class: features are of use to any head, its tensors are not."""
    heads = [(m.get("head") or {}).get("_target_") for m in (stored.get("model") or {}, model)]
    if None in heads or heads[0] == heads[1]:
        return False
    logger.warning("%s has a %s, which is not used: %s starts anew", path, *heads)
    return True


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
