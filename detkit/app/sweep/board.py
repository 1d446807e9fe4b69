"""What a sweep shows while it runs: which jobs, how far, how many are left and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import rich
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from detkit.app.run.folder import RunFolder
from detkit.app.sweep.plan import Job

#: Seconds between two lines where nobody watches a terminal.
_QUIET_SECONDS = 60.0


class Board:
    """The state of all jobs, on a terminal as a table that renews itself, elsewhere as a line now and then.

    Args:
        to_do: the jobs that are not finished.
        finished: how many others are.
    """

    def __init__(self, to_do: Sequence[Job], finished: int) -> None:
        self._total, self._done = len(to_do) + finished, finished
        self._to_do = {job.key: job.steps or 0 for job in to_do}  # steps of each job that has not ended
        self._first: dict[str, int] = {}  # where each running job began
        self._worked = 0  # steps of this sweep's ended jobs
        self._start = self._last_line = time.monotonic()
        console = rich.get_console()
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job, resumed: bool) -> None:
        """``job`` has begun, or goes on where it was."""
        self._first[job.key] = RunFolder(job.folder).steps_done() if resumed else 0
        self.say(f"{'going on with' if resumed else 'starting'} {job.label}")

    def ended(self, job: Job, words: str, finished: bool = False) -> None:
        """``job`` is over; ``words`` tell how. One that has not ``finished`` has done the steps that it has kept."""
        self._done += 1
        steps, first = self._to_do.pop(job.key), self._first.pop(job.key, None)
        if first is not None:  # one that never began has done nothing
            self._worked += max(0, (steps if finished else RunFolder(job.folder).steps_done()) - first)
        self.say(f"[{self._done}/{self._total}] {job.label}: {words}")

    def show(self, running: Mapping[str, Job]) -> None:
        """Renew the view."""
        if self._live is not None:
            self._live.update(self._table(running))
        elif time.monotonic() - self._last_line > _QUIET_SECONDS:
            at = ", ".join(f"{job.label} {self._step(job)}" for job in running.values())
            self.say(f"{self._summary(running)}; running: {at}")

    def say(self, line: str) -> None:
        """A line above the table."""
        self._last_line = time.monotonic()
        rich.get_console().print(escape(line), soft_wrap=True, highlight=False)

    def _table(self, running: Mapping[str, Job]) -> Table:
        table = Table(title=self._summary(running), title_justify="left", box=None)
        table.add_column("running", overflow="fold")
        table.add_column("step", justify="right")
        for job in running.values():
            table.add_row(escape(job.label), self._step(job))
        return table

    def _summary(self, running: Mapping[str, Job]) -> str:
        left = self._total - self._done - len(running)
        return f"{self._done} of {self._total} jobs done, {len(running)} running, {left} to come{self._eta(running)}"

    def _step(self, job: Job) -> str:
        return f"{RunFolder(job.folder).steps_done()}/{job.steps or '?'}"

    def _eta(self, running: Mapping[str, Job]) -> str:
        """The time to go at the pace so far, once there is one."""
        here = {key: RunFolder(job.folder).steps_done() for key, job in running.items()}
        worked = self._worked + sum(step - self._first[key] for key, step in here.items())
        to_go = sum(self._to_do.values()) - sum(here.values())
        if worked <= 0 or to_go <= 0:
            return ""
        seconds = (time.monotonic() - self._start) / worked * to_go
        return f", about {in_words(seconds)} to go"


def in_words(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
