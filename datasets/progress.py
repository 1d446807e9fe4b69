"""What a script tells while it works: lines, and a bar where there is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


def say(console: Console, text: str) -> None:
    """Print a line as it is: no markup, colours or wrapping, so that paths can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Meter:
    """Bytes done of a total: a bar on a terminal; elsewhere (a log file) one line at every tenth of the way."""

    def __init__(self, console: Console, label: str) -> None:
        self._console, self._label = console, label
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(label, total=None)
        self._total: int | None = None
        self._done = self._tenth = 0

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, done: int, total: int | None) -> None:
        """Set the state without counting the way to it as speed."""
        self._done, self._total = done, total
        self._tenth = 10 * done // total if total else 0
        self._progress.reset(self._task, completed=done, total=total)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.update(self._task, completed=self._done)
        tenth = 10 * self._done // self._total if self._total else 0
        if tenth > self._tenth and not self._console.is_terminal:
            say(self._console, f"{self._label}: {tenth}0 % of {decimal(self._total or 0)}")
        self._tenth = tenth
