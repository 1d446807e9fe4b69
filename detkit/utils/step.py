"""Which step of the training this is: for what follows a schedule of its own, such as the margin of a loss.

The step belongs to the call, not to any object: nothing must be saved, and a run that is resumed is at the same step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DONE: ContextVar[int | None] = ContextVar("updates done", default=None)


@contextmanager
def training_step(number: int) -> Iterator[None]:
    """Inside the block it is step ``number``, counted from 1."""
    token = _DONE.set(number - 1)
    try:
        yield
    finally:
        _DONE.reset(token)


def updates_done() -> int | None:
    """How many updates the weights have seen; None outside training, where a schedule is at its end."""
    return _DONE.get()
