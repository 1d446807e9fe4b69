"""The order of images: a pure function of seed and batch number, whatever the processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.samplers import GROUPING_WINDOW, TrainSampler, evaluation_batches

sizes = st.integers(1, 40)
batch_sizes = st.integers(1, 12)


def first(sampler: TrainSampler, number: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(sampler, number))


@settings(deadline=None, max_examples=50)
@given(n=sizes, batch_size=batch_sizes, seed=st.integers(0, 2**62), num_epochs=st.integers(1, 4))
def test_each_epoch_has_every_image_once_in_an_order_of_its_own(n, batch_size, seed, num_epochs):
    sampler = TrainSampler(num_images=n, batch_size=batch_size, seed=seed)
    number = -(-n * num_epochs // batch_size)
    line = [where for batch in first(sampler, number) for where in batch]
    assert all(len(batch) == batch_size for batch in first(sampler, number))
    for epoch in range(num_epochs):
        assert sorted(index for e, index in line[epoch * n : (epoch + 1) * n] if e == epoch) == list(range(n))
    assert [e for e, _ in line] == sorted(e for e, _ in line)


def test_epochs_and_seeds_differ_and_repeat():
    def line(seed):
        batches = first(TrainSampler(num_images=50, batch_size=10, seed=seed), 10)
        return [index for batch in batches for _, index in batch]

    assert line(0) == line(0)
    assert line(0) != line(1)
    assert line(0)[:50] != line(0)[50:]
    assert line(0)[:50] != sorted(line(0)[:50])


@settings(deadline=None, max_examples=50)
@given(n=sizes, batch_size=batch_sizes, start=st.integers(0, 200), grouped=st.booleans())
def test_it_can_begin_anywhere(n, batch_size, start, grouped):
    options = {"num_images": n, "batch_size": batch_size, "is_upright": np.arange(n) % 3 == 0 if grouped else None}
    whole = first(TrainSampler(**options), start + 3)
    assert first(TrainSampler(**options, start=start), 3) == whole[start:]


@settings(deadline=None, max_examples=50)
@given(n=sizes, share=st.integers(1, 4), world_size=st.integers(1, 5), grouped=st.booleans())
def test_the_slices_of_all_processes_are_the_batch_of_one(n, share, world_size, grouped):
    options = {
        "num_images": n,
        "batch_size": share * world_size,
        "seed": 3,
        "is_upright": np.arange(n) % 2 == 0 if grouped else None,
    }
    alone = first(TrainSampler(**options), 5)
    processes = [first(TrainSampler(**options, rank=r, world_size=world_size), 5) for r in range(world_size)]
    assert [list(itertools.chain(*slices)) for slices in zip(*processes, strict=True)] == alone
    assert all(len(batch) == share for process in processes for batch in process)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 300), batch_size=st.integers(1, 6), share=st.floats(0, 1))
def test_grouping_only_changes_the_order_within_a_window(n, batch_size, share):
    upright = np.random.default_rng(0).random(n) < share
    plain = first(TrainSampler(num_images=n, batch_size=batch_size), GROUPING_WINDOW)
    grouped = first(TrainSampler(num_images=n, batch_size=batch_size, is_upright=upright), GROUPING_WINDOW)
    assert sorted(itertools.chain(*plain)) == sorted(itertools.chain(*grouped))
    mixed = sum(len({bool(upright[index]) for _, index in batch}) > 1 for batch in grouped)
    assert mixed <= 1


def test_an_image_that_comes_again_is_as_upright_as_before():
    """Image 0 lies, 1 stands, and an epoch has each four times: one batch of a window at most has both."""
    sampler = TrainSampler(num_images=2, batch_size=4, is_upright=np.array([False, True]), repeats=np.full(2, 4.0))
    assert sum(len({index % 2 for _, index in batch}) > 1 for batch in first(sampler, GROUPING_WINDOW)) <= 1


def test_grouped_batches_come_in_an_order_of_each_window():
    upright = np.arange(4 * GROUPING_WINDOW) % 2 == 0  # an epoch is a window, so each has as many upright batches

    def kinds(start: int) -> list[bool]:
        sampler = TrainSampler(num_images=len(upright), batch_size=4, is_upright=upright, start=start)
        return [bool(upright[batch[0][1]]) for batch in first(sampler, GROUPING_WINDOW)]

    assert sum(kinds(0)) == sum(kinds(GROUPING_WINDOW)) == GROUPING_WINDOW / 2
    assert sum(a != b for a, b in itertools.pairwise(kinds(0))) > 10
    assert kinds(0) != kinds(GROUPING_WINDOW)


@settings(deadline=None, max_examples=50)
@given(n=st.integers(0, 60), size=st.integers(1, 9), world_size=st.integers(1, 8))
def test_evaluation_deals_out_the_batches_of_one_process(n, size, world_size):
    alone = [list(batch) for batch in evaluation_batches(n, size, 0, 1)]
    assert list(itertools.chain(*alone)) == list(range(n))
    assert [len(batch) for batch in alone[:-1]] == [size] * (len(alone) - 1)
    shares = [[list(batch) for batch in evaluation_batches(n, size, rank, world_size)] for rank in range(world_size)]
    assert sorted(itertools.chain(*shares)) == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0, "batch_size": 1}, "^there are no images to draw batches from$"),
        ({"num_images": 5, "batch_size": 0}, "^batch_size 0 must be positive and start 0 not negative$"),
        ({"num_images": 5, "batch_size": 2, "start": -1}, "start -1 not negative$"),
        (
            {"num_images": 5, "batch_size": 3, "world_size": 2},
            "^batch_size 3 must be a multiple of the 2 processes, and rank 0 one of them$",
        ),
        ({"num_images": 5, "batch_size": 2, "world_size": 2, "rank": 2}, "rank 2 one of them$"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSampler(**options)
