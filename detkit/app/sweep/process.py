"""One job of a sweep: ``train.py`` as a process of its own, so that a crash or its memory cannot touch another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detkit.app.cli.overrides import quote
from detkit.app.cli.slots import search_paths
from detkit.app.run.folder import RunFolder
from detkit.app.sweep.plan import Job

#: Set for a job: it then stops, saving, when its standard input ends, which it does with the sweep, however that ends.
JOB_VARIABLE = "DETKIT_SWEEP_JOB"

OUTPUT = "output.txt"


class JobError(RuntimeError):
    """A job ended without a result; the message has its exit code, its last words and where the others are."""


class JobProcess:
    """A job that is running.

    Args:
        job: which; its folder is made where it is missing, and a run found there goes on.
        environment: variables for it beside those of this process.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self.job = job
        self.resumed = RunFolder(job.folder).can_go_on
        self.start = time.monotonic()
        self._stopped = False
        job.folder.mkdir(parents=True, exist_ok=True)
        with open(job.folder / OUTPUT, "ab") as output:
            self._begins_at = output.tell()  # behind what earlier tries have said
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, JOB_VARIABLE: "1"},
                start_new_session=True,  # Ctrl-C is the sweep's to hand on
            )

    def _command(self) -> list[str]:
        if self.job.program is not None:
            return [sys.executable, "-m", *self.job.program]
        own = [] if self.job.own_configs is None else ["--config-dir", self.job.own_configs]
        said = [o for o in self.job.overrides if not o.startswith(("sweep=", "hydra")) or search_paths([o])]
        said.append(f"hydra.run.dir={quote(str(self.job.folder))}")
        if self.resumed:
            said.append(f"++resume.path={quote(str(self.job.folder))}")
        return [sys.executable, "-m", "detkit.app.train", *own, *said]

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.start

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask it to finish its step, save and leave."""
        if not self._stopped:
            self._stopped = True
            self._process.terminate()

    def kill(self) -> None:
        """End it and what it has started, at once."""
        if self.is_running():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        code = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def result(self) -> dict[str, Any]:
        """What the finished job wrote.

        Raises:
            JobError: it failed.
        """
        code = self.wait()
        result = ended_with(self.job.folder)
        if code or result is None:
            words, output = self._last_words(), self.job.folder / OUTPUT
            raise JobError(f"{_in_words(code)}: {words} (all of it: {output})")
        return result

    def _last_words(self) -> str:
        """The line of its output that most likely tells why: detkit's own message, an exception, or the last one."""
        said = (self.job.folder / OUTPUT).read_bytes()[self._begins_at :].decode("utf-8", errors="replace")
        lines = [line for line in said.splitlines() if line]
        for pattern in (r"error: ", r"[\w.]*(Error|Exception|Interrupt)\b"):
            if found := [line for line in lines if re.match(pattern, line)]:
                return found[-1]
        return lines[-1] if lines else "no output"


def ended_with(folder: Path) -> dict[str, Any] | None:
    """What the job in ``folder`` ended with; None where that is not written there, or not whole."""
    result = RunFolder(folder).result_if_whole() or {}
    return result if {"best", "monitor"} <= result.keys() else None


def run_to_the_end(job: Job) -> float | None:
    """Run ``job`` unless it is finished; its best value.

    Raises:
        JobError: it failed.
    """
    result = ended_with(job.folder)
    return (result or JobProcess(job, {}).result())["best"]


def stop_with_the_sweep() -> None:
    """In a job: send SIGTERM to this very process when the process that started it is gone."""
    if not os.environ.pop(JOB_VARIABLE, None):
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch the sweep").start()


def _in_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
