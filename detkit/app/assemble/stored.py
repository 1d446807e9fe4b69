"""A trained detector from its checkpoint, with what the command line says on top of the stored configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.absent import nothing_there
from detkit.app.assemble.exported import is_exported, load_exported
from detkit.app.assemble.foreign import inert, restrain
from detkit.app.assemble.identity import leaves
from detkit.app.assemble.parts import (
    build_dataset,
    build_transforms,
    check_same_classes,
    check_values,
    choose_device,
    without_pretrained_weights,
)
from detkit.app.assemble.schema import EvaluateOptions, ExplainOptions, PredictOptions, TrainSchema
from detkit.config import ConfigError, build, validate
from detkit.config.registry import did_you_mean, resolve, runtime_arguments
from detkit.config.validate import convert, holds_component, plain
from detkit.data.datasets.base import DetectionDataset
from detkit.data.loader import EvalLoader
from detkit.engine.bad_steps.finite import refuse_bad_weights
from detkit.engine.state.checkpoint import Checkpoint, load_checkpoint, load_weights
from detkit.evaluation.reliability import ScoreMap
from detkit.evaluation.unknown import check_least_cosines
from detkit.models import Detector, build_detector
from detkit.models.calibrated import Calibrated, check_thresholds
from detkit.models.cosine_regions import CosineRegions
from detkit.models.export.runtime import ExportedDetector
from detkit.models.unknown import Recogniser
from detkit.utils.commands import command
from detkit.utils.download import is_url, local_copy
from detkit.utils.log import logger

#: Options of the tools that ask a detector what it finds, and so take an exported file too.
_ASKING = (EvaluateOptions, ExplainOptions, PredictOptions)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a tool needs of a checkpoint: the detector on its device, and the configuration it was trained with."""

    checkpoint: Checkpoint
    config: dict[str, Any]
    detector: Detector
    device: torch.device

    def augmented(self, tta: Any) -> Detector:
        """The detector with the thresholds of its checkpoint's calibration where that has one, looking at several views
        of each image where there is a ``tta`` section.

        Raises:
            ConfigError: the section's values do not fit together.
            ValueError: the thresholds are not one for each class.
        """
        detector, views = self.bare(tta)
        return self.calibrated(detector, views)

    def bare(self, tta: Any) -> tuple[Detector, str | None]:
        """The detector without thresholds, with the views of a ``tta`` section, and these in words; None for none.

        Raises:
            ConfigError: the section's values do not fit together.
        """
        if tta is None:
            return self.detector, None
        detector = self._of_views(tta)
        return detector, detector.extra_repr()

    def calibrated(self, detector: Detector, views: str | None) -> Detector:
        """``detector``, which looks at ``views`` in words, with the thresholds of the checkpoint where that has some.

        Raises:
            ValueError: the thresholds are not one for each class.
        """
        calibration = self.checkpoint.calibration
        if calibration is None:
            return detector
        source = self.checkpoint.source
        thresholds = check_thresholds(calibration, len(self.checkpoint.categories), source)
        stored = calibration.get("scores")
        scores = None if stored is None else ScoreMap.from_dict(stored)
        if (measured := calibration.get("tta")) != views:
            logger.warning(
                "%s: its thresholds were measured with %s; with %s scores differ, and what they promise does not hold",
                *(source, measured or "the plain detector (tta=null)", views or "the plain detector (tta=null)"),
            )
        logger.info("%s: left out is what is below the thresholds for %s", source, calibration.get("aim"))
        return Calibrated(detector, thresholds, scores).to(self.device).eval()

    def recogniser(self) -> Recogniser:
        """What says which detections are of no known class.

        Raises:
            ValueError: the checkpoint has no thresholds for that, or its detector does not classify by cosines.
        """
        regions = CosineRegions.of(self.detector)
        known = len(self.checkpoint.categories)
        return Recogniser(regions, check_least_cosines(self.checkpoint.calibration, known, self.checkpoint.source))

    def _of_views(self, tta: Any) -> Detector:
        divisor = self.config["data"]["loader"]["val"].get("size_divisor", 32)
        views, wanted = build(tta, key="tta"), runtime_arguments(resolve(tta["_target_"]))
        given = {"detector": self.detector, "size_divisor": divisor, "mirror": self.checkpoint.categories.mirror}
        try:
            detector = views(**{name: value for name, value in given.items() if name in wanted})
        except ValueError as error:  # the factory has named its section already
            raise ConfigError(f"tta: {error.__cause__ or error}") from error
        logger.info("test-time augmentation: %s", detector.extra_repr())
        if isinstance(self.detector, ExportedDetector) and self.detector.calibrated:
            logger.warning(
                "%s: its thresholds are in the file and cut what each view has before the merge; with %s scores "
                "differ, and what they promise does not hold",
                *(self.checkpoint.source, detector.extra_repr()),
            )
        return detector.eval()


