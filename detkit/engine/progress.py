"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """With weights and optimiser all that going on needs to know.

    ``step`` counts the updates, ``batches_seen`` the training batches. ``evaluated`` is the step of the last
    evaluation, ``best`` and ``best_step`` are the best value of the monitored metric and where it was reached,
    ``without_gain`` counts the evaluations since.
    """

    step: int = 0
    batches_seen: int = 0
    evaluated: int = 0
    best: float | None = None
    best_step: int | None = None
    without_gain: int = 0

    def forget_best(self) -> None:
        """As before the first evaluation: what comes is measured otherwise, and cannot be compared."""
        self.evaluated, self.best, self.best_step, self.without_gain = 0, None, None, 0

    def judge(self, value: float, is_lower_better: bool) -> bool:
        """Take in the monitored metric of an evaluation at this step; whether it is the best. nan never is.

        A score that is nan is not defined on the data: that is no sign that the run gains nothing more.
        """
        if self.best is None:
            is_best = not math.isnan(value)
        else:
            is_best = value < self.best if is_lower_better else value > self.best
        self.evaluated = self.step
        if is_lower_better or not math.isnan(value):
            self.without_gain = 0 if is_best else self.without_gain + 1
        if is_best:
            self.best, self.best_step = value, self.step
        return is_best
