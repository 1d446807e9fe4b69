"""A sweep's own folder: who is at work in it, and ``sweep.json``, which lists the jobs with their folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from detkit.app.sweep.plan import Job
from detkit.config import ConfigError
from detkit.utils.files import atomic_write
from detkit.utils.lock import claim

JOBS = "sweep.json"


class SweepFolder:
    """Claimed from here to :meth:`close`, so that no second sweep runs in it.

    Raises:
        FolderInUseError: another sweep does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._claim = ExitStack()
        self._claim.enter_context(claim(path))
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, jobs: Iterable[Job]) -> None:
        """List ``jobs`` beside those that this sweep has added before."""
        for job in jobs:
            self._rows[job.key] = {"folder": job.key, "label": job.label, "overrides": list(job.overrides)}
        atomic_write(self.path / JOBS, json.dumps({"jobs": list(self._rows.values())}, indent=2) + "\n")

    def close(self) -> None:
        """Let another sweep have the folder."""
        self._claim.close()


def read_jobs(path: Path) -> dict[Path, str]:
    """Folder and label of each job of the sweep in ``path``.

    Raises:
        ConfigError: there is no sweep, or its file is damaged.
    """
    file = path / JOBS
    try:
        return {path / row["folder"]: row["label"] for row in json.loads(file.read_text(encoding="utf-8"))["jobs"]}
    except FileNotFoundError:
        raise ConfigError(f"{path} has no {JOBS}: it is not the folder of a sweep") from None
    except (ValueError, KeyError, TypeError) as error:  # also bytes that are not UTF-8
        raise ConfigError(f"{file}: not the list of jobs that a sweep writes: {error!r}") from error
