"""``tools/train.py``: a detector from a configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import rich
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from detkit.app.costs import costs
from detkit.app.entry import run_tool
from detkit.app.init_from import initialize
from detkit.app.manifest import check_data, data_hash, find_restarted, write_manifest
from detkit.app.objects import refuse_nothing_to_learn, warn_of_limits, warn_of_validation
from detkit.app.processes import launcher_mark, process_group, with_sync_bn
from detkit.app.report import KeepBest, report_training
from detkit.app.run_folder import RESULT, find_run, write_result
from detkit.app.schema import TrainSchema
from detkit.app.setup import (
    build_dataset,
    build_evaluator,
    build_transforms,
    check_same_classes,
    check_values,
    choose_device,
    without_pretrained_weights,
)
from detkit.app.sweep.plan import Job
from detkit.app.sweep.process import run_to_the_end, stop_with_the_sweep
from detkit.config import ConfigError, build, validate
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.table import count_classes
from detkit.engine.checkpoint import load_latest
from detkit.engine.trainer import Trainer
from detkit.models import build_detector
from detkit.utils import dist
from detkit.utils.files import atomic_write, remove_if_empty
from detkit.utils.lock import claim
from detkit.utils.log import close_logging, logger, set_up_logging
from detkit.utils.seed import seed_everything


def main() -> None:
    """The command line."""
    stop_with_the_sweep()
    run_tool(run, "train", run_sweep_job)


def run_sweep_job(cfg: DictConfig, folder: Path) -> float | None:
    """Under ``-m`` and a launcher that is not detkit's: run ``cfg`` in a process of its own.

    Returns:
        The best value of the monitored metric, which a search needs.
    """
    validate(cfg, TrainSchema)
    job = Job(folder.name, tuple(HydraConfig.get().overrides.task), folder.name, folder, steps=None)
    return run_to_the_end(job)


def run(cfg: DictConfig, folder: Path) -> float | None:
    """Check ``cfg``, find the run folder, train, report.

    Returns:
        The best value of the monitored metric.
    """
    return train_in(cfg, folder)[1]


def train_in(cfg: DictConfig, folder: Path) -> tuple[Path, float | None]:
    """As :func:`run`.

    Returns:
        The folder, another one than ``folder`` where a run has gone on, and the best value of the monitored metric.
    """
    set_up_logging()
    validate(cfg, TrainSchema)
    check_values(cfg)
    _refuse_lists()
    with process_group(cfg.device, cfg.process_timeout), ExitStack() as stack:
        made = folder
        marks = [mark for mark in dist.all_gather(launcher_mark()) if mark is not None]
        folder, resumed = dist.from_main(lambda: choose_folder(cfg, folder, marks))
        if made != folder:
            remove_if_empty(made)  # Hydra has made a new one
        dist.from_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        folder.mkdir(parents=True, exist_ok=True)  # on another machine it may not be there yet
        dist.from_main(lambda: stack.enter_context(claim(folder)))
        set_up_logging(folder)
        stack.callback(close_logging)
        return folder, _train(cfg, folder, resumed)


def choose_folder(cfg: DictConfig, folder: Path, marks: Sequence[str] = ()) -> tuple[Path, bool]:
    """Where the run is, and whether it goes on: as asked for, or because torchrun has started it anew.

    Args:
        folder: for a run that begins.
        marks: of the torchrun that has started this process, on each machine.

    Raises:
        ConfigError: there is nothing to go on with, or it had another configuration.
    """
    stored: Any = OmegaConf.to_container(cfg, resolve=False)
    path = cfg.resume.path
    if restarted := find_restarted(folder, marks):
        path = str(restarted)
    if path is None:
        return folder, False
    return find_run(path, folder.parent, stored, tuple(cfg.resume.allow)), True


def _train(cfg: DictConfig, folder: Path, resumed: bool) -> float | None:
    trainer, val_set = build_trainer(cfg, folder, resumed=resumed)
    best = KeepBest(folder, trainer.evaluator)
    if dist.is_main():
        trainer.callbacks["KeepBest"] = best
    datasets = {"train": getattr(trainer.train_loader, "dataset", None), "val": val_set}
    data = dist.from_main(lambda: {split: data_hash(found) for split, found in datasets.items() if found is not None})
    if resumed:  # a refusal leaves every file as it was
        dist.from_main(lambda: check_data(folder, data, tuple(cfg.resume.allow)))
        trainer.restore(load_latest(folder))
    dist.from_main(lambda: _write_down(cfg, folder, trainer.config, data, resumed))
    result = trainer.fit()
    if dist.is_main():
        write_result(folder, result, trainer.monitor, costs(trainer))  # before anything is shown, which may fail
        if val_set is not None:
            report_training(folder, best.record, result, val_set)
        rich.print("run folder:", Text(str(folder), "bold"))
    return result.best


def _write_down(cfg: DictConfig, folder: Path, config: dict[str, Any], data: dict[str, str], resumed: bool) -> None:
    """Manifest and configuration, into the folder of a run that is about to begin or to go on."""
    (folder / RESULT).unlink(missing_ok=True)
    write_manifest(folder, config, data, resumed=resumed)
    atomic_write(folder / "config.yaml", OmegaConf.to_yaml(cfg))


def _refuse_lists() -> None:
    sweep = HydraConfig.initialized() and HydraConfig.get().runtime.choices.get("sweep")
    if sweep:
        raise ConfigError(f"sweep={sweep} is a list of jobs: add -m to run them")


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
        train_set = build_dataset(node["data"]["train"], "data.train")
        val_set = None if node["data"]["val"] is None else build_dataset(node["data"]["val"], "data.val")
    refuse_nothing_to_learn(train_set)
    if val_set is not None:
        check_same_classes(train_set.categories, val_set.categories, "data.val")
    if resumed:
        without_pretrained_weights(node["model"])
    counts = count_classes(train_set.truths, len(train_set.categories))
    detector = build_detector(node["model"], train_set.categories, counts)
    if node["init_from"] is not None and not resumed:
        initialize(detector, node["init_from"], train_set.categories, node["model"])
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
        run_dir=folder,
        device=device,
        callbacks=callbacks,
        config=OmegaConf.to_container(cfg, resolve=False),
    )
    return trainer, val_set


def _num_trainable(detector: torch.nn.Module) -> int:
    return sum(p.numel() for p in detector.parameters() if p.requires_grad)


if __name__ == "__main__":
    main()
