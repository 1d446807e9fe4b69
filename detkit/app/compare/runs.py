"""What the folders of finished runs hold."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from detkit.app.assemble.identity import changed_keys, config_hash, leaves
from detkit.app.run.folder import RunFolder
from detkit.app.sweep.folder import JOBS, read_jobs
from detkit.config import ConfigError
from detkit.evaluation import ScoredSet
from detkit.evaluation.columns import TruthColumns
from detkit.utils.log import logger

#: What a manifest says of the code that a run was made with.
_OF_CODE = ("git.revision", "git.diff_hash")

#: Differing keys that a system is named by; the page shows all of them.
_MOST_NAMED = 3


@dataclass(frozen=True)
class Run:
    """A finished run; ``label`` as its sweep calls it, or None."""

    folder: Path
    label: str | None
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """What all of the run's random numbers come from."""
        return self.config["seed"]

    @cached_property
    def experiment(self) -> str | None:
        """The recipe that its command names; None where it names none, or another program started it."""
        command = (RunFolder(self.folder).manifest() or {}).get("command") or []
        named = [str(word).removeprefix("experiment=") for word in command if str(word).startswith("experiment=")]
        return named[-1] if named else None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """COCO's numbers of the best evaluation; nan for one that is not defined."""
        return RunFolder(self.folder).metrics()

    @cached_property
    def scored(self) -> ScoredSet:
        """The detections of the best evaluation, and what there was to find."""
        return RunFolder(self.folder).scored()

    @cached_property
    def table(self) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """The logged numbers: steps (N,) and values (N,) by split and name; empty where none were kept."""
        return RunFolder(self.folder).numbers()

    @property
    def images_per_second(self) -> float | None:
        """The median over the logged steps of training but the first, which warms up; None where none is logged."""
        _, values = self.table.get(("train", "time/images_per_second"), (np.zeros(0), np.zeros(0)))
        return statistics.median(values[1:]) if len(values) > 1 else None


@dataclass(frozen=True)
class System:
    """Runs that differ by their seed alone, under one name. ``differences``: what sets it apart, key by key."""

    name: str
    runs: tuple[Run, ...]
    differences: Mapping[str, Any]

    def values(self, metric: str) -> np.ndarray:
        """(S,) of its runs.

        Raises:
            ConfigError: there is no such metric.
        """
        for run in self.runs:
            if metric not in run.metrics:
                raise ConfigError(f"no metric {metric!r} in {run.folder}; there are {', '.join(run.metrics)}")
        return np.array([run.metrics[metric] for run in self.runs])


def made_unlike(systems: Sequence[System]) -> list[str]:
    """What was not the same for all runs though no key that sets them apart says so: the code, versions, the data."""
    manifests = [dict(leaves(RunFolder(run.folder).manifest() or {})) for system in systems for run in system.runs]
    told = []
    for key in sorted({key for manifest in manifests for key in manifest}):
        expected = key.startswith("data.") and any(name.startswith("data.") for name in systems[0].differences)
        if expected or not (key in _OF_CODE or key.startswith(("versions.", "data."))):
            continue
        counts = Counter(str(manifest.get(key, "unknown"))[:10] for manifest in manifests)
        if len(counts) > 1:
            told.append(f"{key} ({', '.join(f'{value}: {count}' for value, count in counts.items())})")
    return told


def read_systems(paths: Sequence[Path]) -> tuple[list[System], list[str]]:
    """The finished runs in ``paths`` (run folders or sweep folders), grouped; and the names of the unfinished ones.

    A folder that is named twice, in whatever words, is one run.

    Raises:
        ConfigError: a path is neither, nothing is finished, or the runs were evaluated on different data or by
            different measures.
    """
    folders: dict[Path, str | None] = {}
    for path in paths:
        if (path / JOBS).is_file():
            folders |= read_jobs(path)
        elif RunFolder(path).is_there:
            folders[path] = None
        else:
            raise ConfigError(f"{path}: neither the folder of a run nor that of a sweep")
    runs, missing = [], []
    seen: set[Path] = set()
    for folder, label in folders.items():
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        result = RunFolder(folder).result()
        if result is None:
            missing.append(label or str(folder))
            continue
        runs.append(Run(folder, label, RunFolder(folder).config(), result))
    if not runs:
        raise ConfigError("\n  ".join(["none of the runs has come to its end:", *missing]))
    _check_same_data(runs)
    _check_same_measures(runs)
    return _group(runs, by_label=len(paths) == 1), missing


