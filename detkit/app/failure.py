"""How a tool tells a mistake: one line without a traceback, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from detkit.config import ConfigError

#: A mistake in what the user gave, as against a failure on the way.
EXIT_USAGE = 2


@contextmanager
def told_plainly() -> Iterator[None]:
    """End the process with the message alone where the block fails by what the user gave."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    """Say what is wrong and leave; the environment variable DETKIT_TRACEBACK lets the error itself through."""
    if os.environ.get("DETKIT_TRACEBACK"):
        raise error
    code = EXIT_USAGE if isinstance(error, ConfigError) else 1
    print(f"error: {error}", file=sys.stderr)
    if code != EXIT_USAGE:
        print("(DETKIT_TRACEBACK=1 shows where)", file=sys.stderr)
    sys.exit(code)
