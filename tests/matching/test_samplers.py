"""Hard example mining picks what a sort picks."""

import pytest
import torch

from detkit.config import build
from detkit.matching import IGNORED, NEGATIVE, Assignment, BalancedSampler, HardExamples

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
    assert chosen(HardExamples(num=1), [IGNORED, NEGATIVE], [5.0, 0.0]) == [[], [1]], "a loss of 0 is one as well"


def test_nothing_is_drawn_by_lot():
    before = GENERATOR.get_state()
    chosen(HardExamples(num=1), [0, NEGATIVE], [1.0, 2.0])
    assert torch.equal(GENERATOR.get_state(), before)


def test_none_is_no_number_of_references():
    with pytest.raises(ValueError, match="num"):
        build({"_target_": "HardExamples", "num": 0})


def assignments(seed, *sizes):
    g = torch.Generator().manual_seed(seed)
    return [Assignment(torch.randint(-2, 2, (n,), generator=g)) for n in sizes]


def image_by_image(assignment, generator, num, share):
    """A balanced sample in plain steps: list, shuffle, cut."""
    found = []
    for mask, most in ((assignment.positive, int(num * share)), (assignment.negative, num)):
        index = mask.nonzero().squeeze(1)
        most = most - len(found[0]) if found else most
        found.append(index if len(index) <= most else index[torch.randperm(len(index), generator=generator)[:most]])
    return found


@pytest.mark.parametrize(("num", "share"), [(40, 0.5), (40, 0.1), (1000, 0.5), (1, 1.0)])
def test_a_batch_is_drawn_as_its_images_are(num, share):
    """Images of any number of references, of none as well, each by its own generator."""
    given = assignments(0, 300, 0, 17, 120)
    drawn = BalancedSampler(num=num, positive_share=share).of_batch(
        given, [torch.Generator().manual_seed(i) for i in range(4)]
    )
    for i, (assignment, found) in enumerate(zip(given, drawn, strict=True)):
        wanted = image_by_image(assignment, torch.Generator().manual_seed(i), num, share)
        assert [index.tolist() for index in found] == [index.tolist() for index in wanted]


def test_the_hardest_of_a_batch_are_those_of_its_images():
    given = assignments(0, 300, 0, 17, 120)
    losses = [torch.rand(len(a.matched), generator=torch.Generator().manual_seed(i)) for i, a in enumerate(given)]
    found = HardExamples(num=40).of_batch(given, [GENERATOR] * 4, losses)
    for assignment, own, (positive, negative) in zip(given, losses, found, strict=True):
        alone = chosen(HardExamples(num=40), assignment.matched.tolist(), own.tolist())
        assert [positive.tolist(), negative.tolist()] == alone
