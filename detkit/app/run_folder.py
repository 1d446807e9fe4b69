"""A run's folder: where it is, which one to go on with, and what is written beside the checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detkit.config import ConfigError
from detkit.engine.checkpoint import (
    LAST,
    PREVIOUS,
    CheckpointError,
    DamagedCheckpointError,
    load_config,
    load_latest,
)
from detkit.engine.records import FitResult
from detkit.utils.files import atomic_write
from detkit.utils.log import logger

#: Written when a run has come to its end: what it ended with.
RESULT = "result.json"

#: What does not change anything that is computed.
_FREE = (
    *("resume", "device", "process_timeout", "run_root", "callbacks", "trainer.save_every", "trainer.log_every"),
    *(f"data.loader.{s}.{key}" for s in ("train", "val") for key in ("num_workers", "timeout", "pin_memory")),
)

#: Where the data lie: a run may go on from a copy of them elsewhere, but two runs on other data are two runs.
_PLACES = tuple(f"data{s}.root" for s in ("", ".train", ".val"))


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
        candidates = sorted(_checkpoints_below(experiment_folder), key=lambda p: p.stat().st_mtime, reverse=True)
        for folder in dict.fromkeys(p.parent for p in candidates):
            try:
                if find_result(folder) is None and not changed_keys(_config_of(folder), config, allow):
                    load_latest(folder)
                    return folder
            except CheckpointError as error:
                logger.warning("passed over: %s", error)
        raise ConfigError(f"resume=auto: no unfinished run with this configuration in {experiment_folder}")
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"resume: no folder {path}")
    if not can_go_on(folder):
        raise ConfigError(f"resume: {path} has neither {LAST} nor {PREVIOUS}; it is not a run that can go on")
    before = load_latest(folder).config
    if changed := changed_keys(before, config, allow):
        lines = [f"{key}: was {was!r}, is {now!r}" for key, was, now in changed]
        advice = f"resume.allow=[{','.join(key for key, *_ in changed)}] lets it go on all the same"
        raise ConfigError("\n  ".join([f"resume: {path} was run with another configuration", *lines, advice]))
    for key, was, now in changed_keys(before, config):
        logger.warning("going on with another %s: was %r, is %r", key, was, now)
    return folder


def changed_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], allow: Sequence[str] = ()
) -> list[tuple[str, Any, Any]]:
    """Key, value before and value now wherever two configurations differ in what is computed, but for ``allow``."""
    flat_before, flat_now = dict(leaves(before)), dict(leaves(now))
    keys = sorted(flat_before.keys() | flat_now.keys())
    return [
        (k, flat_before.get(k), flat_now.get(k))
        for k in keys
        if flat_before.get(k) != flat_now.get(k) and not is_free(k, (*_FREE, *_PLACES, *allow))
    ]


def is_free(key: str, free: tuple[str, ...] = _FREE) -> bool:
    """Whether ``key`` says nothing about what is computed."""
    return any(key == name or key.startswith(name + ".") for name in free)


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten digits for what ``config`` (plain values, interpolations as they stand) computes."""
    said = sorted((key, value) for key, value in leaves(config) if not is_free(key))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]


def can_go_on(folder: Path) -> bool:
    """Whether ``folder`` holds the state of a run, so that ``resume`` can go on with it."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def read_result(folder: Path) -> dict[str, Any] | None:
    """What the run in ``folder`` ended with; None where it has not come to its end.

    Raises:
        ConfigError: the file is not what a run writes.
    """
    return read_object(folder / RESULT)


def find_result(folder: Path) -> dict[str, Any] | None:
    """As :func:`read_result`, but a run whose file is damaged has not come to its end: going on with it writes it anew,
    without another step where none is left."""
    try:
        return read_result(folder)
    except ConfigError as error:
        logger.warning("%s; taken as unfinished", error)
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file ``path``; None where there is no such file.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # also bytes that are not UTF-8
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object but {str(content)[:40]!r}")
    return content


def write_result(folder: Path, result: FitResult, monitor: str, costs: Mapping[str, Any]) -> None:
    """Write ``result.json``: the run has come to its end, with what and at what costs."""
    content = {
        "steps": result.step,
        "stopped_early": result.stopped_early,
        "monitor": monitor,
        "best": result.best,
        "best_step": result.best_step,
        **costs,
    }
    atomic_write(folder / RESULT, json.dumps(content, indent=2) + "\n")


def _config_of(folder: Path) -> Mapping[str, Any]:
    """The configuration of the newest state in ``folder``, without its tensors."""
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        return load_config(last if last.exists() else previous)
    except DamagedCheckpointError:
        if not (last.exists() and previous.exists()):
            raise
    return load_config(previous)


def _checkpoints_below(folder: Path) -> Iterator[Path]:
    for name in (LAST, PREVIOUS):
        yield from folder.glob(f"*/{name}")


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested mappings, by its full key."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
