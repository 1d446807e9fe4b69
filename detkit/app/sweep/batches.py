"""What Hydra's sweeper and launcher (``plugins.py``) do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import rich
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict, read_write
from rich.markup import escape

from detkit.app.cli.failure import told_plainly
from detkit.app.cli.overrides import normalize_overrides
from detkit.app.run.next_command import tell_next
from detkit.app.sweep.folder import SweepFolder
from detkit.app.sweep.plan import Job, plan_jobs, without_twins
from detkit.app.sweep.process import JobError
from detkit.app.sweep.queue import Outcome, run_jobs
from detkit.config import ConfigError


class Batches:
    """Runs one batch of jobs after the other: a grid is one, a search launches many.

    Args:
        config: of the whole sweep.
        loader: composes that of each job.
        slots: jobs at a time.
    """

    def __init__(self, config: DictConfig, loader: ConfigLoader, slots: int) -> None:
        with told_plainly():
            if not isinstance(slots, int) or slots < 1:
                raise ConfigError(f"hydra.launcher.slots: must be 1 or more, not {slots!r}")
        self._config, self._loader, self._slots = config, loader, slots
        self._folder: SweepFolder | None = None

    def run(self, batch: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Check all jobs of ``batch``, then run them; what each returned, in their order."""
        with told_plainly():
            path = Path(self._config.hydra.sweep.dir)
            jobs = plan_jobs(batch, self._config, self._loader, path)
            if self._folder is None:
                self._folder = SweepFolder(path)
            self._folder.add(jobs)
        unique = without_twins(jobs)
        if len(unique) < len(jobs):
            rich.print(f"{len(jobs) - len(unique)} of {len(jobs)} jobs would compute the same as another: left out")
        outcomes = run_jobs(unique, self._slots)
        return [_job_return(job, outcomes[job.key]) for job in jobs]


@contextmanager
def checked(batch: Sequence[Sequence[str]], config: DictConfig, loader: ConfigLoader) -> Iterator[None]:
    """Before a launcher of another kind: the same checks, list and claim of the folder."""
    with told_plainly():
        path = Path(config.hydra.sweep.dir)
        jobs = plan_jobs(batch, config, loader, path)
        folder = SweepFolder(path)
        folder.add(jobs)
    try:
        yield
    finally:
        folder.close()


def parse(params: Mapping[str, str], arguments: Sequence[str], loader: ConfigLoader) -> list[Override]:
    """The lists of a sweep's file, then the command line, which replaces what has the same key."""
    parser = OverridesParser.create(loader)
    given = parser.parse_overrides(list(arguments))
    said = {_key(override) for override in given}
    from_file = parser.parse_overrides(normalize_overrides([f"{key}={value}" for key, value in params.items()]))
    return [*(override for override in from_file if _key(override) not in said), *given]


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def fix_folder(config: DictConfig) -> Path:
    """Give every job, whose own command line would make another name, the folder of the sweep."""
    path = Path(config.hydra.sweep.dir).absolute()
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(path)
        config.hydra.overrides.hydra.append(f'hydra.sweep.dir="{path}"')
    return path


def report(path: Path, results: Sequence[JobReturn]) -> None:
    """Say what became of the jobs and where they are; the process ends with code 1 where one failed."""
    failed = [result for result in results if result.status is not JobStatus.COMPLETED]
    console = rich.get_console()
    for result in failed:
        label = escape(" ".join(result.overrides or ()) if result.task_name is None else result.task_name)
        console.print(f"[bold red]failed[/bold red] {label}: {escape(str(result._return_value))}", soft_wrap=True)
    console.print(f"{len(results) - len(failed)} of {len(results)} jobs finished")
    shown = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    tell_next("compare", shown)
    if failed:
        raise SystemExit(1)


def _job_return(job: Job, outcome: Outcome) -> JobReturn:
    result = JobReturn(overrides=list(job.overrides), task_name=job.label)
    if isinstance(outcome, JobError):
        result.status, result.return_value = JobStatus.FAILED, outcome
    else:
        result.status, result.return_value = JobStatus.COMPLETED, outcome["best"]
    return result
