"""Files and the room for them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progress import Meter
from rich.console import Console
from rich.filesize import decimal

#: At most so many bytes are read, written or hashed at a time: large enough to cost nothing, small enough to hold.
CHUNK = 1 << 20

#: Bytes that must stay free on the disk after all that is written: other programs need some too.
SPACE_RESERVE = 64 * 1000**2

#: Hashing a file below this many bytes is over before a bar would be seen.
SHOW_BAR_FROM = 256 * 1000**2


class FetchError(ValueError):
    """A file or an archive could not be had, or is not what it should be. The message says what to do."""


@dataclass(frozen=True)
class Expected:
    """What a file must be; None where nothing is known beforehand. Hash values in hexadecimal, ``size`` in bytes."""

    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def has_checksum(self) -> bool:
        return bool(self.sha256 or self.md5)


def find_mismatch(path: Path, expected: Expected, console: Console) -> str | None:
    """How the file differs from what is expected, in words; None when it does not. The size is looked at first."""
    size = path.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"it has {size} bytes instead of {expected.size}"
    for algorithm, wanted in (("sha256", expected.sha256), ("md5", expected.md5)):
        if wanted and (found := hash_file(path, algorithm, console)) != wanted.lower():
            return f"its {algorithm} is {found} instead of {wanted.lower()}"
    return None


def hash_file(path: Path, algorithm: str, console: Console) -> str:
    """The hexadecimal ``algorithm`` ("sha256", "md5") digest of a file, with a progress bar when it is large."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = path.stat().st_size
    shown = console if size >= SHOW_BAR_FROM else Console(quiet=True)
    with open(path, "rb") as stream, Meter(shown, f"checking {path.name}") as meter:
        meter.begin(0, size)
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            meter.advance(len(chunk))
    return digest.hexdigest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise FetchError when ``needed`` bytes and a reserve are not free on the disk where ``folder`` is or will be."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed + SPACE_RESERVE > free:
        raise FetchError(
            f"{folder}: {purpose} needs {decimal(needed)} (and {decimal(SPACE_RESERVE)} to spare), but {decimal(free)} "
            "are free on that disk. Make room, or choose another folder"
        )


def write_json(path: Path, content: Any) -> None:
    """Write ``path`` so that it is old or new, never half."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content), encoding="utf-8")
    os.replace(new, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty when the file is missing or not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
