"""Files named by a URL: fetched once, and used only if their checksum is the one that the URL tells."""

from __future__ import annotations

import functools
import hashlib
import re
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch

from detkit.utils.files import atomic_write
from detkit.utils.log import logger
from detkit.utils.progress import track

_CHECKSUM = re.compile(r"#sha256=([0-9a-fA-F]{64})$")
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
        ValueError: there is no checksum in it, or what came has another one; the message names the URL.
        OSError: it cannot be fetched, and the message names the URL, or not be written.
    """
    told = _CHECKSUM.search(source)
    if told is None:
        raise ValueError(f"{source}: a URL must end in its file's checksum: URL#sha256=64 digits")
    url, wanted = source[: told.start()], told[1].lower()
    folder = Path(torch.hub.get_dir()) / "detkit" if folder is None else folder
    try:
        name = Path(urlsplit(url).path).name
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from error
    path = folder / f"{wanted[:16]}_{name}"
    if path.is_file() and checksum(path) == wanted:
        return path
    logger.info("fetching %s", url)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: _fetch(url, wanted, temporary))
    return path


def checksum(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(url: str, wanted: str, path: Path) -> None:
    """Write what ``url`` gives to ``path``, and compare it."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in _pieces(url):
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != wanted:
        raise ValueError(f"{url}: its checksum is {digest.hexdigest()}, not {wanted}: it is not used")


def _pieces(url: str) -> Iterator[bytes]:
    """What ``url`` gives, piece by piece.

    Raises:
        OSError: it is no address, does not answer, or breaks off.
    """
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
            length = answer.headers["Content-Length"] or ""
            pieces = iter(functools.partial(answer.read, _PIECE), b"")
            yield from track(pieces, -(-int(length) // _PIECE) if length.isdecimal() else None, "fetching")
    except (HTTPException, OSError, UnicodeError) as error:
        raise OSError(f"{url}: {error}") from error
