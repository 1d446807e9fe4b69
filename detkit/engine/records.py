"""What the trainer tells: plain records, returned by it and shown to the callbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from detkit.engine.evaluation import EvaluationResult
from detkit.structures import Categories


@dataclass(frozen=True, slots=True)
class FitStart:
    """A run begins, or goes on after ``step`` of its ``num_steps`` updates."""

    step: int
    num_steps: int
    run_dir: Path
    categories: Categories


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser update.

    ``step`` counts the updates so far, this one included. ``terms`` are the loss terms and ``loss`` their sum, means
    over the accumulated batches, and ``stats`` what else the detector told, without the ratios to nothing: of all
    processes where the step is ``logged``, that is, one to write down, else of this one. ``lr`` is by parameter group:
    "lr" for those at the common rate, "lr/x0.1" for those at a tenth. ``grad_norm`` is the L2 norm before clipping.
    ``applied`` is False where a gradient scaler skipped the update. ``num_images`` are those of all processes. Seconds
    are those of this process; ``data_seconds`` it waited for the loader.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    stats: Mapping[str, float]
    lr: Mapping[str, float]
    grad_norm: float
    applied: bool
    logged: bool
    num_images: int
    data_seconds: float
    compute_seconds: float

    @property
    def seconds(self) -> float:
        """For the step, with the wait for its batch."""
        return self.data_seconds + self.compute_seconds

    @property
    def images_per_second(self) -> float:
        """Of this process."""
        return self.num_images / self.seconds

    def scalars(self) -> dict[str, float]:
        """Every number, by the name under which callbacks write it."""
        return {
            "loss": self.loss,
            **{f"loss/{name}": value for name, value in self.terms.items()},
            **{f"stat/{name}": value for name, value in self.stats.items()},
            **self.lr,
            "grad_norm": self.grad_norm,
            "time/images_per_second": self.images_per_second,
            "time/data_share": self.data_seconds / self.seconds,
        }


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The evaluation after ``step`` updates; ``best`` where it is the best so far by the monitored metric."""

    step: int
    result: EvaluationResult
    best: bool

    def in_words(self, monitor: str) -> str:
        """One line for the log: the metric ``monitor``, the first few others, and how long it took."""
        metrics = self.result.metrics
        shown = dict.fromkeys([monitor, *list(metrics)[:3], "val_loss"])
        numbers = ", ".join(f"{name} {self._number(name)}" for name in shown if name in metrics)
        best = ", the best so far" if self.best else ""
        return f"{numbers}{best} ({self.result.num_images} images in {self.result.seconds:.1f} s)"

    def _number(self, name: str) -> str:
        value = self.result.value(name)
        is_defined = name in self.result.told or not math.isnan(value)
        return f"{value:.4f}" if is_defined else "not defined"


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a run ended: after ``step`` updates, with the ``metrics`` of its last evaluation, the ``best`` value of the
    monitored metric and the step where it was reached (None where nothing was evaluated)."""

    step: int
    metrics: Mapping[str, float]
    best: float | None
    best_step: int | None
    stopped_early: bool
