"""As many trainings as there are folds, each on all others, by the recipe of one checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from detkit.app.assemble.foreign import inert
from detkit.app.assemble.identity import config_hash
from detkit.app.assemble.schema import TrainSchema
from detkit.app.assemble.stored import Stored
from detkit.app.labels.fold import RECIPE
from detkit.app.labels.known import known_at_start
from detkit.app.run.folder import RunFolder
from detkit.app.run.manifest import data_hash
from detkit.app.sweep.folder import SweepFolder
from detkit.app.sweep.plan import Job
from detkit.app.sweep.process import JobError
from detkit.app.sweep.queue import run_jobs
from detkit.config import ConfigError, validate
from detkit.config.validate import is_component, plain
from detkit.data.datasets.base import DetectionDataset
from detkit.data.subset import Subset
from detkit.utils.files import atomic_write

#: Keys of the trainer that it refuses where there is nothing to evaluate on.
_OF_EVALUATIONS = ("eval_every", "patience")

_PROGRAM = "detkit.app.labels.fold"


def train_folds(
    stored: Stored, dataset: DetectionDataset, subsets: Sequence[Subset], folder: Path, slots: int
) -> list[Path]:
    """Train on each of ``subsets`` of ``dataset`` by the recipe of ``stored``, from its beginning; the checkpoints.

    What is finished in ``folder`` is not run again, and what was stopped goes on, unless the data have changed: then
    other images were held out.

    Args:
        slots: trainings at a time.

    Raises:
        ConfigError: one of them failed, or all would start from weights that know the images.
        FolderInUseError: another process trains in ``folder``.
        Interrupted: SIGINT or SIGTERM came; what was running has saved.
    """
    _refuse_known_start(stored.config.get("init_from"), dataset)
    digest = data_hash(dataset)
    recipes = [fold_recipe(stored, subset) for subset in subsets]
    validate(recipes[0], TrainSchema)
    jobs = [_job(recipe, digest, folder, subset) for recipe, subset in zip(recipes, subsets, strict=True)]
    claimed = SweepFolder(folder)
    try:
        claimed.add(jobs)
        for job, recipe in zip(jobs, recipes, strict=True):
            job.folder.mkdir(exist_ok=True)
            atomic_write(job.folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False))
        outcomes = run_jobs(jobs, slots)
    finally:
        claimed.close()
    if failed := [f"{job.label}: {outcomes[job.key]}" for job in jobs if isinstance(outcomes[job.key], JobError)]:
        raise ConfigError(failed)
    return [RunFolder(job.folder).checkpoint for job in jobs]


def fold_recipe(stored: Stored, subset: Subset) -> dict[str, Any]:
    """The configuration of the training on ``subset``: that of ``stored``, with nothing to validate on.

    Its backbone starts from the weights that the checkpoint's own started from: a training is what the user asks for.
    """
    config = copy.deepcopy(stored.config)
    begun = plain(inert(stored.checkpoint.config, stored.checkpoint.source))["model"].get("backbone")
    backbone = config["model"].get("backbone")
    if is_component(begun) and is_component(backbone) and begun["_target_"] == backbone["_target_"]:
        backbone |= {key: begun[key] for key in ("weights", "pretrained", "checkpoint") if key in begun}
    config["data"] |= {"val": None, "subset": vars(subset)}
    config["trainer"] |= dict.fromkeys(_OF_EVALUATIONS)
    return config | {"evaluator": None, "resume": {"path": None, "allow": []}}


def _refuse_known_start(init_from: str | None, dataset: DetectionDataset) -> None:
    known = known_at_start(init_from, dataset)
    if known.is_all and not known.images.any():
        return
    said = f"{init_from} has trained on {known.images.sum()} of the {len(dataset)} images"
    unknown = f"which images {init_from} has trained on is not known"
    raise ConfigError(
        f"init_from: {said if known.images.any() else unknown}, and a fold that starts from it may judge what it has "
        "seen; init_from=null starts all folds without it"
    )


def _job(recipe: dict[str, Any], digest: str, folder: Path, subset: Subset) -> Job:
    assert subset.fold is not None
    key = config_hash(recipe | {"data_hash": digest})
    label = f"fold {subset.fold + 1} of {subset.folds}"
    steps = recipe["trainer"].get("steps")
    return Job(label, (), key, folder / key, steps, program=(_PROGRAM, str(folder / key)))
