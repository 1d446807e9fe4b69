"""Learning-rate factors, worked out by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from detkit.engine import Constant, Cosine, MultiStep, Schedule


def curve(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule.factor(step, num_steps) for step in range(num_steps)]


def test_constant() -> None:
    assert curve(Constant(), 3) == [1, 1, 1]
    assert curve(Constant(warmup_steps=4, warmup_factor=0.2), 6) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


@pytest.mark.parametrize("milestones", [(0.5, 0.75), (6, 9), (6.0, 9.0)])
def test_multi_step(milestones: tuple[float, ...]) -> None:
    schedule = MultiStep(milestones=milestones, gamma=0.1, warmup_steps=2, warmup_factor=0.5)
    assert curve(schedule, 12) == pytest.approx([0.5, 0.75, *[1.0] * 4, *[0.1] * 3, *[0.01] * 3])


def test_fractions_follow_the_length_and_steps_do_not() -> None:
    assert curve(MultiStep(milestones=(0.5,)), 4) == pytest.approx([1, 1, 0.1, 0.1])
    assert curve(MultiStep(milestones=(3,)), 4) == pytest.approx([1, 1, 1, 0.1])
    assert curve(MultiStep(milestones=(3,)), 2) == [1, 1]
    assert curve(MultiStep(milestones=()), 2) == [1, 1]


def test_the_default_is_the_1x_schedule() -> None:
    schedule = MultiStep(warmup_steps=1000)
    changes = [s for s in range(1001, 90_000) if schedule.factor(s, 90_000) != schedule.factor(s - 1, 90_000)]
    assert changes == [60_003, 80_001]


def test_cosine() -> None:
    assert curve(Cosine(), 4) == pytest.approx([1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2])
    warm = curve(Cosine(final_factor=0.2, warmup_steps=2, warmup_factor=0.5), 6)
    assert warm == pytest.approx([0.5, 0.75, 1, 0.2 + 0.8 * (1 + 2**-0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 2**-0.5) / 2])
    assert Cosine(final_factor=0.2).factor(6, 6) == pytest.approx(0.2)


def test_cosine_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert Cosine(final_factor=0.1).factor(step, 50) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_cosine_over_the_whole_run_has_the_warm_up_as_a_factor() -> None:
    plain, whole = Cosine(), Cosine(warmup_steps=10, warmup_factor=0.1, whole_run=True)
    assert [whole.factor(s, 50) for s in range(10, 50)] == [plain.factor(s, 50) for s in range(10, 50)]
    assert whole.factor(0, 50) == pytest.approx(0.1)
    assert whole.factor(5, 50) == pytest.approx(0.55 * plain.factor(5, 50))
    assert Cosine(warmup_steps=10).factor(10, 50) == 1.0


@pytest.mark.parametrize("schedule", [Constant(warmup_steps=9), MultiStep(warmup_steps=9), Cosine(warmup_steps=9)])
def test_a_run_shorter_than_its_warm_up(schedule: Schedule) -> None:
    assert schedule.factor(0, 2) == pytest.approx(0.001)
    assert schedule.factor(1, 2) < 0.2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MultiStep(milestones=(0.5, 100)), "must be fractions of the run in [0, 1) or whole steps from 1 on"),
        (lambda: MultiStep(milestones=(1.5,)), "milestones must be fractions of the run in [0, 1) or whole steps"),
        (lambda: MultiStep(milestones=(-0.5,)), "milestones must be fractions of the run in [0, 1) or whole steps"),
        (lambda: MultiStep(milestones=(0.8, 0.6)), "milestones must rise, not [0.8, 0.6]"),
        (lambda: MultiStep(gamma=0.0), "gamma must be above 0 and at most 1, not 0.0"),
        (lambda: Cosine(final_factor=-0.1), "final_factor must be in [0, 1], not -0.1"),
        (lambda: Constant(warmup_steps=-1), "warmup_steps must be 0 or more, not -1"),
        (lambda: Constant(warmup_factor=2.0), "warmup_factor must be in [0, 1], not 2.0"),
    ],
)
def test_options_that_make_no_sense(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()