def _check_same_data(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if not _same(run.scored.truth, first.scored.truth) or run.scored.names != first.scored.names:
            raise ConfigError(f"{run.folder} was evaluated on other images or annotations than {first.folder}")


def _same(one: TruthColumns, other: TruthColumns) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _check_same_measures(runs: Sequence[Run]) -> None:
    first, measures = runs[0], _measures(runs[0])
    for run in runs[1:]:
        for name, value in _measures(run).items():
            if value != measures[name]:
                raise ConfigError(f"{run.folder} was scored with another evaluator.{name} than {first.folder}")


def _measures(run: Run) -> dict[str, Any]:
    """What a run's numbers are counted by, under the names that its evaluator has for them."""
    return {**run.scored.settings._asdict(), "max_detections": run.scored.max_detections}


def check_same_classes(systems: Sequence[System], metrics: Sequence[str]) -> None:
    """Refuse to compare numbers of rare, common or frequent classes, where these are not the same for all runs.

    Raises:
        ConfigError: the message names the first of such ``metrics`` and two runs.
    """
    first, *others = [run for system in systems for run in system.runs]
    of_some = {metric.name for metric in first.scored.definitions if metric.classes is not None}
    for metric in metrics:
        for run in others if metric in of_some else []:
            if run.scored.frequency != first.scored.frequency:
                raise ConfigError(
                    f"{metric} is not of the same classes in {run.folder} and {first.folder}: they differ in "
                    "evaluator.frequency_bounds, or in the training images that these count"
                )


def _group(runs: Sequence[Run], by_label: bool) -> list[System]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(config_hash({**run.config, "seed": None}), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            logger.warning("two runs of the same configuration and seed: %s", ", ".join(str(r.folder) for r in group))
    configs = [group[0].config for group in groups.values()]
    keys = _differing_keys(configs)
    experiments = [group[0].experiment for group in groups.values()]
    by_experiment = len(set(experiments)) == len(groups) > 1 and None not in experiments
    systems = []
    for group, config in zip(groups.values(), configs, strict=True):
        values = dict(leaves(config))
        differences = {key: values.get(key) for key in keys}
        if by_label and group[0].label:
            name = _label(group[0])
        elif by_experiment:
            name = f"experiment={group[0].experiment}"
        else:
            name = _name(differences, group[0])
        systems.append(System(name, tuple(group), differences))
    return _distinct(systems)


def _label(run: Run) -> str:
    """The sweep's label without the seed."""
    words = [word for word in (run.label or "").split(" ") if not word.startswith("seed=")]
    return " ".join(words) or "all runs"


def _differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sets ``configs`` apart; of a component that is another class its name alone."""
    first, *others = configs
    found = {key: None for other in others for key, _, _ in changed_keys(first, other) if key != "seed"}
    classes = [key.removesuffix("_target_") for key in found if key.endswith("._target_")]
    values = [dict(leaves(config)) for config in configs]

    def tells_apart(key: str) -> bool:
        """Whether two configurations differ in ``key`` though the components around it are of the same classes."""
        around = [f"{name}_target_" for name in classes if key.startswith(name) and key != f"{name}_target_"]
        by_class: dict[tuple[Any, ...], set[str]] = {}
        for config in values:
            by_class.setdefault(tuple(config.get(name) for name in around), set()).add(repr(config.get(key)))
        return any(len(different) > 1 for different in by_class.values())

    return [key for key in found if tells_apart(key)]


def _name(differences: Mapping[str, Any], run: Run) -> str:
    words = [f"{key.removesuffix('._target_')}={value}" for key, value in differences.items()]
    if not words:
        return run.folder.name if run.folder.name else str(run.folder)
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return " ".join(words[:_MOST_NAMED]) + more


def _distinct(systems: Sequence[System]) -> list[System]:
    """The same, the folder added to names that occur twice."""
    names = [system.name for system in systems]
    return [
        system
        if names.count(system.name) == 1
        else System(f"{system.name} ({system.runs[0].folder.name})", system.runs, system.differences)
        for system in systems
    ]
