"""The folder of a comparison: what it was made of, so that none of other runs is written over it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from detkit.config import ConfigError
from detkit.utils.files import atomic_write

#: The files that tell a comparison, and what it was made of.
TABLE, COMPARED = "table.csv", "compared.json"

#: The sweep around the folder, seen from it.
_AROUND = [".."]

#: Runs that a message names.
_MOST_NAMED = 3


def refuse_other(output: Path, paths: Sequence[Path]) -> None:
    """Refuse the folder ``output`` where it holds a comparison of others than ``paths``, run folders or sweeps.

    The order does not count, and a sweep is the same whatever it has come to hold.

    Raises:
        ConfigError: as it says; also where it is not known what was compared, except in the sweep's own folder.
    """
    before, now = _stored(output), _named(output, paths)
    if before == now or not (output / TABLE).exists() or (before is None and now == _AROUND):
        return
    of = "runs that are not known" if before is None else _in_words(output, before)
    raise ConfigError(f"{output} holds a comparison of {of}: choose another folder by --output, or delete this one")


def write_down(output: Path, paths: Sequence[Path]) -> None:
    """Keep in ``output`` that it is a comparison of ``paths``."""
    atomic_write(output / COMPARED, json.dumps({"compared": _named(output, paths)}, indent=2) + "\n")


def _named(output: Path, paths: Sequence[Path]) -> list[str]:
    """``paths`` seen from ``output``, so that they may move together."""
    return sorted({_seen_from(output.resolve(), path.resolve()) for path in paths})


def _seen_from(folder: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


def _stored(output: Path) -> list[str] | None:
    """What ``output`` says that it was made of; None where it does not."""
    try:
        content = json.loads((output / COMPARED).read_text(encoding="utf-8"))
        return [str(path) for path in content["compared"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_words(output: Path, paths: Sequence[str]) -> str:
    words = [os.path.normpath(output / path) for path in paths[:_MOST_NAMED]]
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(words) + more
