"""A run's folder: the one place that knows the names of its files.

A run that is at work goes through it from top to bottom: :meth:`RunFolder.claimed`, :meth:`~RunFolder.restore`,
:meth:`~RunFolder.write_down` as the training begins, :meth:`~RunFolder.finish`, and what shows. What must be kept is
kept before anything is shown, and a run that may not go on leaves every file as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.foreign import inert
from detkit.app.run.costs import costs
from detkit.app.run.manifest import continued, data_before, new_manifest, refuse_other_data
from detkit.app.run.measure import measure_of
from detkit.app.run.report import DETECTIONS, EVALUATION
from detkit.app.run.stored import check_kinds, read_json, read_yaml
from detkit.config import ConfigError
from detkit.engine.callbacks.metrics_csv import METRICS, read_metrics
from detkit.engine.records import FitResult
from detkit.engine.state.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    DamagedCheckpointError,
    load_config,
    load_latest,
)
from detkit.engine.trainer import Trainer
from detkit.evaluation import ScoredSet
from detkit.evaluation.summary import UNDEFINED, is_score
from detkit.utils import dist
from detkit.utils.files import atomic_write
from detkit.utils.lock import claim
from detkit.utils.log import close_logging, keep_log, logger, set_up_logging

CONFIG, MANIFEST, DIFF = "config.yaml", "manifest.json", "uncommitted.diff"

#: Written when a run has come to its end: what it ended with.
RESULT = "result.json"

#: Kinds of what is read in these files.
_OF_RESULT = {
    "steps": "a whole number",
    "monitor": "text",
    "best": "a number",
    "best_step": "a whole number",
    "parameters": "a number",
    "memory": "a number",
    "flops": "a number",
}
_OF_START = {
    "command": "a list",
    "git": "an object",
    "versions": "an object",
    "torchrun": "text",
    "data": "an object",
}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder ``path`` of a run, which may not be there yet; ``resumed``: the run goes on from what lies there."""

    path: Path
    resumed: bool = False

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within the block the folder is this run's alone, and its log is there.

        Of a run that goes on nothing is in the log before :meth:`write_down`.

        Raises:
            FolderInUseError: another process is at work in it.
        """
        with ExitStack() as stack:
            dist.from_main(lambda: self.path.mkdir(parents=True, exist_ok=True))
            self.path.mkdir(parents=True, exist_ok=True)  # on another machine it may not be there yet
            dist.from_main(lambda: stack.enter_context(claim(self.path)))
            set_up_logging(self.path, held=self.resumed)
            stack.callback(close_logging)
            yield

    def restore(self, trainer: Trainer, data: Mapping[str, str], allow: Sequence[str] = ()) -> None:
        """Set ``trainer`` to the state in the folder where the run goes on; of a new run nothing happens.

        Args:
            data: :func:`~detkit.app.run.manifest.data_hash` by split.
            allow: keys that may differ from what the run was begun with, with all that stands below them.

        Raises:
            ConfigError: the data are others; the message names the split.
            CheckpointError: the state is of another model or optimiser, or damaged.
        """
        if self.resumed:
            dist.from_main(lambda: refuse_other_data(self.manifest() or {}, data, allow, str(self.path)))
            trainer.restore(self._with_measure(load_latest(self.path), data))

    def _with_measure(self, checkpoint: Checkpoint, data: Mapping[str, str]) -> Checkpoint:
        """``checkpoint``; one of a detkit that did not keep it with what its best value was measured by."""
        if checkpoint.training is None or "measure" in checkpoint.training:
            return checkpoint
        config: Any = OmegaConf.to_container(inert(checkpoint.config, checkpoint.source), resolve=True)
        stored = dist.from_main(lambda: data_before(self.manifest() or {}))
        measure = measure_of(config, {**data, **stored})
        return replace(checkpoint, training={**checkpoint.training, "measure": measure})

    def write_down(self, cfg: DictConfig, config: Mapping[str, Any], data: Mapping[str, str]) -> None:
        """What the run is made with, before anything else is written: manifest, configuration, and from now on its log.

        A result of before is removed, for it is that of fewer steps. The first start fills the manifest; each later one
        is added under ``resumed`` with what may differ.

        Args:
            cfg: as it is composed.
            config: the same in plain values, interpolations as they stand.
            data: :func:`~detkit.app.run.manifest.data_hash` by split.
        """
        keep_log()
        dist.from_main(lambda: self._write_down(cfg, config, data))

    def _write_down(self, cfg: DictConfig, config: Mapping[str, Any], data: Mapping[str, str]) -> None:
        (self.path / RESULT).unlink(missing_ok=True)
        stored = self.manifest() if self.resumed else None
        content, diff = new_manifest(config, data, DIFF) if stored is None else continued(stored, data, DIFF)
        if diff:
            atomic_write(self.path / DIFF, diff + "\n")
        atomic_write(self.path / MANIFEST, json.dumps(content, indent=2) + "\n")
        atomic_write(self.path / CONFIG, OmegaConf.to_yaml(cfg))

    def finish(self, trainer: Trainer, result: FitResult) -> None:
        """Write ``result.json``: the run has come to its end, with what and at what costs."""
        content = {
            "steps": result.step,
            "stopped_early": result.stopped_early,
            "monitor": trainer.monitor,
            "best": result.best,
            "best_step": result.best_step,
            **costs(trainer),
        }
        atomic_write(self.path / RESULT, json.dumps(content, indent=2) + "\n")

    @property
    def is_there(self) -> bool:
        """Whether a run was written down here."""
        return (self.path / CONFIG).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether a training has written here what it is made with, which it does before its first step."""
        return (self.path / MANIFEST).is_file()

    @property
    def can_go_on(self) -> bool:
        """Whether the state of a run is here, so that ``resume`` can go on with it."""
        return any((self.path / name).is_file() for name in (LAST, PREVIOUS))

    @property
    def saved(self) -> list[str]:
        """The files here that cost a training: its states, and what it ended with."""
        return [name for name in (LAST, PREVIOUS, BEST, RESULT) if (self.path / name).is_file()]

    @property
    def checkpoint(self) -> Path:
        """The best weights where there was an evaluation, else the last."""
        best = self.path / BEST
        return best if best.is_file() else self.path / LAST

    def config(self) -> dict[str, Any]:
        """What the run was composed of, interpolations as they stand; there is a ``seed``.

        Raises:
            ConfigError: the file is not what a run writes.
        """
        path = self.path / CONFIG
        content = read_yaml(path)
        if content.get("seed") is None:
            raise ConfigError(f"{path}: has no seed")
        check_kinds(path, content, {"seed": "a whole number"})
        return content

    def config_of_state(self) -> Mapping[str, Any]:
        """The configuration in the newest checkpoint, whose tensors are not read.

        Raises:
            CheckpointError: there is none that is whole.
        """
        last, previous = self.path / LAST, self.path / PREVIOUS
        try:
            return load_config(last if last.exists() else previous)
        except DamagedCheckpointError:
            if not (last.exists() and previous.exists()):
                raise
        return load_config(previous)

    def manifest(self) -> dict[str, Any] | None:
        """What the run was made with; None where that was not written down.

        Raises:
            ConfigError: the file is not what a run writes.
        """
        path = self.path / MANIFEST
        content = read_json(path, {**_OF_START, "resumed": "a list"})
        for i, start in enumerate((content or {}).get("resumed") or []):
            if not isinstance(start, dict):
                raise ConfigError(f"{path}: resumed.{i} is not an object but {str(start)[:40]!r}")
            check_kinds(path, start, _OF_START, f"resumed.{i}.")
        return content

    def result(self) -> dict[str, Any] | None:
        """What the run ended with; None where it has not come to its end.

        Raises:
            ConfigError: the file is not what a run writes.
        """
        return read_json(self.path / RESULT, _OF_RESULT)

    def result_if_whole(self) -> dict[str, Any] | None:
        """As :meth:`result`, but a run whose file is damaged has not come to its end: going on with it writes it anew,
        without another step where none is left."""
        try:
            return self.result()
        except ConfigError as error:
            logger.warning("%s; taken as unfinished", error)
            return None

    def metrics(self) -> dict[str, float]:
        """The numbers of the best evaluation, losses and stats too; nan for one that is not defined or not finite.

        Raises:
            ConfigError: there was no evaluation, or its file is not what a run writes.
        """
        path = self.path / EVALUATION
        content = read_json(path, {"metrics": "an object"})
        if content is None:
            raise ConfigError(f"{self.path}: has no {EVALUATION}; only runs with an evaluator can be compared")
        stored = content.get("metrics")
        if stored is None:
            raise ConfigError(f"{path}: has no metrics")
        check_kinds(path, stored, dict.fromkeys(stored, "a number"), "metrics.")
        return {name: _number(name, value) for name, value in stored.items()}

    def scored(self) -> ScoredSet:
        """The detections of the best evaluation, and what there was to find.

        Raises:
            ConfigError: they were not kept, or the file is not what a run writes.
        """
        path = self.path / DETECTIONS
        if not path.is_file():
            raise ConfigError(f"{self.path}: has no {DETECTIONS}; only runs with COCO's evaluator can be compared")
        try:
            return ScoredSet.load(path)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def numbers(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """All numbers that were logged: steps (N,) and values (N,) by split and name; empty where none are kept.

        Lines that are no rows (:func:`~detkit.engine.callbacks.metrics_csv.read_metrics`) are left out, and of a step
        that was evaluated twice the last counts.

        Raises:
            ConfigError: the file is not what a run writes.
        """
        rows: dict[tuple[str, str], dict[int, float]] = {}
        for row in read_metrics(self.path / METRICS):
            rows.setdefault((row.split, row.name), {})[row.step] = row.value
        return {key: (np.array(list(v)), np.array(list(v.values()))) for key, v in rows.items()}

    def steps_done(self) -> int:
        """The last step of which numbers are kept, also while the run is at work; 0 where none are."""
        path = self.path / METRICS
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
        steps = [line.partition(",")[0] for line in lines[1:] if line.endswith("\n")]
        return next((int(step) for step in reversed(steps) if step.isdecimal()), 0)


def runs_below(folder: Path) -> list[RunFolder]:
    """The runs in ``folder`` that can go on, the one that has saved last first."""
    saved = [path for name in (LAST, PREVIOUS) for path in folder.glob(f"*/{name}")]
    saved.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunFolder(path) for path in dict.fromkeys(path.parent for path in saved)]


def runs_begun_below(folder: Path) -> list[RunFolder]:
    """The runs in ``folder`` of which is written down what they are made with, the one that began last first."""
    begun = sorted(folder.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [RunFolder(path.parent) for path in begun]


def _number(name: str, stored: float | None) -> float:
    """What ``evaluation.json`` says of ``name``: -1 is no score, but may be a loss."""
    return float("nan") if stored is None or (stored == UNDEFINED and is_score(name)) else stored
