"""Where a tool puts what it found with a checkpoint, if nobody says: beside it, in a folder for what was asked."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from detkit.app.assemble.identity import is_free
from detkit.app.run.folder import RunFolder
from detkit.app.run.next_command import said
from detkit.config import ConfigError
from detkit.engine.state.published import SUFFIX

#: Letters of a folder's name that stand for overrides; more are cut.
_LONGEST = 120


#: Options of tools that say what is in the name anyway, where things go, or how a report looks.
_NOT_ASKED = ("checkpoint", "split", "output", "num_pictures", "slots")


def folder_beside(checkpoint: str | Path, what: str, split: str) -> Path:
    """``<what>_<checkpoint>_<split>`` beside ``checkpoint``, and for overrides a folder of their own.

    ``evaluation_best_val+model.head.steps-8+tta-flip`` is that of ``model.head.steps=8 tta=flip``, in whatever order.
    Six digits at the end stand for what a name cannot hold: a path, a list, a great many keys.

    How the report looks is not in the name, and neither is what changes no number
    (:func:`~detkit.app.assemble.identity.is_free`).
    """
    checkpoint = Path(checkpoint)
    return checkpoint.parent / f"{what}_{checkpoint.stem}_{split}{_told_apart(said(_NOT_ASKED))}"


def refuse_run(output: str | Path | None, key: str = "output") -> None:
    """Refuse the folder of a run for what a tool found: names would clash, and ``compare`` reads a run's own.

    Args:
        output: the folder that ``key`` names; None for one that the tool chooses.

    Raises:
        ConfigError: as it says.
    """
    if output is not None and RunFolder(Path(output)).is_begun:
        raise ConfigError(f"{key}: {output} is the folder of a run, whose files are its own: choose another folder")


def path_of_copy(checkpoint: str | Path, folder: str | Path, report: str) -> Path:
    """Where a tool puts its changed copy of ``checkpoint`` in ``folder``: under its name, of a published one in .pt.

    Args:
        report: the file that the tool writes beside its copy: without it a file of the copy's name is not the tool's.

    Raises:
        ConfigError: ``folder`` is that of a run, or such a file is there: the checkpoint itself, or another.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    refuse_run(folder)
    copy = folder / (f"{checkpoint.stem}.pt" if checkpoint.suffix.lower() == SUFFIX else checkpoint.name)
    if copy.exists() and (copy.samefile(checkpoint) or not (folder / report).exists()):
        raise ConfigError(f"output: {copy} is there, and a copy is not written over it: choose another folder")
    return copy


def _told_apart(overrides: list[str]) -> str:
    """What a name says of ``overrides``; nothing where none changes a number."""
    kept = sorted((word for word in overrides if not is_free(_key(word))), key=lambda word: (_key(word), word))
    if not kept:
        return ""
    names = [f"{_key(word)}-{'null' if word.startswith('~') else word.partition('=')[2]}" for word in kept]
    whole = "".join(f"+{name}" for name in names)
    shown = re.sub(r"[^\w.+]+", "-", whole, flags=re.ASCII)[:_LONGEST].rstrip("-")
    is_all = shown == whole and all(re.fullmatch(r"[^-+]+-[^-+]+", name) for name in names)
    return shown if is_all else f"{shown}+{hashlib.sha256(' '.join(kept).encode()).hexdigest()[:6]}"


def _key(override: str) -> str:
    """What ``override`` sets, a group as the section it fills."""
    return override.lstrip("~+").partition("=")[0].replace("/", ".")
