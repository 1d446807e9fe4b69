"""Everything that a training's configuration describes, built and ready to fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from detkit.app.assemble.init_from import initialize
from detkit.app.assemble.objects import refuse_nothing_to_learn, warn_of_limits, warn_of_shared, warn_of_validation
from detkit.app.assemble.parts import (
    build_dataset,
    build_evaluator,
    build_transforms,
    check_same_classes,
    choose_device,
    warn_of_frozen_chance,
    without_pretrained_weights,
)
from detkit.config import ConfigError, build
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.table import count_classes
from detkit.engine.trainer import Trainer
from detkit.models import build_detector
from detkit.utils import dist
from detkit.utils.log import logger
from detkit.utils.seed import seed_everything


def build_trainer(cfg: DictConfig, folder: Path, resumed: bool = False) -> tuple[Trainer, DetectionDataset | None]:
    """Everything that ``cfg`` describes, ready to fit, and the validation set.

    A run that is ``resumed`` takes its weights from the checkpoint: none are fetched.
    """
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    if node["threads"] is not None:
        torch.set_num_threads(node["threads"])
    if node["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's matrix products refuse
    torch.use_deterministic_algorithms(node["deterministic"])
    seed_everything(node["seed"])
    device = choose_device(node["device"])
    with dist.main_first():  # a data set may be made on first use
        train_set = build_dataset(node["data"], "train")
        val_set = None if node["data"]["val"] is None else build_dataset(node["data"], "val")
    refuse_nothing_to_learn(train_set)
    if val_set is not None:
        check_same_classes(train_set.categories, val_set.categories, "data.val")
    if resumed:
        without_pretrained_weights(node["model"])
    counts = count_classes(train_set.truths, len(train_set.categories))
    detector = build_detector(node["model"], train_set.categories, counts)
    if node["init_from"] is not None and not resumed:
        initialize(detector, node["init_from"], train_set.categories, node["model"])
    elif not resumed:
        warn_of_frozen_chance(node["model"], detector)
    if node["sync_bn"]:
        detector = with_sync_bn(detector, device)
    if dist.rank():  # from here on, dropout and the like: each process draws its own
        seed_everything(node["seed"] + dist.rank())
    shard = {"rank": dist.rank(), "world_size": dist.world_size()}
    train_loader = build(node["data"]["loader"]["train"], key="data.loader.train")(
        dataset=train_set,
        transforms=build_transforms(node["transform"]["train"], "transform.train"),
        seed=node["seed"],
        **shard,
    )
    val_loader = evaluator = None
    if val_set is not None:
        val_loader = build(node["data"]["loader"]["val"], key="data.loader.val")(
            dataset=val_set, transforms=build_transforms(node["transform"]["val"], "transform.val"), **shard
        )
        if node.get("evaluator") is not None:
            evaluator = build_evaluator(node["evaluator"], val_set, lambda: train_set)
        warn_of_validation(train_set, val_set, evaluator, node["trainer"].get("monitor", "AP"))
        if not _is_to_overfit():
            warn_of_shared(train_set, val_set)
    warn_of_limits(val_set or train_set, "data.train" if val_set is None else "data.val", detector, evaluator)
    batch_size = node["data"]["loader"]["train"]["batch_size"] * node["trainer"]["accumulate"]
    optimizer = build(node["optim"], key="optim")(detector, batch_size)
    logger.info("%d trainable parameters on %s", _num_trainable(detector), device)
    given = {name: callback for name, callback in node.get("callbacks", {}).items() if callback is not None}
    callbacks = {name: build(callback, key=f"callbacks.{name}") for name, callback in given.items()}
    trainer = build(node["trainer"], key="trainer")(
        detector=detector,
        optimizer=optimizer,
        schedule=build(node["schedule"], key="schedule"),
        train_loader=train_loader,
        val_loader=val_loader,
        evaluator=evaluator,
        categories=train_set.categories,
        class_counts=counts,
        run_dir=folder,
        device=device,
        callbacks=callbacks,
        config=OmegaConf.to_container(cfg, resolve=False),
    )
    return trainer, val_set


def _is_to_overfit() -> bool:
    """Whether debug=overfit was chosen, which validates on what it trains on."""
    return HydraConfig.initialized() and HydraConfig.get().runtime.choices.get("debug") == "overfit"


def _num_trainable(detector: torch.nn.Module) -> int:
    return sum(p.numel() for p in detector.parameters() if p.requires_grad)


def with_sync_bn(detector: nn.Module, device: torch.device) -> nn.Module:
    """``detector`` with batch norms that share their statistics among the processes; alone, as it is.

    Raises:
        ConfigError: torch can do that on GPUs alone.
    """
    if dist.world_size() == 1:
        return detector
    if device.type != "cuda":
        raise ConfigError(f"sync_bn: works on GPUs only, and the device is {device}")
    return nn.SyncBatchNorm.convert_sync_batchnorm(detector)
