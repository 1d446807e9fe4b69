"""Run a detector over a validation set: detections to the evaluator, losses to their means."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from detkit.engine.bad_steps.finite import refuse_bad_weights
from detkit.engine.batches import EvalBatches
from detkit.engine.precision import Precision, autocast, check_precision
from detkit.evaluation import Evaluation, Evaluator
from detkit.models.compiled import as_it_stands
from detkit.structures import Batch, Detections, ImageMeta, Images, Losses, Ratio, Target
from detkit.structures.columns import each_field
from detkit.utils import dist
from detkit.utils.progress import track

#: How many images an evaluation hands on with their detections, to be drawn.
NUM_EXAMPLES = 8

#: Before the names of what a detector tells beside its losses, as in a training step's scalars: no score has a slash.
_STAT = "stat/"


@dataclass(frozen=True, slots=True)
class Example:
    """One image as the detector saw it, uint8 (h, w, 3) RGB, what it found there and what there was, in its pixels."""

    image: np.ndarray
    meta: ImageMeta
    detections: Detections
    target: Target


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """What an evaluation found.

    ``evaluation``: the scores; None without an evaluator. ``losses``: means over the images of each term and, as
    "val_loss", of their sum; ``stats``: of what else the detector told with them, as "stat/NAME", without ratios to
    nothing; both empty where they were not asked for, and both beside the scores of ``evaluation`` too. ``examples``:
    the first images.
    """

    evaluation: Evaluation | None
    losses: Mapping[str, float]
    examples: tuple[Example, ...]
    num_images: int
    seconds: float
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Scores, losses and stats together, as plain numbers."""
        scores = self.evaluation.metrics if self.evaluation else {}
        return {name: float(value) for name, value in {**scores, **self.told}.items()}

    @property
    def told(self) -> dict[str, float]:
        """Losses and stats, which are numbers whatever the data."""
        return {**self.losses, **self.stats}

    def value(self, name: str) -> float:
        """One of :attr:`metrics`; nan for a score that is not defined on this data.

        Raises:
            ValueError: there is no such metric.
        """
        if name not in self.metrics:
            raise ValueError(f"no metric {name!r}; there are {', '.join(self.metrics)}")
        if self.evaluation is not None and name in self.evaluation.metrics:
            return self.evaluation.value(name)
        return self.told[name]


class EvaluationStopped(Exception):
    """``should_stop`` said so before the last batch."""


