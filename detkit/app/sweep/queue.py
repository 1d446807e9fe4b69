"""The jobs of a sweep at work: so many processes at a time, until all have ended."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rich
import torch

from detkit.app.sweep.board import Board, in_words
from detkit.app.sweep.plan import Job
from detkit.app.sweep.process import JobError, JobProcess, ended_with
from detkit.engine.interrupt import Interrupted, StopRequest
from detkit.utils.lock import FolderInUseError, claim

#: Seconds between two looks at the running jobs.
_LOOK_SECONDS = 0.2

#: Seconds that a job of an earlier, killed sweep gets to finish its step and save before it is in the way.
_LAST_STEP_SECONDS = 120.0

Outcome = dict[str, Any] | JobError


@dataclass
class _Slot:
    """A place for one job at a time, with the variables that give it its share of the machine."""

    environment: Mapping[str, str]
    process: JobProcess | None = field(default=None)


def run_jobs(jobs: Sequence[Job], slots: int) -> dict[str, Outcome]:
    """Run what is not finished of ``jobs``; by key what each ended with.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the jobs that were running have saved.
    """
    finished = {job.key: result for job in jobs if (result := ended_with(job.folder)) is not None}
    if finished:
        rich.print(f"{len(finished)} of {len(jobs)} jobs are finished already")
    to_do = [job for job in jobs if job.key not in finished]
    with Board(to_do, len(finished)) as board, StopRequest() as stop:
        outcomes = _Queue(to_do, [_Slot(environment) for environment in environments(slots)], board).work(stop)
    if stop.signum is not None:
        rich.print("[bold]the sweep was stopped; the same command goes on with it[/bold]")
        raise Interrupted(stop.signum)
    return {**finished, **outcomes}


class _Queue:
    """Jobs that wait, those that run, and what became of the others."""

    def __init__(self, jobs: Sequence[Job], slots: Sequence[_Slot], board: Board) -> None:
        self.waiting = deque(jobs)
        self.slots, self.board = slots, board
        self.outcomes: dict[str, Outcome] = {}
        self._in_use_since: dict[str, float] = {}

    def work(self, stop: StopRequest) -> dict[str, Outcome]:
        """Until all have ended, or ``stop`` is set and the running ones have."""
        try:
            while self.waiting or any(slot.process for slot in self.slots):
                if stop:
                    self.waiting.clear()
                for slot in self.slots:
                    if slot.process is not None:
                        self._look_after(slot, slot.process, stop)
                    elif self.waiting:
                        self._start(slot, self.waiting.popleft())
                self.board.show({s.process.job.key: s.process.job for s in self.slots if s.process})
                time.sleep(_LOOK_SECONDS)
        finally:
            for slot in self.slots:
                if slot.process is not None:
                    slot.process.kill()
        return self.outcomes

    def _start(self, slot: _Slot, job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            with claim(job.folder):
                pass
        except FolderInUseError as error:  # a job of a sweep that was killed may still be saving
            since = self._in_use_since.setdefault(job.key, time.monotonic())
            if time.monotonic() - since < _LAST_STEP_SECONDS:
                self.waiting.append(job)
            else:
                self.outcomes[job.key] = JobError(str(error))
                self.board.ended(job, f"failed: {error}")
            return
        slot.process = JobProcess(job, slot.environment)
        self.board.started(job, slot.process.resumed)

    def _look_after(self, slot: _Slot, process: JobProcess, stop: StopRequest) -> None:
        """See whether a job has ended, and pass on a signal to one that has not."""
        if process.is_running():
            if stop:
                process.stop()
            return
        slot.process = None
        key = process.job.key
        try:
            result = self.outcomes[key] = process.result()
            value = "done" if result["best"] is None else f"{result['monitor']} {result['best']:.4f}"
            self.board.ended(process.job, f"{value} ({in_words(process.seconds)})", finished=True)
        except JobError as error:
            self.outcomes[key] = error
            self.board.ended(process.job, "stopped" if stop else f"failed: {error}")


def environments(slots: int, num_gpus: int | None = None) -> list[dict[str, str]]:
    """The variables of each slot: one of the GPUs in turn, and its share of the CPU cores.

    Where they are set already, they stay as they are. A single slot has the machine to itself.
    """
    if slots == 1:
        return [{}]
    num_gpus = torch.cuda.device_count() if num_gpus is None else num_gpus
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = visible if visible != [""] else [str(i) for i in range(num_gpus)]
    threads = max(1, (os.cpu_count() or 1) // slots)
    result: list[dict[str, str]] = [{} for _ in range(slots)]
    for i, environment in enumerate(result):
        if num_gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        if "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(threads)
    return result
