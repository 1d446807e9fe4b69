"""A checkpoint: one file that holds a run, written whole or not at all, and read without trusting it."""

from __future__ import annotations

import platform
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from detkit.engine.state.published import SUFFIX, check_entries, read_published
from detkit.engine.state.upgrade import upgrade_config, upgrade_weights
from detkit.structures import Categories
from detkit.utils.files import atomic_write
from detkit.utils.log import logger
from detkit.utils.tensors import check_dense, unfit_type
from detkit.utils.version import __version__

#: The names in a run folder: the newest state, the one before it, and the weights of the best evaluation.
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

#: Grows when the meaning of what is stored changes: an older detkit then refuses the file instead of misreading it.
FORMAT = 2

_MOST_NAMED = 5

#: What ``zipfile`` raises on a file whose bytes have changed, found by flipping every bit of one.
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, OverflowError, OSError)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message has its path and the reason."""


class DamagedCheckpointError(CheckpointError):
    """A file whose bytes are not those that were written; the one before it may serve."""


def current_versions() -> dict[str, str]:
    """The versions that a run depends on."""
    return {
        "detkit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run after ``step`` updates.

    ``detector``: its weights and buffers; in ``best.pt`` as they were evaluated. ``average``: the state of the moving
    average, if there is one. ``metrics``: of the last evaluation. ``training``: what only going on needs (optimiser,
    scaler, random states, ...); None in ``best.pt``. ``calibration``: thresholds of the classes by
    ``tools/calibrate.py``, None without. ``source``: the file it was read from, for messages; not stored.
    """

    step: int
    detector: Mapping[str, Tensor]
    categories: Categories
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    average: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=current_versions)
    calibration: Mapping[str, Any] | None = None
    source: str = "checkpoint"

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights to evaluate and predict with: the averaged ones where there are any."""
        return self.detector if self.average is None else self.average["detector"]


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, keep: str | Path | None = None) -> None:
    """Write ``checkpoint`` to ``path`` atomically; with ``keep`` the file so far stays under that name.

    Raises:
        CheckpointError: it could not be written, because the disk is full for example, or holds what could not be read
            again; what was there still is.
    """
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "detector": dict(checkpoint.detector),
        "average": checkpoint.average,
        "categories": checkpoint.categories.to_dict(),
        "config": checkpoint.config,
        "metrics": dict(checkpoint.metrics),
        "training": checkpoint.training,
        "versions": dict(checkpoint.versions),
    }
    if checkpoint.calibration is not None:
        state["calibration"] = checkpoint.calibration
    try:
        atomic_write(path, lambda temporary: _serialise(state, temporary), keep)
    except OSError as error:
        kept = f"; {path} is still the one from before" if Path(path).exists() else ""
        raise CheckpointError(
            f"{path} cannot be written at step {checkpoint.step}: {error.strerror or error}{kept}"
        ) from error


def _serialise(state: Mapping[str, Any], path: Path) -> None:
    try:
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch reports a cut-off write as "unexpected pos", with the cause as its context
        if isinstance(error.__context__, Exception):
            raise error.__context__ from None
        raise
    if unreadable := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise CheckpointError(f"a checkpoint with {', '.join(unreadable)} in it could not be read again")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, or a published one, onto the CPU. Nothing in the file can run code.

    Raises:
        DamagedCheckpointError: the file is cut off or its bytes have changed; the message names the record.
        CheckpointError: there is no such file, or it is a folder, another program's, of another format, or would run
            code.
    """
    path = Path(path)
    if path.is_dir():
        best = f", which has {path / BEST}" if (path / BEST).is_file() else ""
        raise CheckpointError(f"{path}: is a folder{best}; a file is wanted, as best.pt or last.pt of a run")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix.lower() == SUFFIX:
        return _from_published(path)
    _check_archive(path)
    _refuse_program(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(f"{path}: refused: it asks for {refused[1]}, which could run code") from error
        raise DamagedCheckpointError(f"{path}: damaged or no checkpoint: {str(error).partition(chr(10))[0]}") from error
    return _parse(state, path)


def load_config(path: str | Path) -> Mapping[str, Any]:
    """The configuration in a checkpoint, from the small record of plain values: no tensor is read or checked.

    Raises:
        DamagedCheckpointError: that record is not what was written.
        CheckpointError: as :func:`load_checkpoint`.
    """
    path = Path(path)
    if path.suffix.lower() == SUFFIX:
        return _from_published(path).config
    try:
        _refuse_program(path)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    archive.read(name)  # compares it with its checksum
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(f"{path}: damaged or no checkpoint: {str(error).partition(chr(10))[0]}") from error
    return _parse(state, path).config


def load_latest(run_dir: str | Path) -> Checkpoint:
    """The newest whole state of a run: ``last.pt``, or ``previous.pt`` where that one is damaged or missing.

    Raises:
        CheckpointError: there is neither, or neither can be used.
    """
    last, previous = Path(run_dir) / LAST, Path(run_dir) / PREVIOUS
    if not (last.exists() or previous.exists()):
        raise CheckpointError(f"{run_dir}: no checkpoint there: neither {LAST} nor {PREVIOUS}")
    try:
        if last.exists() or not previous.exists():
            return load_checkpoint(last)
        reason = f"{last} is missing"
    except DamagedCheckpointError as error:
        if not previous.exists():
            raise
        reason = str(error)
    checkpoint = load_checkpoint(previous)
    logger.warning("%s; going back to %s of step %d", reason, previous, checkpoint.step)
    return checkpoint


def load_weights(detector: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``detector``; names and shapes must be the same.

    Raises:
        CheckpointError: they are not; the message counts and names what is missing, unknown, of another shape, or of
            numbers that are no weights (whole, complex).
    """
    own = detector.state_dict()
    missing = [name for name in own if name not in weights]
    unknown = [name for name in weights if name not in own]
    types = [f"{k} {kind}" for k in own if k in weights and (kind := unfit_type(weights[k], own[k]))]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    what = {"missing": missing, "unknown": unknown, "of another shape": shapes, "of another type": types}
    if any(what.values()):
        differences = "".join(f"\n  {len(names)} {kind}: {_first(names)}" for kind, names in what.items() if names)
        raise CheckpointError(
            f"{source} holds another model ({len(own)} tensors here, {len(weights)} there):{differences}"
        )
    detector.load_state_dict(weights)


def check_categories(checkpoint: Checkpoint, categories: Categories) -> None:
    """Refuse a checkpoint that was trained for other classes than ``categories``.

    Raises:
        CheckpointError: with the difference in words.
    """
    if difference := checkpoint.categories.difference(categories):
        raise CheckpointError(f"{checkpoint.source} was trained for other classes than the data set has: {difference}")


def _check_archive(path: Path) -> None:
    """Compare every record with its checksum: ``torch.load`` alone does not notice a flipped bit."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DamagedCheckpointError(f"{path}: cut off, damaged or no checkpoint at all: {reason}") from error
    # The checksums do not cover the table of contents. The one bit there that would give other contents without an
    # error (found by flipping every bit) is the mark of a folder, whose data torch then does not read.
    damaged = damaged or next((info.filename for info in archive.infolist() if info.external_attr & 0x10), None)
    if damaged:
        raise DamagedCheckpointError(f"{path}: damaged: the record {damaged} does not match its checksum")


def _refuse_program(path: Path) -> None:
    """Refuse a file of ``torch.export``, which is an archive too."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/archive_format") for name in archive.namelist()):
            raise CheckpointError(
                f"{path}: torch's exported program, which torch.export.load reads; here the checkpoint is wanted that "
                "it was made from, or for evaluate, explain and predict a .onnx file"
            )


def _from_published(path: Path) -> Checkpoint:
    try:
        weights, beside = read_published(path)
    except ValueError as error:
        raise DamagedCheckpointError(str(error)) from error
    return Checkpoint(
        step=beside.step, detector=weights, categories=Categories.from_dict(beside.categories), config=beside.config,
        metrics=beside.metrics, versions=beside.versions, calibration=beside.calibration, source=str(path),
    )  # fmt: skip


def _parse(state: Any, path: Path) -> Checkpoint:
    if not isinstance(state, dict) or not {"format", "detector"} <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of detkit: it holds {_contents(state)}")
    if not isinstance(state["format"], int) or state["format"] not in (1, FORMAT):
        versions = state.get("versions")
        writer = versions.get("detkit", "unknown") if isinstance(versions, dict) else "unknown"
        raise CheckpointError(
            f"{path}: format {state['format']!r}, written by detkit {writer}; this is detkit {__version__}, which "
            f"reads formats 1 to {FORMAT}"
        )
    _check_state(state, path)
    if state["format"] == 1:
        state = _upgraded(state)
    return Checkpoint(
        step=state["step"],
        detector=state["detector"],
        average=state["average"],
        categories=Categories.from_dict(state["categories"]),
        config=state["config"],
        metrics=state["metrics"],
        training=state["training"],
        versions=state["versions"],
        calibration=state.get("calibration"),
        source=str(path),
    )


def _check_state(state: dict[str, Any], path: Path) -> None:
    """Refuse a state in which an entry is missing or of another type."""
    try:
        check_entries({"calibration": None, **state}, {"detector": Mapping}, path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    for name in ("average", "training"):
        if name not in state:
            raise CheckpointError(f"{path}: it has no entry {name!r}")
        if not isinstance(state[name], Mapping | None):
            raise CheckpointError(f"{path}: its entry {name!r} must be a mapping or None")
    tensors = {"detector": state["detector"]}
    if (average := state["average"]) is not None:
        tensors["average.detector"] = average.get("detector")
    for name, weights in tensors.items():
        if not isinstance(weights, Mapping) or not all(isinstance(v, Tensor) for v in weights.values()):
            raise CheckpointError(f"{path}: its entry {name!r} must be a mapping of tensors")
        try:
            check_dense({f"{name}.{key}": value for key, value in weights.items()})
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint of format 1 as one of format 2."""
    average = state["average"]
    if average is not None:
        average = {**average, "detector": upgrade_weights(average["detector"])}
    detector, config = upgrade_weights(state["detector"]), upgrade_config(state["config"])
    return {**state, "format": 2, "detector": detector, "average": average, "config": config}


def _contents(state: Any) -> str:
    if not isinstance(state, dict):
        return f"a {type(state).__name__}"
    return f"a dictionary of {_first([str(key) for key in state])}" if state else "an empty dictionary"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
