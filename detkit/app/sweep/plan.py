"""What a sweep is going to run: every job composed and checked before the first one starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from detkit.app.assemble.identity import config_hash
from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composition import idle_removals, in_one_line, wrong_groups, wrong_slots
from detkit.app.cli.idle import idle_choices, leaving_out
from detkit.app.cli.in_vain import leave_unread_empty, said_in_vain
from detkit.app.cli.paths import own_configs
from detkit.app.cli.slots import Compositions, search_paths, settle_slots
from detkit.config import ConfigError, validate


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep.

    ``label``: what distinguishes it from the others, as on the command line. ``overrides``: its whole command line.
    ``key``: the hash of its configuration, which names its ``folder``. ``steps``: its length, for the time to go.
    ``program``: a module, and its arguments, that trains in the folder and goes on there by itself; None for
    ``train.py`` with the ``overrides``. ``own_configs``: the folder of ``--config-dir``, None without it;
    ``overrides`` may begin with ``hydra.searchpath``.
    """

    label: str
    overrides: tuple[str, ...]
    key: str
    folder: Path
    steps: int | None
    program: tuple[str, ...] | None = None
    own_configs: str | None = None


def plan_jobs(batch: Iterable[Sequence[str]], master: DictConfig, loader: ConfigLoader, sweep_dir: Path) -> list[Job]:
    """The job of each command line in ``batch``; two that would compute the same have the same ``key`` and folder.

    Args:
        master: the configuration of the whole sweep, as Hydra has composed it.
        loader: composes the configuration of one job.

    Raises:
        ConfigError: one or more configurations cannot be run; each line names the job and the key.
    """
    own, elsewhere = own_configs(loader.get_sources()), search_paths(master.hydra.overrides.hydra)
    given = _fixed(master.hydra.overrides.task)
    config_name = master.hydra.job.config_name
    jobs: list[Job] = []
    mistakes: dict[str, list[str]] = {}  # by line: the jobs that have it
    lines = list(batch)
    for number, overrides in enumerate(lines):
        label = " ".join(o.lstrip("+") for o in overrides if o not in given) or "the only job"
        try:
            cfg = compose_job(master, loader, overrides)
            validate(cfg, TrainSchema)
            idle = idle_removals(loader, config_name, overrides)
            if errors := idle or said_in_vain(loader, config_name, overrides, cfg):
                raise ConfigError(errors)
        except (ConfigError, HydraException) as error:
            for line in _told(error, loader, config_name, overrides):
                mistakes.setdefault(line, []).append(f"job {number} ({label})")
            continue
        key = config_hash(_plain(cfg))
        steps = OmegaConf.select(cfg, "trainer.steps")
        steps = steps if isinstance(steps, int) else None
        jobs.append(Job(label, (*elsewhere, *overrides), key, sweep_dir / key, steps, own_configs=own))
    if mistakes:
        raise ConfigError([f"{_whose(where, len(lines))}: {line}" for line, where in mistakes.items()])
    return jobs


def without_twins(jobs: Sequence[Job]) -> list[Job]:
    """The first of those that would compute the same."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.key, job)
    return list(first.values())


def compose_job(master: DictConfig, loader: ConfigLoader, overrides: Sequence[str]) -> DictConfig:
    """The configuration of one job, without Hydra's own part."""
    config_name = master.hydra.job.config_name
    said = [*search_paths(master.hydra.overrides.hydra), *overrides]
    with leaving_out(idle_choices(loader, config_name, said)):
        cfg = loader.load_sweep_config(master, list(overrides))
        with open_dict(cfg):
            del cfg["hydra"]
        settle_slots(cfg, said, config_name, Compositions(loader))
    leave_unread_empty(cfg)
    return cfg


def _told(
    error: ConfigError | HydraException, loader: ConfigLoader, config_name: str, overrides: Sequence[str]
) -> Sequence[str]:
    if isinstance(error, ConfigError):
        return error.errors
    if isinstance(error, MissingConfigException):
        return [in_one_line(error)]
    return wrong_groups(loader, overrides) or wrong_slots(loader, config_name, overrides) or [in_one_line(error)]


def _whose(jobs: Sequence[str], num_jobs: int) -> str:
    if len(jobs) == num_jobs > 1:
        return f"all {num_jobs} jobs"
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return jobs[0] + more


def _fixed(overrides: Sequence[str]) -> set[str]:
    """Those of ``overrides`` that are the same for all jobs, written as Hydra's sweepers write them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in parsed if not o.is_sweep_override()}


def _plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)
