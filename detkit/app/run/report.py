"""What a finished run or evaluation shows: tables, a picture, and where everything is."""

from __future__ import annotations

from pathlib import Path

import rich
from rich.text import Text

from detkit.data.datasets.base import DetectionDataset
from detkit.engine.callbacks import Callback
from detkit.engine.evaluation import EvaluationResult
from detkit.engine.records import EvaluationRecord, FitResult
from detkit.evaluation import CocoEvaluator, Evaluator
from detkit.evaluation.report import save_pictures
from detkit.evaluation.results import Results, restore

#: Detections below this score are left out of pictures; the tables count them all.
DRAWN_SCORE = 0.5

#: Files of the best evaluation: its numbers, and what they were made from.
EVALUATION, DETECTIONS = "evaluation.json", "detections.npz"


class KeepBest(Callback):
    """Keeps the best evaluation of a run: to be shown at its end, and in its folder, where a kill cannot reach it.

    Args:
        folder: of the run.
        evaluator: scored the evaluations; its detections go to ``detections.npz``, which the comparison of runs reads.
    """

    def __init__(self, folder: Path, evaluator: Evaluator | None) -> None:
        self.record: EvaluationRecord | None = None
        self._folder, self._evaluator = folder, evaluator

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        if not record.best and (self._folder / EVALUATION).exists():
            return
        self.record = record
        if record.result.evaluation is not None:
            record.result.evaluation.save(self._folder / EVALUATION)
        if isinstance(self._evaluator, CocoEvaluator):
            self._evaluator.scored_set().save(self._folder / DETECTIONS)


def report_training(folder: Path, best: EvaluationRecord | None, result: FitResult, dataset: DetectionDataset) -> None:
    """Show the best evaluation of a run."""
    if best is not None:
        report_evaluation(folder, best.result, dataset)
    elif result.best is not None:  # resumed after its best evaluation
        rich.print(f"the best value, {result.best:.4f}, was reached before, at step {result.best_step}")


def report_evaluation(folder: Path, result: EvaluationResult, dataset: DetectionDataset) -> None:
    """Write ``evaluation.json`` and ``detections.png`` (ground truth left, detections right); then print the tables."""
    path = folder / "detections.png"
    if result.evaluation is not None:
        result.evaluation.save(folder / EVALUATION)
    if result.examples:
        save_examples(path, result, dataset)
    if result.evaluation is not None:
        rich.print(result.evaluation.table(), result.evaluation.per_class_table())
    elif result.told:
        rich.print(", ".join(f"{name} {value:.4f}" for name, value in result.told.items()))
    if result.examples:
        rich.print(f"ground truth (left) beside detections from score {DRAWN_SCORE}:", Text(str(path), "bold"))


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