def load_stored(cfg: DictConfig, options: type, choices: Mapping[str, Any] | None = None) -> tuple[Any, Stored]:
    """The tool's own options, checked, and the detector of ``cfg.checkpoint``.

    Args:
        cfg: the composed command line: the fields of ``options``, and keys of the training configuration, which
            override the stored ones. A group that was chosen (``data=coco``) replaces the stored section whole.
        choices: the option chosen of each group; by default those of Hydra's command line.

    What the checkpoint's own configuration says is held back as :mod:`~detkit.app.assemble.foreign` tells.

    Raises:
        ConfigError: a key that neither has, no checkpoint, one of a model that this configuration does not build, or an
            exported file with a ``model`` of one's own.
        ValueError: a weight of the checkpoint is not finite.
    """
    names = {field.name for field in dataclasses.fields(options)}
    given = {str(k): v for k, v in cfg.items_ex(resolve=False)}
    own = {k: plain(v) for k, v in given.items() if k in names}
    if isinstance(own.get("tta"), Mapping):  # tta.scales=[0.75,1] says enough without tta=multiscale
        own["tta"] = {"_target_": "MultiView", "_partial_": True, **own["tta"]}
    unknown = _unknown(given, names)
    try:
        validate(own, options)
    except ConfigError as error:
        raise ConfigError([*error.errors, *unknown.values()]) from None
    if is_url(own["checkpoint"]):
        own["checkpoint"] = str(fetched(own["checkpoint"], "checkpoint"))
    hints = get_type_hints(options, include_extras=True)
    lists = {k: convert(v, hints[k]) for k, v in own.items() if isinstance(v, list) and not holds_component(v)}
    chosen = options(**own | lists)  # YAML has no tuples
    exported = _exported(chosen) if is_exported(chosen.checkpoint) else None
    checkpoint = load_checkpoint(chosen.checkpoint) if exported is None else exported[0]
    choices = HydraConfig.get().runtime.choices if choices is None else choices
    config = _merge(checkpoint, {k: v for k, v in given.items() if k not in names}, choices)
    try:
        validate(config, TrainSchema)
    except ConfigError as error:
        raise ConfigError([unknown.get(line.partition(":")[0], line) for line in error.errors]) from None
    node = plain(config)
    check_values(node)
    restrain(node if "split" in names else _without_sets(node), cfg)
    if exported is not None:
        if "model" in given:
            raise ConfigError(f"model: {checkpoint.source} is an exported file, whose model stays as it was exported")
        chosen = dataclasses.replace(chosen, precision="fp32")  # whatever it was trained in, which is stored too
        return chosen, Stored(checkpoint, node, exported[1].eval(), torch.device("cpu"))
    detector = _with_weights(node, checkpoint)
    device = choose_device(getattr(chosen, "device", "cpu"))  # a tool without the key works on the CPU
    return chosen, Stored(checkpoint, node, detector.to(device).eval(), device)


def _unknown(given: Iterable[str], own: set[str]) -> dict[str, str]:
    """By key what is told of those ``given`` that neither the tool, whose ``own`` keys they are, nor a training has."""
    known = {field.name for field in dataclasses.fields(TrainSchema)} | own
    hints = {k: (did_you_mean(k, known), did_you_mean(k, own)) for k in given if k not in known}
    return {k: f"{k}: no key {k!r}{near if 'did you mean' in near else listed}" for k, (near, listed) in hints.items()}


def _exported(options: Any) -> tuple[Checkpoint, Detector]:
    """The detector in the exported file that ``options`` name, for a tool that asks what it finds and no more."""
    path = options.checkpoint
    if not isinstance(options, _ASKING):
        raise ConfigError(
            f"checkpoint: {path} is an exported file, which evaluate, explain and predict take alone: here the "
            "checkpoint is wanted that it was made from"
        )
    if options.device not in ("auto", "cpu") or options.precision not in (None, "fp32"):
        raise ConfigError(f"checkpoint: {path} is an exported file: it takes device=cpu and precision=fp32 alone")
    return load_exported(path)


