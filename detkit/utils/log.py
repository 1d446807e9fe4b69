"""The one logger of detkit: the console of the main process, and a plain-text file in the run folder."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path

import rich
from rich.logging import RichHandler

from detkit.utils.dist import is_main, rank

logger = logging.getLogger("detkit")

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


def set_up_logging(run_dir: str | Path | None = None, level: int = logging.INFO, *, held: bool = False) -> None:
    """Send detkit's messages to the console and, with ``run_dir``, to a file there. A second call replaces the first.

    The console shows the main process from ``level`` on; another process shows warnings and errors alone. The file has
    everything: ``log.txt`` of the main process, ``log_rank1.txt`` of the next.

    Args:
        held: nothing goes into the file before :func:`keep_log`.
    """
    close_logging()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(_console_handler(level if is_main() else max(level, logging.WARNING)))
    if run_dir is not None:
        name = "log.txt" if is_main() else f"log_rank{rank()}.txt"
        handler = _LogFile(Path(run_dir) / name, held)
        handler.setFormatter(logging.Formatter(_FORMAT))
        logger.addHandler(handler)


def keep_log() -> None:
    """Write what was held back of the log, and all that follows."""
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            handler.keep()


def close_logging() -> None:
    """Take off and close what :func:`set_up_logging` added."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


class _LogFile(logging.FileHandler):
    """A log that the disk has no room for is given up with one line: the run itself may still come to its end.

    Args:
        held: records wait for :meth:`keep`, and are forgotten where it does not come.
    """

    def __init__(self, path: Path, held: bool) -> None:
        super().__init__(path, encoding="utf-8", delay=held)
        self._held: list[logging.LogRecord] | None = [] if held else None

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is None:
            super().emit(record)
        else:
            self._held.append(record)

    def keep(self) -> None:
        held, self._held = self._held, None
        for record in held or ():
            self.emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger.removeHandler(self)
        with suppress(OSError):
            self.close()
        logger.warning("no more is written to %s: %s", self.baseFilename, error.strerror or error)


def _console_handler(level: int) -> logging.Handler:
    console = rich.get_console()  # the one that progress bars use, so that lines appear above the bar
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, markup=False, log_time_format="%H:%M:%S"
        )
    else:  # rich would break lines at 80 columns
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    handler.setLevel(level)
    return handler
