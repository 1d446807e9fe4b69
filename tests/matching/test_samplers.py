"""Hard example mining picks what a sort picks."""

import pytest
import torch

from detkit.config import build
from detkit.matching import IGNORED, NEGATIVE, Assignment, HardExamples

GENERATOR = torch.Generator()


def chosen(sampler, matched, losses):
    assignment = Assignment(torch.tensor(matched))
    return [i.tolist() for i in sampler(assignment, GENERATOR, torch.tensor(losses))]


def test_the_hardest_are_those_that_a_sort_puts_first():
    g = torch.Generator().manual_seed(0)
    losses = torch.rand(300, generator=g)
    matched = torch.randint(-2, 4, (300,), generator=g)
    positive, negative = HardExamples(num=128)(Assignment(matched), GENERATOR, losses)
    usable = [i for i in range(300) if matched[i] != IGNORED]
    hardest = sorted(usable, key=lambda i: -losses[i].item())[:128]
    assert sorted([*positive.tolist(), *negative.tolist()]) == sorted(hardest)
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == NEGATIVE).all()
    assert len(positive) > 10


def test_the_ignored_never_count_and_the_first_of_equals_wins():
    matched = [IGNORED, 0, NEGATIVE, NEGATIVE, 1, NEGATIVE]
    assert chosen(HardExamples(num=3), matched, [9.0, 0.5, 2.0, 2.0, 0.5, 2.0]) == [[], [2, 3, 5]]
    assert chosen(HardExamples(num=4), matched, [9.0, 0.5, 2.0, 2.0, 0.5, 2.0]) == [[1], [2, 3, 5]]
    assert chosen(HardExamples(num=9), matched, [9.0, 0.5, 2.0, 2.0, 0.5, 2.0]) == [[1, 4], [2, 3, 5]]
    assert chosen(HardExamples(num=9), [IGNORED], [1.0]) == [[], []]


def test_nothing_is_drawn_by_lot():
    before = GENERATOR.get_state()
    chosen(HardExamples(num=1), [0, NEGATIVE], [1.0, 2.0])
    assert torch.equal(GENERATOR.get_state(), before)


def test_none_is_no_number_of_references():
    with pytest.raises(ValueError, match="num"):
        build({"_target_": "HardExamples", "num": 0})
