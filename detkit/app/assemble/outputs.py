"""Files that a tool makes together: none is written over, and none stays without the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detkit.config import ConfigError
from detkit.utils.download import is_url
from detkit.utils.files import output_folder


def check_new(*paths: Path) -> None:
    """Refuse to write over what is there.

    Raises:
        ConfigError: one of ``paths``, which ``output`` means, is there.
    """
    if there := [str(path) for path in paths if path.exists()]:
        is_there = "is there" if len(there) == 1 else "are there"
        raise ConfigError(f"output: {' and '.join(there)} {is_there}; nothing is written over: choose another name")


def refuse_url_without_output(checkpoint: str, output: str | None) -> None:
    """Refuse to write beside a file that was fetched, in a cache.

    Raises:
        ConfigError: ``checkpoint`` is a URL, and no ``output`` is said.
    """
    if output is None and is_url(checkpoint):
        raise ConfigError("output: say where the file goes, since the checkpoint is a URL")


@contextmanager
def together(*paths: Path) -> Iterator[None]:
    """Within the block ``paths`` are made, in one folder, which is made too; where it fails, none of it stays.

    Raises:
        OSError: the folder cannot be made, or nothing can be written in it.
        ConfigError: see :func:`check_new`.
    """
    check_new(*paths)
    with output_folder(paths[0].parent):
        try:
            yield
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
