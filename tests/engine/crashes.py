"""Runs that die, each in a child of a fresh process: ``python -m tests.engine.crashes WHAT FOLDER ...`` prints JSON.

A fresh process with one thread, because forking one that has run OpenMP threads may hang.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from detkit.engine import Interrupted, NonFiniteError, evaluate, interrupt, load_checkpoint, load_latest
from detkit.engine.callbacks import MetricsCsv
from detkit.structures import Batch
from detkit.utils.dist import FailedElsewhereError
from detkit.utils.seed import seed_everything
from tests.engine.stubs import (
    StubDetector,
    StubEvalLoader,
    StubEvaluator,
    StubTrainLoader,
    digest,
    digest_of_run,
    make_trainer,
)

STEPS = 17
KILLED = 9


class DyingLoader(StubTrainLoader):
    """Kills its own process when batch ``fatal`` is asked for."""

    def __init__(self, fatal: int, **options: Any) -> None:
        super().__init__(**options)
        self.fatal = fatal

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().iterate(start), start):
            if number == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def in_child(task: Callable[[], object]) -> int:
    """Run ``task`` in a forked process; its exit code, or minus the signal that killed it."""
    process = os.fork()
    if process == 0:
        try:
            task()
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_and_resume(folder: Path, first: int, last: int) -> list[dict[str, Any]]:
    """For each seed: a straight run, and one that is killed at two random steps and resumed."""
    return [_kill_and_resume(folder / str(seed), seed) for seed in range(first, last)]


def _kill_and_resume(folder: Path, seed: int) -> dict[str, Any]:
    straight, killed = folder / "straight", folder / "killed"
    straight.mkdir(parents=True)
    killed.mkdir()
    options: dict[str, Any] = {"seed": seed, "steps": STEPS, "accumulate": 1 + seed % 2}
    num_batches = STEPS * options["accumulate"]
    in_child(lambda: make_trainer(straight, **options, callbacks={"csv": MetricsCsv()}).fit())
    deaths = sorted(random.Random(seed).sample(range(num_batches), 2))
    codes = []
    for fatal in [*deaths, None]:

        def run(fatal: int | None = fatal) -> None:
            loader = StubTrainLoader(seed=seed) if fatal is None else DyingLoader(fatal, seed=seed)
            trainer = make_trainer(killed, **options, train_loader=loader, callbacks={"csv": MetricsCsv()})
            if any(killed.glob("*.pt")):
                random.random(), torch.rand(3)  # what a fresh process draws before it resumes must not matter
                trainer.restore(load_latest(killed))
            trainer.fit()

        codes.append(in_child(run))
    return {
        "seed": seed,
        "deaths": deaths,
        "codes": codes,
        "straight": digest_of_run(straight),
        "resumed": digest_of_run(killed),
        "same_best": digest(load_checkpoint(straight / "best.pt").detector)
        == digest(load_checkpoint(killed / "best.pt").detector),
        "same_table": _numbers(straight) == _numbers(killed),
    }


def _numbers(run_dir: Path) -> list[str]:
    """The rows of metrics.csv but those of speed."""
    return [row for row in (run_dir / "metrics.csv").read_text().splitlines() if ",time/" not in row]


#: Where a save can be cut off: (function, number of its call, whether before or after it).
BOUNDARIES = [
    ("open", 1, "after"),
    *itertools.product(["fsync"], [1], ["before", "after"]),
    *itertools.product(["link"], [1], ["before", "after"]),
    *itertools.product(["replace"], [1, 2], ["before", "after"]),
    *itertools.product(["fsync"], [2], ["before", "after"]),
]


def kill_while_saving(folder: Path) -> list[dict[str, Any]]:
    """A run with two saves behind it dies at each boundary of the third."""
    results = []
    for name, call, when in BOUNDARIES:
        run_dir = folder / f"{name}{call}{when}"
        run_dir.mkdir(parents=True)
        make_trainer(run_dir, steps=6, eval_every=None, val_loader=None, evaluator=None).fit()

        def die(name: str = name, call: int = call, when: str = when, run_dir: Path = run_dir) -> None:
            trainer = make_trainer(run_dir, steps=9, eval_every=None, val_loader=None, evaluator=None)
            trainer.restore(load_latest(run_dir))
            _die_at(name, call, when)
            trainer.fit()

        code = in_child(die)
        found = load_latest(run_dir)
        left = sorted(p.name for p in run_dir.iterdir())
        previous = load_checkpoint(run_dir / "previous.pt").step
        last = load_checkpoint(run_dir / "last.pt").step
        trainer = make_trainer(run_dir, steps=12, eval_every=None, val_loader=None, evaluator=None)
        trainer.restore(found)
        trainer.fit()
        results.append(
            {
                "at": f"{when} {name} {call}",
                "code": code,
                "last": last,
                "previous": previous,
                "left": left,
                "after": sorted(p.name for p in run_dir.iterdir()),
                "digest": digest_of_run(run_dir),
            }
        )
    return results


def _die_at(name: str, call: int, when: str) -> None:
    """Let the process end at the ``call``-th use of a function that a save is made of."""
    if name == "open":
        save = torch.save

        def half(state: Any, file: Any) -> None:
            save(state, file)
            file.truncate(file.tell() // 2)
            file.flush()
            os._exit(KILLED)

        torch.save = half
        return
    real, calls = getattr(os, name), iter(range(1, 1000))

    def dying(*args: Any, **kwargs: Any) -> Any:
        now = next(calls) == call
        if now and when == "before":
            os._exit(KILLED)
        result = real(*args, **kwargs)
        if now:
            os._exit(KILLED)
        return result

    setattr(os, name, dying)


def two_processes(folder: Path) -> dict[str, Any]:
    """One process with batches of 4 against two with 2 each, and what becomes of errors and signals in one of them."""
    alone, together, normed = folder / "alone", folder / "together", folder / "normed"
    for path in (alone, together, normed, folder / "stopped", folder / "broken"):
        path.mkdir(parents=True)
    codes = [in_child(lambda: _distributed_run(alone, 0, 1))]
    codes += _both(lambda rank: _distributed_run(together, rank, 2))
    codes += _both(lambda rank: _distributed_run(normed, rank, 2, norm=True))
    stopped = _both(lambda rank: _distributed_run(folder / "stopped", rank, 2, stop_at=5))
    broken = _both(lambda rank: _distributed_run(folder / "broken", rank, 2, break_at=5))
    weights = [load_checkpoint(path / "last.pt").detector for path in (alone, together)]
    difference = max(float((weights[0][k] - weights[1][k]).abs().max()) for k in weights[0])
    return {
        "codes": codes,
        "difference": difference,
        "metrics": [dict(load_checkpoint(path / "last.pt").metrics) for path in (alone, together)],
        "normed": [dict(load_checkpoint(normed / "last.pt").metrics), _evaluated_alone(normed)],
        "postponed": json.loads((together / "postponed.json").read_text()),
        "stopped": stopped,
        "stopped_at": load_checkpoint(folder / "stopped" / "last.pt").step,
        "broken": broken,
        "states": len(load_checkpoint(together / "last.pt").training["process"]["random"]),  # pyright: ignore
    }


def _both(task: Callable[[int], object]) -> list[int]:
    processes = []
    for rank in range(2):
        process = os.fork()
        if process == 0:
            os._exit(in_child(lambda rank=rank: task(rank)) % 256)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def _distributed_run(
    run_dir: Path, rank: int, world: int, stop_at: int | None = None, break_at: int | None = None, norm: bool = False
) -> None:
    if world > 1:
        store = f"file://{run_dir.parent}/store-{run_dir.name}"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    loader = StubTrainLoader(num_images=12, batch_size=4, share=(rank, world))
    if rank == 1 and stop_at is not None:
        loader = SignallingLoader(stop_at, num_images=12, batch_size=4, share=(rank, world))
    seed_everything(rank)  # the second process must take over the first one's weights
    trainer = make_trainer(
        run_dir,
        detector=StubDetector(noisy=False, norm=norm),
        train_loader=loader,
        val_loader=StubEvalLoader(share=(rank, world)),
        accumulate=2,
    )
    if rank == 1 and break_at is not None:
        step = trainer.updater.backward

        def poisoned(batch: Batch, is_last: bool) -> Any:
            if trainer.progress.step == break_at:
                batch.targets[0].boxes[0, 0] = float("nan")
            return step(batch, is_last)

        trainer.updater.backward = poisoned  # pyright: ignore
    postponed: list[int] = []
    no_sync = DistributedDataParallel.no_sync
    DistributedDataParallel.no_sync = lambda self: (postponed.append(trainer.progress.step), no_sync(self))[1]
    try:
        trainer.fit()
        if rank == 0:
            (run_dir / "postponed.json").write_text(json.dumps(postponed))
    except NonFiniteError:
        os._exit(7)
    except FailedElsewhereError:
        os._exit(8)
    except Interrupted as error:
        os._exit(error.exit_code)


def _evaluated_alone(run_dir: Path) -> dict[str, float]:
    """What one process finds with the weights that several have trained."""
    detector = StubDetector()
    detector.load_state_dict(load_checkpoint(run_dir / "last.pt").weights)
    return evaluate(detector, StubEvalLoader(), StubEvaluator(), device="cpu", val_loss=True).metrics


class SignallingLoader(StubTrainLoader):
    """Sends SIGTERM to its own process when batch ``number`` is asked for."""

    def __init__(self, number: int, **options: Any) -> None:
        super().__init__(**options)
        self.number = number

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().iterate(start), start):
            if number == self.number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def signal_workers(folder: Path) -> dict[str, int]:
    """What becomes of a loader's workers that get SIGTERM too: one is about to end by itself, one hangs."""
    interrupt._WORKER_GRACE_SECONDS = 1
    codes = {}
    with interrupt.StopRequest() as stop:
        for name in ("busy", "hung"):
            process = os.fork()
            if process == 0:
                time.sleep(0.2)
                time.sleep(20 if name == "hung" else 0)
                os._exit(5)
            time.sleep(0.05)
            os.kill(process, signal.SIGTERM)
            codes[name] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        codes["parent asked to stop"] = int(bool(stop))
    return codes


def everything(folder: Path) -> dict[str, Any]:
    """All of it, for the price of one start of a process."""
    return {
        "resumed": kill_and_resume(folder / "resumed", 0, 3),
        "saved": kill_while_saving(folder / "saved"),
        "distributed": two_processes(folder / "distributed"),
        "workers": signal_workers(folder),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, path, *numbers = sys.argv[1:]
    print(json.dumps(globals()[task](Path(path), *map(int, numbers))))
