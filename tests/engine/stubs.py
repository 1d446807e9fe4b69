"""A detector, loaders and an evaluator small enough that a whole run takes a fraction of a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detkit.engine import (
    SGD,
    Callback,
    Constant,
    EvaluationRecord,
    FitResult,
    FitStart,
    StepRecord,
    Trainer,
)
from detkit.engine.state.checkpoint import LAST, load_checkpoint
from detkit.evaluation import Evaluation, Evaluator, EvaluatorState
from detkit.models.interfaces import Detector
from detkit.structures import Affine, Batch, Categories, Detections, ImageMeta, Images, Losses, Target
from detkit.utils.seed import derive_key, generator, seed_everything

CATEGORIES = Categories(("circle", "square"), (3, 7))
IMAGE_SIZE = 16


class StubDetector(Detector):
    """Learns how bright its boxes are. With ``noisy`` it draws from the global generator, as dropout does."""

    def __init__(self, noisy: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(4, 4, 3)
        )
        self.dropout = nn.Dropout(0.25) if noisy else nn.Identity()
        self.head = nn.Linear(4, 5)

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        features = self.backbone(images.pixels.float() / 255).mean(dim=(2, 3))
        out = self.head(self.dropout(features)).float()
        if targets is None:
            return [_detection(row) for row in out]
        wanted = torch.stack([target.boxes.sum(0) / IMAGE_SIZE for target in targets])
        present = torch.tensor([float(len(target) > 0) for target in targets], device=out.device)
        return Losses(
            {
                "cls": nn.functional.binary_cross_entropy_with_logits(out[:, 4], present),
                "box": nn.functional.smooth_l1_loss(out[:, :4], wanted),
            },
            {"num_objects": torch.tensor(float(sum(len(t) for t in targets)))},
        )


def _detection(row: Tensor) -> Detections:
    return Detections(row[None, :4].abs().cumsum(1), row[None, 4].sigmoid(), torch.zeros(1, dtype=torch.int64))


def make_batch(keys: Sequence[int], ids: Sequence[int]) -> Batch:
    """Random images and one or two boxes each, decided by ``keys`` alone."""
    pixels, targets, metas = [], [], []
    for key, image_id in zip(keys, ids, strict=True):
        rng = generator(key, "image")
        pixels.append(torch.randint(0, 256, (3, IMAGE_SIZE, IMAGE_SIZE), generator=rng, dtype=torch.uint8))
        corner = torch.rand(1 + key % 2, 2, generator=rng) * 8
        boxes = torch.cat([corner, corner + 4], dim=1)
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        targets.append(Target(boxes, labels, torch.zeros(len(boxes), dtype=torch.bool)))
        size = (IMAGE_SIZE, IMAGE_SIZE)
        metas.append(ImageMeta(image_id, f"{image_id}.png", size, size, Affine(), key))
    return Batch(Images(torch.stack(pixels), tuple(metas)), tuple(targets))


class StubTrainLoader:
    """``num_images`` images in random order, ``batch_size`` at a time; each of several processes has its ``share``."""

    def __init__(
        self, num_images: int = 10, batch_size: int = 2, seed: int = 0, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.num_images, self.batch_size, self.seed, self.share = num_images, batch_size, seed, share
        self.batches_per_epoch = num_images // batch_size

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        number = start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self.batches_per_epoch)
        order = torch.randperm(self.num_images, generator=generator(derive_key(self.seed, epoch, 0), "order")).tolist()
        indices = order[place * self.batch_size : (place + 1) * self.batch_size][self.share[0] :: self.share[1]]
        return make_batch([derive_key(self.seed, epoch, i) for i in indices], indices)


class StubEvalLoader:
    """``num_images`` images in order, two at a time."""

    def __init__(self, num_images: int = 5, share: tuple[int, int] = (0, 1)) -> None:
        self.ids = list(range(100, 100 + num_images))[share[0] :: share[1]]

    def __len__(self) -> int:
        return (len(self.ids) + 1) // 2

    def __iter__(self) -> Iterator[Batch]:
        for i in range(0, len(self.ids), 2):
            ids = self.ids[i : i + 2]
            yield make_batch([derive_key(99, 0, k) for k in ids], ids)


class StubEvaluator(Evaluator):
    """Its AP depends on every detection; ``script`` replaces it by given numbers, one for each evaluation."""

    def __init__(self, script: Sequence[float] = ()) -> None:
        self.script = list(script)
        self.scores: dict[int, float] = {}

    def reset(self) -> None:
        self.scores.clear()

    def update(self, detections: Sequence[Detections], metas: Sequence[ImageMeta]) -> None:
        for found, meta in zip(detections, metas, strict=True):
            assert meta.image_id not in self.scores
            assert found.boxes.dtype == found.scores.dtype == torch.float32
            assert found.boxes.device.type == "cpu"
            self.scores[meta.image_id] = float(found.scores.sum() + found.boxes.sum())

    def compute(self, *, allow_missing: bool = False) -> Evaluation:
        value = sum(self.scores[k] for k in sorted(self.scores)) / len(self.scores)
        ap = self.script.pop(0) if self.script else value
        return Evaluation({"AP": ap, "AP50": value}, (), None, (), (), (1, 10, 100), len(self.scores), 0, "stub")  # pyright: ignore[reportArgumentType]

    def state(self) -> EvaluatorState:
        ids = np.array(sorted(self.scores))
        return EvaluatorState(ids, [self.scores[k] for k in ids.tolist()])  # pyright: ignore[reportArgumentType]

    def merge(self, states: Sequence[EvaluatorState]) -> None:
        self.scores = {k: v for ids, values in states for k, v in zip(ids.tolist(), values, strict=True)}


def make_trainer(run_dir: Path, *, seed: int = 0, steps: int = 12, **changes: Any) -> Trainer:
    """A trainer with everything on that a resume could forget; ``changes`` replace its arguments."""
    detector = changes.pop("detector", None)
    if detector is None:
        seed_everything(seed)
        detector = StubDetector()
    recipe = changes.pop("optim", None) or SGD(lr=0.05)
    arguments: dict[str, Any] = {
        "ema_decay": 0.9,
        "clip_norm": 1.0,
        "eval_every": 4,
        "save_every": 3,
        "log_every": 2,
        "detector": detector,
        "optimizer": recipe(detector, batch_size=2),
        "schedule": Constant(warmup_steps=5, warmup_factor=0.1),
        "train_loader": StubTrainLoader(seed=seed),
        "val_loader": StubEvalLoader(),
        "evaluator": StubEvaluator(),
        "categories": CATEGORIES,
        "run_dir": run_dir,
        "config": {"model": {"depth": 2}},
    }
    return Trainer(steps=steps, **{**arguments, **changes})


def digest(value: Any) -> str:
    """SHA-256 over every bit of nested tensors and plain values."""
    sha = hashlib.sha256()
    _feed(sha, value)
    return sha.hexdigest()


def _feed(sha: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            sha.update(repr(key).encode())
            _feed(sha, value[key])
    elif isinstance(value, (list, tuple)):
        sha.update(str(len(value)).encode())
        for item in value:
            _feed(sha, item)
    else:
        sha.update(repr(value).encode())


def digest_of_run(run_dir: Path) -> str:
    """SHA-256 of weights, optimiser, average, random states and progress of a run's last checkpoint."""
    checkpoint = load_checkpoint(run_dir / LAST)
    return digest([checkpoint.detector, checkpoint.average, checkpoint.training, checkpoint.metrics])


class Recorder(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_fit_start(self, start: FitStart) -> None:
        self.events.append(("start", start))

    def on_step_end(self, record: StepRecord) -> None:
        self.events.append(("step", record))

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        self.events.append(("evaluation", record))

    def on_save(self, path: Path, step: int) -> None:
        self.events.append(("save", (path.name, step)))

    def on_exception(self, error: BaseException) -> None:
        self.events.append(("exception", error))

    def on_fit_end(self, result: FitResult) -> None:
        self.events.append(("end", result))

    def of(self, event: str) -> list[Any]:
        return [what for name, what in self.events if name == event]


class ActingLoader(StubTrainLoader):
    """Calls ``act(number)`` before it hands out a batch."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self.act = act

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().iterate(start), start):
            self.act(number)
            yield batch


def without_evaluation(**changes: Any) -> dict[str, Any]:
    return {"eval_every": None, "val_loader": None, "evaluator": None, **changes}