def _without_sets(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool builds of ``config`` that opens no data set: one trained on generated pictures needs none of them."""
    data = {name: node for name, node in config["data"].items() if name not in ("train", "val")}
    return {**config, "data": data}


def with_weights_of(stored: Stored, path: Path) -> Stored:
    """``stored`` with the weights of the checkpoint ``path``, of the same recipe.

    Raises:
        CheckpointError: it is of another model, or damaged.
    """
    checkpoint = load_checkpoint(path)
    detector = _with_weights(stored.config, checkpoint)
    return dataclasses.replace(stored, checkpoint=checkpoint, detector=detector.to(stored.device).eval())


def _with_weights(config: dict[str, Any], checkpoint: Checkpoint) -> Detector:
    without_pretrained_weights(config["model"])
    detector = build_detector(config["model"], checkpoint.categories)
    load_weights(detector, checkpoint.weights, checkpoint.source)
    refuse_bad_weights(detector, f"{checkpoint.source} is of no use")
    return detector


def fetched(url: str, key: str) -> Path:
    """The file that ``url`` names.

    Raises:
        ConfigError: it cannot be had, or is another one; the message names ``key``.
    """
    try:
        return local_copy(url)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error


def open_split(stored: Stored, split: str) -> tuple[DetectionDataset, EvalLoader]:
    """The data set ``split`` of the configuration, and its images as they are evaluated.

    Raises:
        ConfigError: there is no such split, or it has other classes than the detector.
    """
    dataset = open_data(stored, split)
    check_same_classes(stored.checkpoint.categories, dataset.categories, f"data.{split}")
    return dataset, eval_loader(stored, dataset)


def open_data(stored: Stored, split: str) -> DetectionDataset:
    """The data set ``split`` of the configuration, whatever its classes.

    Raises:
        ConfigError: there is no such split.
    """
    data = stored.config["data"]
    if data.get(split) is None:
        splits = [name for name in ("train", "val") if data.get(name) is not None]
        raise ConfigError(f"split: the configuration has no data.{split}; it has {', '.join(splits)}")
    try:
        return build_dataset(data, split)
    except ConfigError as error:
        raise ConfigError(f"{error}{_where_paths_count(data[split])}") from error


def eval_loader(stored: Stored, dataset: DetectionDataset) -> EvalLoader:
    """The images of ``dataset`` as they are evaluated."""
    transforms = build_transforms(stored.config["transform"]["val"], "transform.val")
    node = stored.config["data"]["loader"]["val"]
    return build(node, key="data.loader.val")(dataset=dataset, transforms=transforms)


def _where_paths_count(node: Mapping[str, Any]) -> str:
    """A hint where a data set's folder is named relative to another working directory, as of the training, say."""
    root = node.get("root")
    if not isinstance(root, str) or Path(root).is_absolute() or Path(root).exists():
        return ""
    return f"\n  data.root={root} counts from the working directory, {Path.cwd()}; data.root=PATH names another folder"


def _merge(checkpoint: Checkpoint, overrides: dict[str, Any], chosen: Mapping[str, Any]) -> DictConfig:
    if not checkpoint.config:
        raise ConfigError(f"{checkpoint.source} has no configuration; it was not written by {command('train')}")
    config = inert(checkpoint.config, checkpoint.source)
    said: Any = OmegaConf.to_container(OmegaConf.create({k: v for k, v in overrides.items() if not chosen.get(k)}))
    if errors := [line for key, value in leaves(said) if value is None and (line := nothing_there(config, key))]:
        raise ConfigError(errors)
    _empty_swapped(config, said)
    for name, value in overrides.items():
        is_part = OmegaConf.is_dict(value) and name in config and not chosen.get(name)
        config[name] = OmegaConf.merge(config[name], value) if is_part else value
    return config


def _empty_swapped(config: DictConfig, said: Mapping[str, Any], place: str = "") -> None:
    """Empty the parts of ``config``, at ``place`` of the whole, for which another class is ``said``: their arguments
    are not those of that one. A line tells what is left out."""
    for name, value in said.items():
        node = config.get(name) if isinstance(value, dict) else None
        if not isinstance(node, DictConfig):
            continue
        key, own = f"{place}{name}", node.get("_target_")
        if value.get("_target_", own) == own:
            _empty_swapped(node, value, f"{key}.")
            continue
        if lost := ", ".join(str(k) for k in node if k != "_target_"):
            logger.warning(
                "%s is %s now; left out what the checkpoint has for %s: %s", key, value["_target_"], own, lost
            )
        config[name] = {}
