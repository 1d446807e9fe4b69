"""Learning-rate schedules: pure functions of the step, so that resuming needs nothing but the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right

from detkit.config import SCHEDULES


class Schedule(ABC):
    """The learning rate over a run, as a factor on each parameter group's own rate."""

    @abstractmethod
    def factor(self, step: int, num_steps: int) -> float:
        """The factor for update ``step`` (0, 1, ..., ``num_steps`` - 1)."""


class Warmup:
    """A linear rise from ``factor`` at update 0 to 1 at update ``steps`` (Goyal et al. 2017, section 2.2)."""

    def __init__(self, steps: int, factor: float) -> None:
        if steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, not {steps}")
        if not 0 <= factor <= 1:
            raise ValueError(f"warmup_factor must be in [0, 1], not {factor}")
        self.steps = steps
        self._factor = factor

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return 1.0
        return self._factor + (1 - self._factor) * step / self.steps


@SCHEDULES
class Constant(Schedule):
    """The full rate, after a linear warm-up."""

    def __init__(self, *, warmup_steps: int = 0, warmup_factor: float = 0.001) -> None:
        self._warmup = Warmup(warmup_steps, warmup_factor)

    def factor(self, step: int, num_steps: int) -> float:
        return self._warmup(step)


@SCHEDULES
class MultiStep(Schedule):
    """The rate falls to ``gamma`` times itself at each milestone, after a linear warm-up.

    Milestones below 1 are fractions of the run, so that a longer run keeps its shape; whole numbers from 1 on are
    steps. The default is the detectors' 1x schedule: 60,000 and 80,000 of 90,000 steps.
    """

    def __init__(
        self,
        *,
        milestones: tuple[float, ...] = (0.6667, 0.8889),
        gamma: float = 0.1,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
    ) -> None:
        fractions = all(0 <= m < 1 for m in milestones)
        whole = all(m >= 1 and float(m).is_integer() for m in milestones)
        if not (fractions or whole):
            raise ValueError(
                f"milestones must be fractions of the run in [0, 1) or whole steps from 1 on, not {list(milestones)}"
            )
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f"milestones must rise, not {list(milestones)}")
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be above 0 and at most 1, not {gamma}")
        self._milestones = milestones
        self._fractions = fractions
        self._gamma = gamma
        self._warmup = Warmup(warmup_steps, warmup_factor)

    def factor(self, step: int, num_steps: int) -> float:
        steps = [round(m * num_steps) for m in self._milestones] if self._fractions else self._milestones
        return self._gamma ** bisect_right(steps, step) * self._warmup(step)


@SCHEDULES
class Cosine(Schedule):
    """Half a cosine from the full rate, reached after a linear warm-up, to ``final_factor`` at the end of the run.

    Loshchilov and Hutter 2017, equation 5, without restarts.

    Args:
        final_factor: the rate at the end, as a share of the full one.
        warmup_steps, warmup_factor: of the linear rise.
        whole_run: the cosine begins at step 0, and the warm-up is a factor on its first steps;
            else it begins where the warm-up ends.
    """

    def __init__(
        self,
        *,
        final_factor: float = 0.0,
        warmup_steps: int = 0,
        warmup_factor: float = 0.001,
        whole_run: bool = False,
    ) -> None:
        if not 0 <= final_factor <= 1:
            raise ValueError(f"final_factor must be in [0, 1], not {final_factor}")
        self._final = final_factor
        self._warmup = Warmup(warmup_steps, warmup_factor)
        self._start = 0 if whole_run else warmup_steps

    def factor(self, step: int, num_steps: int) -> float:
        if step < self._start:
            return self._warmup(step)
        progress = (step - self._start) / max(num_steps - self._start, 1)
        cosine = self._final + (1 - self._final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self._warmup(step) * cosine
