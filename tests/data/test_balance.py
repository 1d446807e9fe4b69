"""Images of rare classes come more often: how often by hand, on average, and the same from any batch on."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.app.audit.tool import _loader
from detkit.data import ClassBalanced, RepeatFactor, TrainSampler
from detkit.data.balance import classes_of_images
from detkit.data.datasets.table import Strings, TruthTable
from detkit.structures import GroundTruth
from tests.data.loaders import ids, take, train


def truth(image_id, *labels, crowd=()):
    n = len(labels)
    return GroundTruth(
        image_id, f"{image_id}.jpg", (10, 10), np.tile([1.0, 1, 4, 4], (n, 1)).reshape(n, 4), np.array(labels, int),
        np.full(n, 16.0), np.array([i in crowd for i in range(n)], bool), np.arange(n),
    )  # fmt: skip


#: class 0 in all of 16 images with objects, 1 in four, 2 in one, 3 only as a crowd; image 16 is empty
TRUTHS = [
    truth(0, 0, 0, 1), truth(1, 0, 1, 2), truth(2, 0, 1, 3, crowd=(2,)), truth(3, 1, 0),
    *(truth(i, 0) for i in range(4, 16)), truth(16),
]  # fmt: skip


def test_which_classes_an_image_has():
    image, label = classes_of_images(TRUTHS)
    assert list(zip(image, label, strict=True))[:7] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert len(image) == 21


def table(truths):
    names = ("boxes", "labels", "area", "crowd", "annotation_ids")
    return TruthTable(
        np.array([t.image_id for t in truths]), Strings.of(t.file for t in truths), np.array([t.size for t in truths]),
        np.cumsum([0, *map(len, truths)]), *(np.concatenate([getattr(t, n) for t in truths]) for n in names),
    )  # fmt: skip


def test_a_table_has_the_classes_of_its_records():
    for one, other in zip(classes_of_images(table(TRUTHS)), classes_of_images(TRUTHS), strict=True):
        assert one.tolist() == other.tolist()


def test_an_object_that_cannot_be_trained_on_makes_no_image_frequent():
    """Half of an epoch was the image whose only object lies beside it."""
    beside = truth(9, 1)
    beside.boxes[:] = [50, 1, 4, 4]
    truths = [*(truth(i, 0) for i in range(9)), beside]
    for records in (truths, table(truths)):
        np.testing.assert_allclose(ClassBalanced()(records, 2), [10 / 9] * 9 + [0])
        np.testing.assert_allclose(RepeatFactor(threshold=1.0)(records, 2), [np.sqrt(10 / 9)] * 9 + [1])
    assert classes_of_images(truths)[1].tolist() == [0] * 9 + [1]


def test_repeat_factors_by_hand():
    """f = 16/17, 4/17 and 1/17; r = max(1, sqrt(t / f)), and an image has its greatest."""
    repeats = RepeatFactor(threshold=0.5)(TRUTHS, 4)
    expected = np.ones(17)
    expected[[0, 2, 3]] = np.sqrt(0.5 * 17 / 4)
    expected[1] = np.sqrt(0.5 * 17)
    np.testing.assert_allclose(repeats, expected)
    np.testing.assert_array_equal(RepeatFactor(threshold=0.001)(TRUTHS, 4), np.ones(17))


def test_balanced_classes_are_met_equally_often():
    repeats = ClassBalanced()(TRUTHS, 4)
    assert repeats.sum() == pytest.approx(17)
    assert repeats[16] == 0
    drawn = {1: [0, 1, 2, 3], 2: [1]}
    for k, images in drawn.items():
        by_class = 17 / 3 / len(images)
        assert (repeats[images] >= by_class - 1e-9).all(), f"class {k} alone asks for so many"
    np.testing.assert_allclose(repeats[4:16], 17 / 3 / 16)
    np.testing.assert_allclose(repeats[1], 17 / 3 * (1 / 16 + 1 / 4 + 1))
    assert ClassBalanced(most=2.0)(TRUTHS, 4).max() == 2


@settings(deadline=None, max_examples=60)
@given(
    repeats=st.lists(st.floats(0, 5), min_size=1, max_size=30).filter(lambda r: sum(r) > 0.1),
    batch_size=st.integers(1, 7),
    start=st.integers(0, 60),
    seed=st.integers(0, 10**6),
)
def test_an_epoch_has_the_whole_part_or_once_more_and_any_batch_is_found_alone(repeats, batch_size, start, seed):
    repeats = np.array(repeats)
    options = {"num_images": len(repeats), "batch_size": batch_size, "seed": seed, "repeats": repeats}
    sampler = TrainSampler(**options)
    scaled = repeats * (sampler.length / repeats.sum())
    for epoch in (0, 1, 5):
        order = sampler._order(epoch)
        assert len(order) == sampler.length == np.ceil(repeats.sum())
        counts = np.bincount(order % len(repeats), minlength=len(repeats))
        assert (counts >= np.floor(scaled - 1e-9)).all()
        assert (counts <= np.ceil(scaled + 1e-9)).all()
        assert len(np.unique(order)) == len(order), "each time has a number of its own"
    whole = list(itertools.islice(TrainSampler(**options), start + 3))
    assert list(itertools.islice(TrainSampler(**options, start=start), 3)) == whole[start:]


def test_how_often_an_image_comes_is_right_on_average_and_drawn_anew():
    repeats = np.array([0.25, 1.0, 1.5, 3.7, 0.05, 2.5])
    sampler = TrainSampler(num_images=6, batch_size=1, repeats=repeats)
    assert sampler.length == 9
    counts = np.array([np.bincount(sampler._order(e) % 6, minlength=6) for e in range(3000)])
    np.testing.assert_allclose(counts.mean(0), repeats, atol=0.03)
    assert len(np.unique(counts, axis=0)) > 5
    assert set(counts[:, 3]) == {3, 4}


def test_all_ones_are_the_epochs_of_old():
    plain, ones = (TrainSampler(num_images=9, batch_size=3, repeats=r) for r in (None, np.ones(9)))
    assert sorted(ones._order(4)) == sorted(plain._order(4)) == list(range(9))


def test_the_slices_of_all_processes_are_the_batch_of_one_with_repeats():
    options = {"num_images": 5, "batch_size": 4, "repeats": np.array([0.5, 1, 1, 2.25, 3]), "seed": 3}
    alone = list(itertools.islice(TrainSampler(**options), 9))
    shares = [list(itertools.islice(TrainSampler(**options, rank=r, world_size=2), 9)) for r in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == alone


def test_an_image_that_comes_twice_is_augmented_anew_each_time(data):
    class Often(RepeatFactor):
        def __call__(self, truths, num_classes):
            return np.where(np.arange(len(truths)) == 3, 4.0, 1.0)

    loader = train(data, sampling=Often(), batch_size=5)
    assert loader.batches_per_epoch == 3
    batches = take(loader, 3)
    assert sorted(ids(batches)) == sorted([*(t.image_id for t in data.truths), *[data.truths[3].image_id] * 3])
    keys = [meta.key for batch in batches for meta in batch.images.meta]
    assert len(set(keys)) == len(keys) == 15
    again = take(train(data, sampling=Often(), batch_size=5, num_workers=1), 2, start=1)
    for a, b in zip(again, batches[1:], strict=True):
        assert a.images.meta == b.images.meta
        assert torch.equal(a.images.pixels, b.images.pixels)


def test_an_audit_looks_at_each_image_once(data):
    sampling = {"_target_": "RepeatFactor", "threshold": 1.0}
    base = {"_target_": "TrainLoader", "_partial_": True, "batch_size": 1}
    assert train(data, batch_size=1, sampling=RepeatFactor(threshold=1.0)).batches_per_epoch > 12
    for extra in ({"sampling": sampling}, {"sampling": None}, {}):
        node = {"seed": 0, "data": {"loader": {"train": base | extra}}}
        assert _loader(node, "train", data, []).batches_per_epoch == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RepeatFactor(threshold=0), "threshold must lie above 0 and be at most 1, not 0"),
        (lambda: ClassBalanced(most=0.5), "most must be 1 or more, not 0.5"),
        (lambda: TrainSampler(num_images=2, batch_size=1, repeats=np.zeros(2)), "there are no images to draw"),
    ],
)
def test_what_no_sampling_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_image_of_a_rare_and_a_frequent_class_comes_as_the_rare_one():
    """Class 0 is in one image of eight, at a threshold of a half: sqrt(0.5 * 8) times; class 1 in all."""
    of = [truth(0, 0, 1), *(truth(i, 1) for i in range(1, 8))]
    np.testing.assert_allclose(RepeatFactor(threshold=0.5)(of, 2), [2, *[1] * 7])