def evaluate(
    detector: nn.Module,
    loader: EvalBatches,
    evaluator: Evaluator | None,
    *,
    device: torch.device | str,
    precision: Precision = "fp32",
    channels_last: bool = False,
    val_loss: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationResult:
    """Evaluate ``detector`` in eval mode and without gradients; afterwards each module is in the mode it was in.

    With several processes each runs over the batches that its own ``loader`` gives; all get the result of the whole.

    Args:
        detector: on ``device``.
        evaluator: takes the detections, as float32 on the CPU; None where only losses are wanted.
        val_loss: also compute the losses, by a second pass over each batch.
        should_stop: asked before each batch; once true the evaluation ends with EvaluationStopped.

    Raises:
        EvaluationStopped: see ``should_stop``.
        ValueError: ``precision`` is not for this device, or a weight or running statistic is not finite.
        FailedElsewhereError: another process could not evaluate its share.
    """
    start = time.perf_counter()
    device = torch.device(device)
    check_precision(precision, device)
    refuse_bad_weights(detector, "the detector cannot be evaluated")
    means = _Means()
    examples: list[Example] = []
    if evaluator is not None:
        evaluator.reset()
    with dist.together(device), _eval_mode(detector), as_it_stands(detector), torch.no_grad():
        for batch in track(loader, len(loader), "evaluating"):
            if should_stop():
                raise EvaluationStopped
            batch = to_device(batch, device, channels_last)
            with autocast(device, precision):
                found = detector(batch.images)
                losses = detector(batch.images, batch.targets) if val_loss else Losses({})
            means.add(losses, len(batch))
            found = [_on_cpu(detections) for detections in found]
            if evaluator is not None:
                evaluator.update(found, batch.images.meta)
            examples += _examples(batch, found, NUM_EXAMPLES - len(examples))
    num_images, told = means.over_processes()
    losses = {name: value for name, value in told.items() if not name.startswith(_STAT)}
    stats = {name: value for name, value in told.items() if name.startswith(_STAT)}
    return EvaluationResult(
        evaluation=replace(_compute(evaluator), beside={**losses, **stats}) if evaluator is not None else None,
        losses=losses,
        stats=stats,
        examples=tuple(examples),
        num_images=num_images,
        seconds=time.perf_counter() - start,
    )


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """``batch`` on ``device``, its pixels in the memory format that the detector's weights have."""
    batch = batch.to(device, non_blocking=True)
    if not channels_last:
        return batch
    pixels = batch.images.pixels.contiguous(memory_format=torch.channels_last)
    return replace(batch, images=Images(pixels, batch.images.meta))


class _Means:
    """Means of loss terms and stats over images, and ratios of sums; these are exact, so that they do not depend on who
    had which batch."""

    def __init__(self) -> None:
        self._num_images = 0
        self._parts: defaultdict[str, list[float]] = defaultdict(list)  # of each batch; of a mean times its images
        self._wholes: defaultdict[str, float] = defaultdict(float)  # what the sum of a stat's parts is divided by

    def add(self, losses: Losses, num_images: int) -> None:
        self._num_images += num_images
        if losses.terms:
            values = torch.stack([*(term.float() for term in losses.terms.values()), losses.total]).tolist()
            for name, value in zip([*losses.terms, ""], values, strict=True):
                self._parts[f"val_loss/{name}".rstrip("/")].append(value * num_images)
        for name, stat in losses.stats.items():
            if isinstance(stat, Ratio):
                part, whole = stat.part.item(), stat.whole.item()
            else:
                part, whole = stat.item() * num_images, num_images
            self._parts[_STAT + name].append(part)
            self._wholes[_STAT + name] += whole

    def over_processes(self) -> tuple[int, dict[str, float]]:
        """Images of all processes, and the means and ratios; a ratio to nothing is left out."""
        shares = dist.all_gather((self._num_images, dict(self._parts), dict(self._wholes)))
        total = sum(num for num, *_ in shares)
        told = {}
        for name in {name: None for _, parts, _ in shares for name in parts}:
            part = math.fsum(x for _, parts, _ in shares for x in parts.get(name, []))
            whole = sum(wholes.get(name, 0) for *_, wholes in shares) if name.startswith(_STAT) else total
            if whole:
                told[name] = part / whole
        return total, told


def _compute(evaluator: Evaluator) -> Evaluation:
    """Score what all processes have seen: shares are joined, and whole sets (an unshared loader) taken once.

    The main process does it, and tells the others; each has the detections of all afterwards.
    """
    if dist.world_size() > 1:
        states = dist.all_gather(evaluator.state())
        same = all(np.array_equal(state.image_ids, states[0].image_ids) for state in states)
        evaluator.merge(states[:1] if same else states)
    return dist.from_main(evaluator.compute)


@contextmanager
def _eval_mode(detector: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    try:
        yield
    finally:
        for module, training in modes:  # one by one: frozen layers may have been in eval mode on their own
            module.training = training


def _on_cpu(found: Detections) -> Detections:
    return each_field(found, lambda column: (column.float() if column.is_floating_point() else column).cpu())


def _examples(batch: Batch, found: list[Detections], count: int) -> Iterator[Example]:
    for i, meta in enumerate(batch.images.meta[: max(count, 0)]):
        h, w = meta.size
        pixels = batch.images.pixels[i, :, :h, :w].clamp(0, 255).to(torch.uint8)
        yield Example(pixels.permute(1, 2, 0).contiguous().cpu().numpy(), meta, found[i], batch.targets[i].to("cpu"))
