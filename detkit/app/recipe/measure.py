"""Timings of a few steps, of the very experiments that a recipe would write, and how well anchors fit their boxes."""

from __future__ import annotations

import itertools
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from detkit.app.assemble.parts import build_transforms, choose_device, without_pretrained_weights
from detkit.app.assemble.trainer import build_trainer
from detkit.app.audit.advice import poor_share
from detkit.app.audit.plan import Planner
from detkit.app.recipe import rules
from detkit.app.recipe.given import DETECTORS, SIZES, Choice, Fits, Given, Measured, View
from detkit.app.recipe.made import Option, make
from detkit.app.recipe.speed import DIGITS, Line, Pace, Speeds
from detkit.config import build
from detkit.data.datasets.base import DetectionDataset
from detkit.engine.evaluation import to_device
from detkit.engine.precision import autocast
from detkit.engine.trainer import Trainer
from detkit.models import build_detector
from detkit.structures import Batch
from detkit.utils.log import logger

#: Steps that are timed after the first, or fewer where they take longer together than so many seconds.
_STEPS, _SECONDS = 4, 12.0

#: Objects, about, on which anchors are tried, as in the audit.
_OBJECTS = 600

#: Images that are read to see how long that takes.
_READ = 4

#: Scales and ratios that are tried, in strides of the level and as height / width.
SCALES = ((2.0,), (3.0,), (4.0,), (6.0,), (8.0,), (3.0, 4.243))
RATIOS = ((0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0))

