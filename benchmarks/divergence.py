"""What the watch over a training's steps costs: the quickstart's step with and without it."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import rich
from hydra import compose, initialize_config_dir

from benchmarks.timing import time_alternately
from detkit.app.assemble.trainer import build_trainer
from detkit.app.cli.components import load_components
from detkit.app.cli.paths import config_dir
from detkit.config.ranges import check_range
from detkit.engine.bad_steps.divergence import StepWatch
from detkit.engine.trainer import Trainer
from detkit.structures import Batch

#: Batches that are loaded beforehand and come round again: loading is not what is timed.
_NUM_BATCHES = 8


class WatchCost(NamedTuple):
    """Seconds: of each step ``with_watch`` and ``without``, and of the watch's own part in each step, ``alone``."""

    with_watch: Sequence[float]
    without: Sequence[float]
    alone: Sequence[float]

    @property
    def share(self) -> float:
        """The watch's own part of a step, medians; a difference of steps is lost in what differs between batches."""
        return statistics.median(self.alone) / statistics.median(self.without)

    def __str__(self) -> str:
        step, bare = (1e3 * statistics.median(times) for times in (self.with_watch, self.without))
        return (
            f"the quickstart's step: {step:.1f} ms with the divergence watch, {bare:.1f} ms without; the watch's own "
            f"part: {1e6 * statistics.median(self.alone):.0f} microseconds, {self.share:.2%} of a step"
        )


class NoWatch:
    """Takes the place of a StepWatch and does nothing."""

    def begin(self, step: int, lr: Mapping[str, float]) -> None: ...

    def check(self, loss: float, grad_norm: float, batches: Sequence[Batch]) -> None: ...

    def inspect(self, batch: Batch) -> None: ...

    @contextmanager
    def guard(self, batch: Batch) -> Iterator[None]:
        yield


def main(arguments: Sequence[str]) -> None:
    """``tools/benchmark.py divergence``."""
    parser = argparse.ArgumentParser(description="Time the quickstart's step with and without the divergence watch.")
    parser.add_argument("--repeats", type=int, default=40, help="steps of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    check_range("--repeats", options.repeats, 1)
    check_range("--threads", options.threads, 1)
    rich.print(str(benchmark_divergence(options.repeats, options.threads)))


def benchmark_divergence(repeats: int, threads: int, overrides: Sequence[str] = ()) -> WatchCost:
    """Take steps of one training in turn with the watch and without it; then the watch's calls of a step by themselves.

    Args:
        overrides: of the quickstart's configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), [f"threads={threads}", *overrides])
        batches = itertools.cycle(list(itertools.islice(trainer.train_loader.iterate(), _NUM_BATCHES)))
        watch, none = trainer.watch, cast(StepWatch, NoWatch())

        def step(with_watch: StepWatch) -> None:
            trainer.watch = with_watch
            trainer.train_step(batches)

        trainer.detector.train()
        times = time_alternately({"with": lambda: step(watch), "without": lambda: step(none)}, repeats, trainer.device)
        return WatchCost(times["with"], times["without"], _alone(watch, next(batches), repeats))


def _alone(watch: StepWatch, batch: Batch, repeats: int) -> list[float]:
    seconds = []
    for step in range(repeats):
        start = time.perf_counter()
        watch.begin(step, {"lr": 1e-3})
        watch.inspect(batch)
        with watch.guard(batch):
            pass
        watch.check(1.0, 1.0, [batch])
        seconds.append(time.perf_counter() - start)
    return seconds


def _trainer(folder: Path, overrides: Sequence[str]) -> Trainer:
    load_components()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["experiment=quickstart", f"data.root={folder}", "callbacks={}", *overrides])
    return build_trainer(cfg, folder)[0]
