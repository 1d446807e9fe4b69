"""The engine: training, evaluation, checkpoints, and what watches them."""

from detkit.engine.bad_steps.divergence import Bundle, load_bundle, replay
from detkit.engine.bad_steps.finite import BadStepError, ExplodingLossError, InvalidBatchError, NonFiniteError
from detkit.engine.callbacks import Callback, MetricsCsv, ProgressBar, TensorBoardWriter
from detkit.engine.evaluation import EvaluationResult, evaluate
from detkit.engine.interrupt import Interrupted
from detkit.engine.optim import SGD, AdamW, CustomOptimizer, OptimizerRecipe, ParameterPolicy
from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord
from detkit.engine.schedule import Constant, Cosine, MultiStep, Schedule
from detkit.engine.state.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    Checkpoint,
    CheckpointError,
    check_categories,
    load_checkpoint,
    load_latest,
    load_weights,
    save_checkpoint,
)
from detkit.engine.trainer import Trainer

__all__ = [
    "BEST",
    "LAST",
    "PREVIOUS",
    "SGD",
    "AdamW",
    "BadStepError",
    "Bundle",
    "Callback",
    "Checkpoint",
    "CheckpointError",
    "Constant",
    "Cosine",
    "CustomOptimizer",
    "EvaluationRecord",
    "EvaluationResult",
    "ExplodingLossError",
    "FitResult",
    "FitStart",
    "Interrupted",
    "InvalidBatchError",
    "MetricsCsv",
    "MultiStep",
    "NonFiniteError",
    "OptimizerRecipe",
    "ParameterPolicy",
    "ProgressBar",
    "Schedule",
    "StepRecord",
    "TensorBoardWriter",
    "Trainer",
    "check_categories",
    "evaluate",
    "load_bundle",
    "load_checkpoint",
    "load_latest",
    "load_weights",
    "replay",
    "save_checkpoint",
]
