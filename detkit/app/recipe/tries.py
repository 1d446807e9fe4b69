"""What the rules doubt between, trained for a share of the time: successive halving on the engine of the sweeps.

Of three the first round leaves the better two, which get as much time again together (Jamieson and Talwalkar 2016,
arXiv 1502.07943); each run has a whole schedule of its own. A round is the folder of a sweep: the same command, after a
kill, skips what is finished and goes on with what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich
from omegaconf import OmegaConf

from detkit.app.assemble.identity import config_hash
from detkit.app.compare.table import difference_words
from detkit.app.compare.tool import compare
from detkit.app.recipe.files import Place
from detkit.app.recipe.made import Option
from detkit.app.sweep.folder import SweepFolder
from detkit.app.sweep.plan import Job
from detkit.app.sweep.process import JobError
from detkit.app.sweep.queue import Outcome, run_jobs
from detkit.config import ConfigError

#: Resamplings of the images for the interval, as compare has it.
_SAMPLES = 1000

#: Options that the last round compares.
_LAST = 2


@dataclass(frozen=True, slots=True)
class Tried:
    """``best``: what to write; ``words``: what was tried, and whether it is more than chance."""

    best: Option
    words: list[str]


@dataclass(frozen=True, slots=True)
class Trial:
    """Writes and runs the options.

    ``write`` puts the experiment of an option for some minutes into a place. ``seeds``: of the last round. ``data``:
    ``data_hash`` of what is trained on and of what is measured by: runs on other data are others.
    """

    folder: Path
    write: Callable[[Option, float, Place], None]
    minutes: float
    seeds: int
    data: Sequence[str]

    def run(self, options: Sequence[Option]) -> Tried:
        """Try ``options``, of which the first is what the rules choose.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the same command goes on.
            ConfigError: not even two of them could be trained.
        """
        left, words = list(options), []
        rounds = max(1, len(options) - 1)
        for number in range(1, rounds + 1):
            is_last = number == rounds
            runs = len(left) * (self.seeds if is_last else 1)
            minutes = self.minutes / rounds / runs
            path = self.folder / f"round{number}"
            rich.print(f"round {number} of {rounds}: {', '.join(o.name for o in left)}, {minutes:.1f} minutes each")
            scores = self._round(path, left, minutes, self.seeds if is_last else 1)
            words.append(f"Tried for {minutes:.1f} minutes each: " + _listed(scores))
            kept = sorted(scores, key=lambda option: -scores[option])[:_LAST]
            left = [option for option in left if option in kept]
            if len(left) < _LAST:
                raise ConfigError(f"try: fewer than two could be trained; see {path}")
        best, verdict = self._verdict(path, left)
        return Tried(best, [*words, verdict])

    def _round(self, path: Path, options: Sequence[Option], minutes: float, seeds: int) -> dict[Option, float]:
        """The mean AP of each option whose runs came to their end."""
        jobs = {option: self._jobs(path, option, minutes, seeds) for option in options}
        every = [job for of_one in jobs.values() for job in of_one]
        folder = SweepFolder(path)
        try:
            folder.add(every)
            outcomes = run_jobs(every, slots=1)
        finally:
            folder.close()
        return {o: score for o, of_one in jobs.items() if (score := _score(of_one, outcomes)) is not None}

    def _jobs(self, path: Path, option: Option, minutes: float, seeds: int) -> list[Job]:
        place = Place(path / "configs", option.name)
        self.write(option, minutes, place)
        cfg = place.compose()
        jobs = []
        for seed in range(seeds):
            cfg.seed = seed
            content: Any = OmegaConf.to_container(cfg)
            key = config_hash({**content, "data_hash": list(self.data)})
            said = (f"--config-dir={place.folder.absolute()}", f"experiment={place.name}", f"seed={seed}")
            jobs.append(Job(f"{option.name} seed={seed}", said, key, path / key, cfg.trainer.steps))
        return jobs

    def _verdict(self, path: Path, options: Sequence[Option]) -> tuple[Option, str]:
        """Which of two to write, and why: the second only where an interval that holds the noise of training is above
        zero."""
        first, second = options
        rows = {row.system.name: row for row in compare([path], None, first.name, "AP", _SAMPLES, 0)}
        row = rows[second.name]
        assert row.difference is not None
        is_above = row.difference.low > 0
        better = second if is_above and row.difference.seeds_vary else first
        words = f"{' '.join(difference_words(row.difference))}; written: {better.name}"
        if is_above and better is first:
            words += ", since one seed does not tell a better system from a luckier training: try_seeds=2 can"
        return better, f"{second.name} against {first.name}: AP {words}"


def _score(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> float | None:
    """The mean of what the runs reached; None where one failed or AP is not defined."""
    found = [outcomes.get(job.key) for job in jobs]
    values = [o["best"] for o in found if o is not None and not isinstance(o, JobError) and o["best"] is not None]
    return sum(values) / len(jobs) if len(values) == len(jobs) else None


def _listed(scores: Mapping[Option, float]) -> str:
    return ", ".join(f"{option.name} AP {score:.3f}" for option, score in scores.items())
