"""Runs of which one process fails: ``python -m tests.app.failing FOLDER CASE ...`` prints what came of each, as JSON.

The processes are forked from a fresh one with one thread: forking one with several may hang.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from detkit.app.cli.failure import told_plainly
from detkit.app.run.processes import process_group
from detkit.engine import Callback, StepRecord, Trainer, load_bundle
from detkit.structures import Batch, Detections, Images, Losses, Target
from detkit.utils import dist
from detkit.utils.log import set_up_logging
from tests.engine.stubs import StubDetector, StubEvalLoader, StubEvaluator, StubTrainLoader, make_trainer

#: The step that fails.
STEP = 5

#: Seconds that a process waits for another: a run that ends later has not been ended by the failure.
TIMEOUT = 100.0


class Sharing(StubDetector):
    """Its losses wait for those of the other processes, as those of real detectors do; ``fault`` spoils the fifth."""

    def __init__(self, fault: Callable[[Losses], Losses] = lambda losses: losses) -> None:
        super().__init__()
        self.passes, self.fault = 0, fault

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        found = super().forward(images, targets)
        if not (isinstance(found, Losses) and torch.is_grad_enabled()):
            return found
        count = dist.mean_over_processes(found.stats["num_objects"]).clamp(min=1)
        self.passes += 1
        losses = Losses({name: term / count for name, term in found.terms.items()}, found.stats)
        return self.fault(losses) if self.passes >= STEP else losses  # when the step is run again too


class Loader(StubTrainLoader):
    """A share of the batches; ``fault`` acts on that of the fifth step."""

    def __init__(self, rank: int, world: int, fault: Callable[[Batch], object] = id) -> None:
        super().__init__(batch_size=2 * world, share=(rank, world), num_images=8 * world)
        self.fault = fault

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().iterate(start), start):
            if number == STEP - 1:
                self.fault(batch)
            yield batch


class _Endless(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.inf


class Stumbling(Callback):
    """Fails at ``event``; in a step, at the fifth."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.stumble)

    def stumble(self, *what: Any) -> None:
        if not isinstance(what[0], StepRecord) or what[0].step == STEP:
            raise RuntimeError("the disk of the logs is gone")


class _BrokenOnce(torch.autograd.Function):
    """The identity, whose first gradient in this process is never made."""

    broke = False

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        if not _BrokenOnce.broke:
            _BrokenOnce.broke = True
            raise RuntimeError("no memory for a gradient")
        return gradients[0]


class HalfBackward(Sharing):
    """The fifth backward pass ends between the head and the backbone."""

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        hook = None
        if self.passes >= STEP - 1:
            hook = self.backbone.register_forward_hook(lambda module, args, out: _BrokenOnce.apply(out))
        found = super().forward(images, targets)
        if hook is not None:
            hook.remove()
        return found


class BadImages(StubEvalLoader):
    def __iter__(self) -> Iterator[Batch]:
        yield from itertools.islice(super().__iter__(), 1)
        raise ValueError("data/101.jpg: cannot be decoded")


class BadEvaluator(StubEvaluator):
    def compute(self, *, allow_missing: bool = False) -> Any:
        raise RuntimeError("no scores today")


def spoil_box(batch: Batch) -> None:
    batch.targets[1].boxes[0, 2] = torch.nan


def move_box_away(batch: Batch) -> None:
    batch.targets[1].boxes[0] += 20  # outside its image, and near enough for the cheap check of each step


def spoil_image(_: Batch) -> None:
    raise ValueError("data/7.jpg: cannot be decoded")


def fail(losses: Losses) -> Losses:
    raise RuntimeError("an index is out of range")


def scaled(factor: float) -> Callable[[Losses], Losses]:
    return lambda losses: Losses({name: term * factor for name, term in losses.terms.items()}, losses.stats)


def steep(losses: Losses) -> Losses:
    return Losses({name: _Endless.apply(term) for name, term in losses.terms.items()}, losses.stats)


#: What is wrong in one process: an argument of its trainer, or what acts on its losses or on its batch.
FAULTS: dict[str, dict[str, Any]] = {
    "exploding loss": {"losses": scaled(1e6)},
    "NaN loss": {"losses": scaled(float("nan"))},
    "infinite gradient": {"losses": steep},
    "NaN box": {"batch": spoil_box},
    "bad image": {"batch": spoil_image},
    "failing detector": {"losses": fail},
    "half a gradient": {"detector": HalfBackward, "batch": move_box_away},
    **{
        f"failing {event}": {"callbacks": {"stumbling": Stumbling(event)}}
        for event in ("on_fit_start", "on_step_end", "on_save", "on_evaluation_end", "on_fit_end")
    },
    "bad validation image": {"val_loader": BadImages()},
    "failing evaluator": {"evaluator": BadEvaluator()},
}


def trainer_of(folder: Path, fault: dict[str, Any]) -> Trainer:
    """A trainer of this process, with what is wrong in it."""
    changes: dict[str, Any] = dict(fault)
    torch.manual_seed(0)
    loader = Loader(dist.rank(), dist.world_size(), changes.pop("batch", id))
    detector = changes.pop("detector", Sharing)(changes.pop("losses", lambda losses: losses))
    return make_trainer(folder, detector=detector, train_loader=loader, **{"eval_every": None, "steps": 6, **changes})


def run(case: str, culprit: int, folder: Path, rank: int) -> None:
    with told_plainly(), process_group("cpu", TIMEOUT):
        set_up_logging()
        try:
            trainer_of(folder, FAULTS[case] if rank == culprit else {}).fit()
        except Exception as error:
            (folder / f"{rank}.error").write_text(type(error).__name__)
            raise


def store_keeper() -> tuple[int, str]:
    """A process that keeps the store, which needs threads, as torchrun does; and the port of the store."""
    ours, theirs = os.pipe()
    if keeper := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            return keeper, pipe.readline().strip()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(theirs, f"{store.port}\n".encode())
    signal.pause()
    os._exit(1)


def together(case: str, culprit: int, world: int, folder: Path) -> dict[str, Any]:
    """Exit codes and words of all processes, how long they took, and the reports in the folder."""
    folder.mkdir(parents=True)
    keeper, port = store_keeper()
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    start, children = time.monotonic(), []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update(where, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
            os.dup2(os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
            code = 0
            try:
                run(case, culprit, folder, rank)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                code = 3
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    return {
        "codes": codes,
        "seconds": time.monotonic() - start,
        "errors": [p.read_text() if (p := folder / f"{rank}.error").exists() else None for rank in range(world)],
        "words": [(folder / f"{rank}.txt").read_text() for rank in range(world)],
        "reports": {path.name: load_bundle(path).findings for path in sorted(folder.glob("divergence*"))},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, *cases = sys.argv[1:]
    results = {}
    for case in cases:
        name, culprit, world = case.rsplit(",", 2)
        results[case] = together(name, int(culprit), int(world), Path(root) / case)
    print(json.dumps(results))
