"""Ctrl-C and SIGTERM: finish the step, save, and leave with an exit code that tells why."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

#: A loader's worker that gets the signal too lives on for this long, so that the step in hand can be finished.
_WORKER_GRACE_SECONDS = 30


class Interrupted(SystemExit):
    """The run was asked to stop. Uncaught it ends the process with the shell's code for the signal: 130 or 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum)

    @property
    def exit_code(self) -> int:
        """Of a process that ends by this signal, as shells count."""
        return 128 + self.signal

    def __str__(self) -> str:
        return f"stopped by {self.signal.name}"


class StopRequest:
    """Within the ``with`` block SIGINT and SIGTERM only set :attr:`signum`; a SIGINT after that raises Interrupted.

    Outside the main thread Python can set no handlers: there the block changes nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def __bool__(self) -> bool:
        return self.signum is not None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which inherits the handler and often gets the signal too
            signal.alarm(_WORKER_GRACE_SECONDS)
            return
        if self.signum is not None and signum == signal.SIGINT:
            raise Interrupted(signum)
        if self.signum is None:
            self.signum = signum
            # Not by the logger: it may be this very process's logger that the signal has interrupted.
            os.write(2, b"\nstopping after this step; press Ctrl-C again to leave at once without saving\n")
