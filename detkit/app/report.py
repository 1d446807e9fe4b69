"""What a finished run or evaluation shows: tables, a picture, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import rich

from detkit.data.datasets.base import DetectionDataset
from detkit.engine.callbacks import Callback
from detkit.engine.evaluation import EvaluationResult
from detkit.engine.records import EvaluationRecord
from detkit.evaluation.report import save_pictures
from detkit.evaluation.results import Results, restore

#: Detections below this score are left out of pictures; the tables count them all.
DRAWN_SCORE = 0.5


class KeepBest(Callback):
    """Remembers the best evaluation of this run, to be reported at its end."""

    def __init__(self) -> None:
        self.record: EvaluationRecord | None = None

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        if record.best or self.record is None:
            self.record = record


def report_training(
    folder: Path, best: EvaluationRecord | None, metrics: Mapping[str, float], dataset: DetectionDataset | None
) -> None:
    """Show the best evaluation of a run and where its files are."""
    if best is not None and dataset is not None:
        report_evaluation(folder, best.result, dataset)
    elif metrics:  # resumed after its last evaluation
        rich.print("evaluated before: " + ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:3]))
    rich.print(f"run folder: [bold]{folder}[/bold]")


def report_evaluation(folder: Path, result: EvaluationResult, dataset: DetectionDataset) -> None:
    """Print the tables; write ``evaluation.json`` and ``detections.png`` (ground truth left, detections right)."""
    if result.evaluation is not None:
        rich.print(result.evaluation.table(), result.evaluation.per_class_table())
        result.evaluation.save(folder / "evaluation.json")
    if result.losses:
        rich.print("losses: " + ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items()))
    if result.examples:
        path = folder / "detections.png"
        save_examples(path, result, dataset)
        rich.print(f"ground truth (left) beside detections from score {DRAWN_SCORE}: [bold]{path}[/bold]")


def save_examples(path: Path, result: EvaluationResult, dataset: DetectionDataset) -> None:
    """Draw the example images of ``result`` with what was to be found and what was."""
    index = {truth.image_id: i for i, truth in enumerate(dataset.truths)}
    chosen = [index[example.meta.image_id] for example in result.examples]
    save_pictures(
        path,
        [dataset.read(i) for i in chosen],
        [dataset.truths[i] for i in chosen],
        Results.join(restore(e.detections, e.meta, dataset.categories) for e in result.examples),
        dataset.categories,
        min_score=DRAWN_SCORE,
    )
