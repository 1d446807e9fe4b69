"""Curves and pictures for TensorBoard."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.config import CALLBACKS
from detkit.engine.callbacks.callback import Callback
from detkit.engine.evaluation import NUM_EXAMPLES, Example
from detkit.engine.records import EvaluationRecord, FitResult, FitStart, StepRecord
from detkit.pictures.draw import draw_boxes
from detkit.structures import Detections, Target
from detkit.utils.files import named

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@CALLBACKS
class TensorBoardWriter(Callback):
    """Writes event files into ``tensorboard/`` of the run folder: ``tensorboard --logdir runs``.

    Scalars: losses, detector's statistics, learning rates, gradient norm and speed of each logged step; every metric of
    each evaluation. Pictures of each evaluation: the first ``num_images`` validation images with the detections that
    score at least ``min_score``, and once what there is to find in them.
    """

    def __init__(self, *, num_images: int = 4, min_score: float = 0.3) -> None:
        if not 0 <= num_images <= NUM_EXAMPLES:
            raise ValueError(f"num_images must be from 0 to {NUM_EXAMPLES}, not {num_images}")
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be in [0, 1], not {min_score}")
        self._num_images, self._min_score = num_images, min_score
        self._writer: SummaryWriter | None = None
        self._folder = Path()
        self._names: tuple[str, ...] = ()
        self._truth_is_shown = False

    def on_fit_start(self, start: FitStart) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # What an earlier process wrote after the step that this one goes on from is hidden: all of it where that one
        # was killed before it saved, and this one begins anew.
        self._folder = start.run_dir / "tensorboard"
        self._writer = SummaryWriter(str(self._folder), purge_step=start.step + 1)
        self._names = start.categories.names
        self._truth_is_shown = False

    def on_step_end(self, record: StepRecord) -> None:
        assert self._writer is not None
        if record.logged:
            with named(self._folder):
                for name, value in record.scalars().items():
                    self._writer.add_scalar(f"train/{name}", value, record.step)

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        assert self._writer is not None
        with named(self._folder):
            for name in record.result.metrics:
                self._writer.add_scalar(f"val/{name}", record.result.value(name), record.step)
            for example in record.result.examples[: self._num_images]:
                self._add_pictures(f"image {example.meta.image_id}", example, record.step)
            self._truth_is_shown = True
            self._writer.flush()

    def on_exception(self, error: BaseException) -> None:
        with suppress(OSError):  # a full disk must not take the place of what the run stops with
            self._close()

    def on_fit_end(self, result: FitResult) -> None:
        self._close()

    def _add_pictures(self, title: str, example: Example, step: int) -> None:
        assert self._writer is not None
        found = example.detections.select(example.detections.scores >= self._min_score)
        scores = found.scores.numpy()
        picture = draw_boxes(
            example.image, found.boxes.numpy(), found.labels.numpy(), self._names, scores, landmarks=_points(found)
        )
        self._writer.add_image(f"{title}/detections", picture, step, dataformats="HWC")
        if not self._truth_is_shown:
            truth = example.target.wanted
            picture = draw_boxes(
                example.image, truth.boxes.numpy(), truth.labels.numpy(), self._names, landmarks=_points(truth)
            )
            self._writer.add_image(f"{title}/truth", picture, step, dataformats="HWC")

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with named(self._folder):
                writer.close()


def _points(of: Detections | Target) -> np.ndarray | None:
    return None if of.landmarks is None else of.landmarks.numpy()
