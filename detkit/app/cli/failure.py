"""How a tool tells a mistake: one line without a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from detkit.config import ConfigError
from detkit.utils.commands import EXIT_INTERRUPTED, EXIT_USAGE

#: What a user can mend: a value, a file, a disk. Anything else is a fault of the code, whose traceback is wanted.
TOLD = (ValueError, OSError)

#: Seconds in which the main process comes to tell a mistake that all of them read.
_UNTIL_TOLD = 3.0


@contextmanager
def told_plainly() -> Iterator[None]:
    """End the process with the message alone where the block fails by what the user gave, by a file, or by Ctrl-C."""
    try:
        yield
    except (*TOLD, KeyboardInterrupt) as error:
        fail(error)


@contextmanager
def told_once() -> Iterator[None]:
    """As :func:`told_plainly`, of what all processes that torchrun has started read alike: the main one tells it.

    The others leave a little later, since torchrun ends all when one has ended.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        with told_plainly():
            yield
        return
    try:
        yield
    except (*TOLD, KeyboardInterrupt) as error:
        time.sleep(_UNTIL_TOLD)
        sys.exit(_exit_code(error))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USAGE if isinstance(error, ConfigError) else 1


def fail(error: BaseException) -> NoReturn:
    """Say what is wrong and leave; the environment variable DETKIT_TRACEBACK lets the error itself through."""
    if os.environ.get("DETKIT_TRACEBACK"):
        raise error
    _let_go_of_output()
    code = _exit_code(error)
    if isinstance(error, KeyboardInterrupt):
        print("\nstopped by Ctrl-C", file=sys.stderr)
        sys.exit(code)
    print(f"error: {in_words(error)}", file=sys.stderr)
    if code != EXIT_USAGE:
        print("(DETKIT_TRACEBACK=1 shows where)", file=sys.stderr)
    sys.exit(code)


def in_words(error: BaseException) -> str:
    """The message of ``error``; of an OSError the path and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        return f"{' -> '.join(paths)}: {error.strerror}"
    return str(error)


def _let_go_of_output() -> None:
    """Where the output itself cannot be written (a full disk, a closed pipe), Python would say so again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