#: Stands for what is not known yet; nothing that is timed depends on it.
_ANY_PACE = Pace(Line(1.0, 1.0), Line(1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Bench:
    """Builds the experiments that are timed.

    ``compose``: the configuration that an experiment's choices make. ``data``: the preset of the data.
    """

    given: Given
    data: str
    compose: Callable[[Sequence[Choice]], DictConfig]

    def config(self, option: Option) -> DictConfig:
        """Of ``option`` with usual anchors, in fp32."""
        speeds = Speeds("", 1.0, dict.fromkeys(DETECTORS, _ANY_PACE))
        usual = Fits({(4.0,): 0.0}, dict.fromkeys(RATIOS, 0.0))
        return self.compose(make(self.given, Measured(speeds, usual), option, self.data))


def time_all(bench: Bench, dataset: DetectionDataset, device: str, threads: int | None) -> Speeds:
    """How fast this computer trains each detector on images like those of ``dataset``, in the faster precision."""
    reading = reading_time(dataset)
    first, views = DETECTORS[0], _views(bench.given)
    seconds = {p: _timed(bench, Option(first, views[0]), p, device, threads)[0] for p in ("fp32", "bf16")}
    bf16 = round(seconds["fp32"] / seconds["bf16"], 2)
    precision = rules.choose_precision(Speeds("", bf16, {})).value
    paces = {}
    for detector in DETECTORS:
        megapixels = [bench.given.megapixels(view) for view in views]
        pairs = [_timed(bench, Option(detector, view), precision, device, threads) for view in views]
        lines = (Line.through(list(zip(megapixels, column, strict=True))) for column in zip(*pairs, strict=True))
        train, val = lines
        paces[detector] = Pace(train, replace(val, fixed=round(val.fixed + reading, DIGITS)))
    return Speeds(machine(device, threads), bf16, paces)


def what_is_timed(bench: Bench, said: Sequence[Choice]) -> dict[str, Any]:
    """What the timings depend on beside the computer, in plain values.

    Args:
        said: what the command line has of the data.
    """
    f = bench.given.findings
    return {
        "backbone": bench.given.backbone,
        "sizes": [view.size for view in _views(bench.given)],
        "longer side": f.long_side,
        "aspect": round(f.aspect, 3),
        "classes": len(f.names),
        "objects an image": round(float(f.per_image.mean()), 1),
        **{choice.key: choice.value for choice in said if choice.key.startswith("data.loader.")},
    }


def reading_time(dataset: DetectionDataset) -> float:
    """Seconds to read an image, which a detection may wait for: of a large one it is the greater part."""
    seconds = []
    for i in range(min(_READ, len(dataset))):
        start = time.perf_counter()
        dataset.read(i)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _views(given: Given) -> tuple[View, View]:
    """Two views of other sizes around what is likely to be chosen."""
    usual = SIZES.index(rules.usual_size(given))
    return View(SIZES[max(0, usual - 2)]), View(SIZES[max(2, usual)])


def _timed(bench: Bench, option: Option, precision: str, device: str, threads: int | None) -> tuple[float, float]:
    """Seconds an image of a training step, with the wait for its batch, and of a detection."""
    cfg = bench.config(option)
    OmegaConf.update(cfg, "trainer.precision", precision)
    OmegaConf.update(cfg, "device", device)
    OmegaConf.update(cfg, "threads", threads)
    OmegaConf.update(cfg, "callbacks", {}, merge=False)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer, _ = build_trainer(cfg, Path(folder))
        trainer.detector.train()
        with closing(trainer.train_loader.iterate()) as batches:  # pyright: ignore[reportArgumentType]
            trainer.train_step(batches)
            train = [record.seconds / record.num_images for record in _steps(trainer, batches)]
            val = _detection(trainer, next(batches))
    found = statistics.median(train), val
    logger.info("timed %s in %s: %.3f s an image, %.3f s to detect in it", option.name, precision, *found)
    return found


def _steps(trainer: Trainer, batches: Iterator[Batch]) -> Iterator[Any]:
    """The records of some steps."""
    start = time.monotonic()
    for _ in range(_STEPS):
        yield trainer.train_step(batches)
        if time.monotonic() - start > _SECONDS:
            return


def _detection(trainer: Trainer, batch: Batch) -> float:
    """Seconds an image, of the second of two passes: the first one warms up."""
    moved = to_device(batch, trainer.device, trainer.channels_last)
    trainer.detector.eval()
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad(), autocast(trainer.device, trainer.precision):
            trainer.detector(moved.images)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds = (time.perf_counter() - start) / len(batch)
    return seconds


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what a training says before it begins, which each timing would say again."""
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def machine(device: str, threads: int | None) -> str:
    """What trains on ``device``, in words that tell it from another: the GPU; or the threads and their processor.

    Args:
        threads: of the CPU; None for torch's own choice.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    number = threads or torch.get_num_threads()
    return f"{number} CPU thread{'s' * (number > 1)} ({_processor()}, {torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    """Its name, where the system tells one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def fits_of(bench: Bench, option: Option, dataset: DetectionDataset) -> Fits:
    """The audit's share of objects without an anchor that overlaps them by half, for other scales and ratios."""
    if option.detector != DETECTORS[0]:
        return Fits({}, {})
    cfg = bench.config(option)
    model = _plain(cfg)["model"]
    without_pretrained_weights(model)
    planner = Planner(build_detector(model, dataset.categories))
    batches = _laid(cfg, dataset)

    def poor(scales: tuple[float, ...], ratios: tuple[float, ...]) -> float:
        other = _with_anchors(planner, model["head"], len(dataset.categories), scales=scales, ratios=ratios)
        return round(poor_share(other, batches), 4)

    by_scales = {scales: poor(scales, RATIOS[0]) for scales in SCALES}
    chosen = tuple(rules.choose_scales(Fits(by_scales, {})).value)
    return Fits(by_scales, {ratios: poor(chosen, ratios) for ratios in RATIOS})


def _with_anchors(planner: Planner, head: Mapping[str, Any], num_classes: int, **values: Sequence[float]) -> Planner:
    anchors = head["rpn"]["anchors"] | {name: list(several) for name, several in values.items()}
    node = {**head, "rpn": head["rpn"] | {"anchors": anchors}}
    return planner.with_head(build(node, key="model.head", in_spec=planner.out_spec, num_classes=num_classes))


def _laid(cfg: DictConfig, dataset: DetectionDataset) -> list[Batch]:
    """Batches with the sizes and boxes of training, without pixels."""
    node = _plain(cfg)
    loader = build(node["data"]["loader"]["train"] | {"num_workers": 0})(
        dataset=dataset, transforms=build_transforms(node["transform"]["train"], "transform.train"), seed=node["seed"]
    )
    batches, objects = [], 0
    for batch in itertools.islice(loader.lay(), loader.batches_per_epoch):
        batches.append(batch)
        objects += sum(int((~target.ignore).sum()) for target in batch.targets)
        if objects >= _OBJECTS:
            break
    return batches


def _plain(cfg: DictConfig) -> Mapping[str, Any]:
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    return node
