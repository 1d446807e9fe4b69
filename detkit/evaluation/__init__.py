"""Scoring of detections against the ground truth, and reports of it."""

from detkit.evaluation.coco import CocoEvaluator
from detkit.evaluation.columns_file import ScoredSet
from detkit.evaluation.evaluator import ClassResult, Evaluation, Evaluator, EvaluatorState
from detkit.evaluation.report import comparison_sheet, save_pictures
from detkit.evaluation.results import Results, read_results, restore, write_results

__all__ = [
    "ClassResult",
    "CocoEvaluator",
    "Evaluation",
    "Evaluator",
    "EvaluatorState",
    "Results",
    "ScoredSet",
    "comparison_sheet",
    "read_results",
    "restore",
    "save_pictures",
    "write_results",
]
