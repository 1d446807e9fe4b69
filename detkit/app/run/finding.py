"""Which run a training is: a new one, one that it is told to go on with, or its own from before a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.identity import changed_keys
from detkit.app.run.folder import RunFolder, runs_begun_below, runs_below
from detkit.config import ConfigError
from detkit.engine.state.checkpoint import LAST, PREVIOUS, CheckpointError, load_latest
from detkit.utils.log import logger


def choose_run(cfg: DictConfig, folder: Path, marks: Sequence[str] = ()) -> RunFolder:
    """The run that ``cfg`` asks for, or the one that torchrun has started anew.

    Args:
        folder: for a run that begins.
        marks: of the torchrun that has started this process, on each machine.

    Raises:
        ConfigError: there is nothing to go on with, it had another configuration, or ``folder`` holds another run.
    """
    stored: Any = OmegaConf.to_container(cfg, resolve=False)
    path = cfg.resume.path
    if restarted := find_restarted(folder, marks):
        path = str(restarted)
    if path is None:
        refuse_used(folder)
        return RunFolder(folder)
    return RunFolder(find_run(path, folder.parent, stored, tuple(cfg.resume.allow)), resumed=True)


def refuse_used(folder: Path) -> None:
    """Refuse a folder for a new run in which another has saved something.

    Raises:
        ConfigError: as it says.
    """
    if saved := RunFolder(folder).saved:
        goes_on = f"resume={folder} goes on with it; else " if RunFolder(folder).can_go_on else ""
        raise ConfigError(
            f"hydra.run.dir: {folder} holds a run ({', '.join(saved)}), which nothing is written over: {goes_on}choose "
            "another folder, or delete this one"
        )


def find_run(path: str, experiment_folder: Path, config: Mapping[str, Any], allow: Sequence[str] = ()) -> Path:
    """The folder of the run to go on with.

    Args:
        path: a run folder, or "auto": the newest below ``experiment_folder`` with the same configuration that has not
            come to its end.
        allow: keys that may differ, with all that stands below them.

    Raises:
        ConfigError: there is none; or it was run with another configuration, and the message names the keys.
    """
    if path == "auto":
        return _newest_unfinished(experiment_folder, config, allow)
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"resume: no folder {path}")
    if not RunFolder(folder).can_go_on:
        raise ConfigError(f"resume: {path} has neither {LAST} nor {PREVIOUS}; it is not a run that can go on")
    before = load_latest(folder).config
    if changed := changed_keys(before, config, allow):
        lines = [f"{key}: was {was!r}, is {now!r}" for key, was, now in changed]
        advice = f"resume.allow=[{','.join(key for key, *_ in changed)}] lets it go on all the same"
        raise ConfigError("\n  ".join([f"resume: {path} was run with another configuration", *lines, advice]))
    for key, was, now in changed_keys(before, config):
        logger.warning("going on with another %s: was %r, is %r", key, was, now)
    return folder


def _newest_unfinished(experiment_folder: Path, config: Mapping[str, Any], allow: Sequence[str]) -> Path:
    for run in runs_below(experiment_folder):
        try:
            if run.result_if_whole() is None and not changed_keys(run.config_of_state(), config, allow):
                load_latest(run.path)
                return run.path
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    raise ConfigError(f"resume=auto: no unfinished run with this configuration in {experiment_folder}")


def find_restarted(folder: Path, marks: Iterable[str]) -> Path | None:
    """The run that this very torchrun has started before, in ``folder`` or beside it; None where it has saved nothing.

    Args:
        marks: of this torchrun on each machine, see :func:`~detkit.app.run.processes.launcher_mark`: the main process
            may have been on another one.
    """
    known = set(marks)
    if not known:
        return None
    for run in (RunFolder(folder), *runs_begun_below(folder.parent)):
        if run.can_go_on and not known.isdisjoint(_marks(run)):
            return run.path
    return None


def _marks(run: RunFolder) -> Iterator[str]:
    try:
        content = run.manifest() or {}
    except ConfigError as error:
        logger.warning("passed over: %s", error)
        return
    for start in (content, *content.get("resumed", [])):
        if start.get("torchrun"):
            yield start["torchrun"]
