"""A bar for a loop with an end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich
from rich.progress import track as rich_track

from detkit.utils.dist import is_main

T = TypeVar("T")


def track(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """Go through ``items`` with a bar that vanishes at the end; without one where nobody watches a terminal.

    ``total`` is how many there are, None where nobody knows.
    """
    console = rich.get_console()
    if not (console.is_terminal and is_main()):
        yield from items
        return
    yield from rich_track(items, description=description, total=total, console=console, transient=True)
