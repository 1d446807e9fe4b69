"""Watchers of a run: they see six events and change nothing."""

from detkit.engine.callbacks.callback import Callback
from detkit.engine.callbacks.metrics_csv import MetricsCsv
from detkit.engine.callbacks.progress import ProgressBar
from detkit.engine.callbacks.tensorboard import TensorBoardWriter

__all__ = ["Callback", "MetricsCsv", "ProgressBar", "TensorBoardWriter"]
