"""What all command-line tools share: Hydra set up for detkit, and mistakes shown without a traceback."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detkit.app.cli.command_line import configuration_wanted, help_wanted, read_command_line
from detkit.app.cli.components import load_components
from detkit.app.cli.failure import TOLD, fail, in_words, told_once, told_plainly
from detkit.app.cli.idle import leaving_out
from detkit.app.cli.idle import told as tell_idle
from detkit.app.cli.in_vain import leave_unread_empty
from detkit.app.cli.paths import config_dir
from detkit.app.cli.slots import Compositions, search_paths, settle_slots
from detkit.data.workers import worker_deaths_explained
from detkit.utils.commands import command
from detkit.utils.lock import LOCK
from detkit.utils.memory import keep_freed_memory

Task = Callable[[DictConfig, Path], Any]

#: By this variable Hydra raises an error instead of printing it with its traceback.
_FULL_ERROR = "HYDRA_FULL_ERROR"


def run_tool(task: Task, config_name: str, sweep_task: Task | None = None) -> None:
    """Compose ``configs/<config_name>.yaml`` with the command line and run ``task(cfg, run folder)``.

    Under ``-m`` it is ``sweep_task``, whose errors go to Hydra's sweeper, since one job must not end the others.

    Plain value overrides ``a.b=c`` are taken as ``++a.b=c``: Hydra's own check stops at the first unknown key, without
    the nearest name; :func:`detkit.config.validate` then tells them all. What else can be wrong on a command line is
    told before Hydra sees it, with exit code 2.
    """
    keep_freed_memory()
    with told_plainly():
        load_components()
    OmegaConf.register_new_resolver("command", command, replace=True)
    OmegaConf.register_new_resolver("or_custom", lambda name: name or "custom", replace=True)

    def job(cfg: DictConfig) -> Any:
        runtime = HydraConfig.get().runtime
        folder = Path(runtime.output_dir)
        if sweep_task is not None and HydraConfig.get().mode is RunMode.MULTIRUN:
            return sweep_task(cfg, folder)
        is_new = folder != Path(runtime.cwd) and not _names(folder)
        try:
            given, name = HydraConfig.get().overrides, HydraConfig.get().job.config_name
            said = [*search_paths(given.hydra), *given.task]
            tell([tell_idle(one, said) for one in idle] + settle_slots(cfg, said, name, Compositions(_loader())))
            leave_unread_empty(cfg)
            with worker_deaths_explained():
                return task(cfg, folder)
        except (*TOLD, KeyboardInterrupt) as error:
            if is_new:
                _remove_unused(folder)
            fail(error)

    def tell(notes: Iterable[str]) -> None:
        if int(os.environ.get("RANK", "0")) == 0:  # of several processes all read the command line
            for note in notes:
                print(f"note: {note}", file=sys.stderr)

    job.__module__ = "__main__"
    threading.excepthook = _tell_of_thread
    start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(job)
    with told_once():
        if (answer := help_wanted(sys.argv[1:], config_name)) is not None:
            print(answer)
            sys.exit(0)
        sys.argv[1:], idle = read_command_line(sys.argv[1:], config_name)
        if (composed := configuration_wanted(sys.argv[1:], config_name, idle)) is not None:
            tell(composed[1])
            print(composed[0], end="")
            sys.exit(0)
    with told_plainly(), _errors_let_through(), leaving_out(idle):
        start()


@contextmanager
def _errors_let_through() -> Iterator[None]:
    """Hydra's own messages as they are; an error of any other kind, which Hydra would print, comes out of the block."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    except CompactHydraException as error:
        causes = [error.__cause__] if isinstance(error.__cause__, OmegaConfBaseException) else []
        print(error, *causes, sep="\n", file=sys.stderr)
        sys.exit(1)
    finally:
        os.environ.pop(_FULL_ERROR)
        if before is not None:
            os.environ[_FULL_ERROR] = before


def _tell_of_thread(args: threading.ExceptHookArgs) -> None:
    """A thread that cannot write (TensorBoard's has a queue of its own) says so in a line, as the tools do."""
    if isinstance(args.exc_value, OSError):
        print(f"error: {in_words(args.exc_value)}", file=sys.stderr)
    else:
        threading.__excepthook__(args)


def _loader() -> ConfigLoader:
    hydra = GlobalHydra.instance()
    return hydra.config_loader()


def _remove_unused(folder: Path) -> None:
    """A run that never began leaves no folder behind: at most its log is in it."""
    if all(name == LOCK or fnmatch(name, "log*.txt") for name in _names(folder)):
        shutil.rmtree(folder, ignore_errors=True)


def _names(folder: Path) -> list[str]:
    """What lies in ``folder``; nothing where another process of the run has just removed it."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
