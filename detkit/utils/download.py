"""Files named by a URL: fetched once, and used only if their checksum is the one that the URL tells."""

from __future__ import annotations

import functools
import hashlib
import re
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import torch

from detkit.utils.files import atomic_write
from detkit.utils.log import logger
from detkit.utils.progress import track

_CHECKSUM = re.compile(r"#sha256=([0-9a-f]{64})$")
_PIECE = 1 << 20
_PATIENCE = 60  # seconds without an answer


def is_url(source: str | Path) -> bool:
    """Whether ``source`` is to be fetched."""
    return str(source).startswith(("https://", "http://", "file://"))


def local_copy(source: str, folder: Path | None = None) -> Path:
    """The file that ``source`` names, ``URL#sha256=HEX``, in the cache beside torch's own downloads.

    Args:
        folder: another one than the cache.

    Raises:
        ValueError: there is no checksum in it, or what came has another one.
        OSError: it cannot be fetched.
    """
    told = _CHECKSUM.search(source)
    if told is None:
        raise ValueError(f"{source}: a URL must end in its file's checksum: URL#sha256=64 digits")
    url = source[: told.start()]
    folder = Path(torch.hub.get_dir()) / "detkit" if folder is None else folder
    path = folder / f"{told[1][:16]}_{Path(urlsplit(url).path).name}"
    if path.is_file() and checksum(path) == told[1]:
        return path
    logger.info("fetching %s", url)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: _fetch(url, told[1], temporary))
    return path


def checksum(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, wanted: str, path: Path) -> None:
    """Write what ``url`` gives to ``path``, and compare it."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, open(path, "wb") as file:
        length = answer.headers["Content-Length"]
        pieces = iter(functools.partial(answer.read, _PIECE), b"")
        for piece in track(pieces, None if length is None else -(-int(length) // _PIECE), "fetching"):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != wanted:
        raise ValueError(f"{url}: its checksum is {digest.hexdigest()}, not {wanted}: it is not used")
