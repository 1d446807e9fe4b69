"""detkit's sweeper and launcher, as Hydra wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from detkit.app.cli.sweep_options import PLUGINS
from detkit.app.sweep import batches

# This loads Hydra's own plugins a second time: what derives from one must be imported afterwards.
Plugins.instance()
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class ProcessLauncher(Launcher):
    """Runs each job as a process of its own, ``slots`` of them at a time, on the GPUs in turn.

    A finished job is skipped and one that was stopped goes on. A job that fails is told at the end and does not stop
    the others. Ctrl-C and SIGTERM let every running job finish its step and save. Hydra's basic launcher runs all jobs
    in one process, and joblib's reuses its workers: there one job's memory stays, and one that is killed ends the rest.
    """

    def __init__(self, slots: int = 1) -> None:
        self.slots = slots

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._batches = batches.Batches(config, hydra_context.config_loader, self.slots)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs, given by their command lines; what each returned, in their order."""
        return self._batches.run(job_overrides)


class CheckedSweeper(BasicSweeper):
    """All combinations of the given lists; none starts before each has been composed and checked.

    ``params``: lists from a file, ``hydra.sweeper.params``; the command line replaces those with the same key.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        path = batches.fix_folder(self.config)
        batch = self.split_arguments(batches.parse(self.params, arguments, loader), None)[0]
        if isinstance(self.launcher, ProcessLauncher):
            results = self.launcher.launch(batch, initial_job_idx=0)
        else:
            with batches.checked(batch, self.config, loader):
                results = self.launcher.launch(batch, initial_job_idx=0)
        batches.report(Path(path), results)
        return [results]


def register_sweeps() -> None:
    """Make the classes behind the names in :mod:`~detkit.app.cli.sweep_options` known to Hydra.

    They are entered in Hydra's own list: a package called ``hydra_plugins`` would be imported by every Hydra program
    of the environment.
    """
    for plugin in (ProcessLauncher, CheckedSweeper):
        Plugins.instance().class_name_to_class[f"{PLUGINS}.{plugin.__name__}"] = plugin
