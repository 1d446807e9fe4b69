"""How long each installed library takes for COCO's twelve numbers, and whether they are the same."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import rich
from rich.table import Table

from detkit.evaluation import CocoEvaluator, Evaluation, EvaluatorState
from detkit.evaluation.backends import REFERENCE, BackendName, installed_backends
from detkit.evaluation.summary import Curves
from detkit.evaluation.synthetic import SyntheticSet, synthetic_set


class BackendTiming(NamedTuple):
    """``seconds`` of each repeat, from the detections in memory to the twelve numbers.

    ``difference``: the largest one between any entry of the arrays and pycocotools', 0 for the same bits.
    """

    backend: str
    seconds: tuple[float, ...]
    difference: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def benchmark_evaluation(
    *, num_images: int = 200, num_categories: int = 80, detections_per_image: int = 100, repeats: int = 3
) -> list[BackendTiming]:
    """Time every installed backend on the same made-up data set, the reference last.

    COCO val2017 with 100 detections an image is ``num_images=5000``, for which pycocotools takes most of a minute.
    """
    made = synthetic_set(
        num_images=num_images, num_categories=num_categories, detections_per_image=detections_per_image
    )
    runs = [(backend, _run(made, backend, repeats)) for backend in installed_backends()]
    reference = next(evaluation.curves for backend, (evaluation, _) in runs if backend == REFERENCE)
    return [
        BackendTiming(backend, seconds, _difference(evaluation.curves, reference))
        for backend, (evaluation, seconds) in runs
    ]


def timing_table(timings: Sequence[BackendTiming]) -> Table:
    """One row for each backend, to be printed by rich."""
    reference = next(t.median for t in timings if t.backend == REFERENCE)
    table = Table(title="COCO evaluation of boxes")
    table.add_column("backend", no_wrap=True)
    for heading in ("median s", "range s", "times as fast", "difference"):
        table.add_column(heading, justify="right")
    for timing in timings:
        low, high = min(timing.seconds), max(timing.seconds)
        difference = "same bits" if timing.difference == 0 else f"{timing.difference:.1e}"
        ratio = f"{reference / timing.median:.1f}"
        table.add_row(timing.backend, f"{timing.median:.3f}", f"{low:.3f}-{high:.3f}", ratio, difference)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of :func:`benchmark_evaluation`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200, help="images (default: %(default)s; COCO val2017 has 5000)")
    parser.add_argument("--classes", type=int, default=80, help="classes (default: %(default)s)")
    parser.add_argument("--detections", type=int, default=100, help="detections of each image (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each backend (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for name, value in vars(arguments).items():
        if value < 1:
            parser.error(f"--{name} must be at least 1, not {value}")
    timings = benchmark_evaluation(
        num_images=arguments.images,
        num_categories=arguments.classes,
        detections_per_image=arguments.detections,
        repeats=arguments.repeats,
    )
    rich.print(timing_table(timings))


def _difference(one: Curves, other: Curves) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def _run(made: SyntheticSet, backend: BackendName, repeats: int) -> tuple[Evaluation, tuple[float, ...]]:
    evaluator = CocoEvaluator(categories=made.categories, truths=made.truths, backend=backend)
    evaluator.merge([EvaluatorState(np.array([t.image_id for t in made.truths]), made.results)])
    evaluation, seconds = None, []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluation = evaluator.compute()
        seconds.append(time.perf_counter() - start)
    assert evaluation is not None, "argparse and the signature ask for at least one repeat"
    return evaluation, tuple(seconds)


if __name__ == "__main__":
    main()
