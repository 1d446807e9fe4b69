"""How far the run is and how fast, on the console and in the log file."""

from __future__ import annotations

import logging
from collections import deque
from datetime import timedelta

import rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from detkit.config import CALLBACKS
from detkit.engine.callbacks.callback import Callback
from detkit.engine.records import FitResult, FitStart, StepRecord
from detkit.utils.log import logger


@CALLBACKS
class ProgressBar(Callback):
    """A bar with loss, learning rate, images a second, share of time spent waiting for data, and time left.

    Each logged step is also a line in the log file; where there is no terminal the console gets these lines instead of
    the bar. Rates are means over the last ``window`` steps.
    """

    def __init__(self, *, window: int = 50) -> None:
        if window < 1:
            raise ValueError(f"window must be 1 or more, not {window}")
        self._recent: deque[StepRecord] = deque(maxlen=window)
        self._num_steps = 0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_fit_start(self, start: FitStart) -> None:
        self._num_steps = start.num_steps
        self._recent.clear()
        console = rich.get_console()
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[numbers]}"))
            self._bar = Progress("training", *columns, console=console)
            self._task = self._bar.add_task("", total=start.num_steps, completed=start.step, numbers="")
            self._bar.start()

    def on_step_end(self, record: StepRecord) -> None:
        self._recent.append(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, numbers=self._numbers(record))
        if record.logged:
            logger.log(logging.INFO if self._bar is None else logging.DEBUG, self._line(record))

    def on_exception(self, error: BaseException) -> None:
        self._stop()

    def on_fit_end(self, result: FitResult) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, record: StepRecord) -> str:
        terms = ", ".join(f"{name} {value:.4f}" for name, value in record.terms.items())
        return (
            f"step {record.step}/{self._num_steps}, {self._numbers(record)} | {terms}, grad_norm {record.grad_norm:.3g}"
        )

    def _numbers(self, record: StepRecord) -> str:
        seconds = sum(r.seconds for r in self._recent)
        images = sum(r.num_images for r in self._recent)
        waited = sum(r.data_seconds for r in self._recent)
        left = timedelta(seconds=round((self._num_steps - record.step) * seconds / len(self._recent)))
        rate = next(iter(record.lr.values()))
        return (
            f"loss {record.loss:.4f}, lr {rate:.2e}, {images / seconds:.1f} img/s, "
            f"{waited / seconds:.0%} waiting for data, {left} left"
        )
