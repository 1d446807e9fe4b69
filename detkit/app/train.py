"""``tools/train.py``: a detector from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from detkit.app.assemble.parts import check_values
from detkit.app.assemble.schema import TrainSchema
from detkit.app.assemble.trainer import build_trainer
from detkit.app.cli.entry import run_tool
from detkit.app.cli.paths import own_configs
from detkit.app.cli.slots import search_paths
from detkit.app.run.finding import choose_run
from detkit.app.run.folder import RunFolder
from detkit.app.run.manifest import data_hash
from detkit.app.run.measure import measure_of
from detkit.app.run.next_command import tell_prediction
from detkit.app.run.processes import launcher_mark, process_group
from detkit.app.run.report import KeepBest, report_training
from detkit.app.sweep.plan import Job
from detkit.app.sweep.plugins import register_sweeps
from detkit.app.sweep.process import run_to_the_end, stop_with_the_sweep
from detkit.config import ConfigError, validate
from detkit.utils import dist
from detkit.utils.files import remove_if_empty
from detkit.utils.log import set_up_logging


def main() -> None:
    """The command line."""
    stop_with_the_sweep()
    register_sweeps()
    run_tool(run, "train", run_sweep_job)


def run_sweep_job(cfg: DictConfig, folder: Path) -> float | None:
    """Under ``-m`` and a launcher that is not detkit's: run ``cfg`` in a process of its own.

    Returns:
        The best value of the monitored metric, which a search needs.
    """
    validate(cfg, TrainSchema)
    given, own = HydraConfig.get().overrides, own_configs(HydraConfig.get().runtime.config_sources)
    said = (*search_paths(given.hydra), *given.task)
    job = Job(folder.name, said, folder.name, folder, steps=None, own_configs=own)
    return run_to_the_end(job)


def run(cfg: DictConfig, folder: Path) -> float | None:
    """Check ``cfg``, find the run folder, train, report.

    Returns:
        The best value of the monitored metric.
    """
    return train_in(cfg, folder)[1]


def train_in(cfg: DictConfig, folder: Path) -> tuple[RunFolder, float | None]:
    """As :func:`run`.

    Returns:
        The run, in another folder than ``folder`` where one has gone on, and the best value of the monitored metric.
    """
    set_up_logging()
    validate(cfg, TrainSchema)
    check_values(cfg)
    _refuse_lists()
    with process_group(cfg.device, cfg.process_timeout):
        marks = [mark for mark in dist.all_gather(launcher_mark()) if mark is not None]
        chosen = dist.from_main(lambda: choose_run(cfg, folder, marks))
        if chosen.path != folder:
            remove_if_empty(folder)  # Hydra has made a new one
        with chosen.claimed():
            return chosen, _train(cfg, chosen)


def _train(cfg: DictConfig, run: RunFolder) -> float | None:
    """The life of a run in its folder."""
    trainer, val_set = build_trainer(cfg, run.path, resumed=run.resumed)
    best = KeepBest(run.path, trainer.evaluator)
    if dist.is_main():
        trainer.callbacks["KeepBest"] = best
    datasets = {"train": getattr(trainer.train_loader, "dataset", None), "val": val_set}
    data = dist.from_main(lambda: {split: data_hash(found) for split, found in datasets.items() if found is not None})
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    trainer.measure |= measure_of(resolved, data)
    run.restore(trainer, data, tuple(cfg.resume.allow))
    result = trainer.fit(lambda: run.write_down(cfg, trainer.config, data))
    if dist.is_main():
        run.finish(trainer, result)  # before anything is shown, which may fail
        if val_set is not None:
            report_training(run.path, best.record, result, val_set)
        rich.print("run folder:", Text(str(run.path), "bold"))
        tell_prediction(run.path, datasets["train"] if val_set is None else val_set)
    return result.best


def _refuse_lists() -> None:
    sweep = HydraConfig.initialized() and HydraConfig.get().runtime.choices.get("sweep")
    if sweep:
        raise ConfigError(f"sweep={sweep} is a list of jobs: add -m to run them")


if __name__ == "__main__":
    main()
