"""Loaders: the same batches whatever the workers, and failures that name the culprit."""

import dataclasses
import itertools
import logging
import multiprocessing
import random
import re

import numpy as np
import pytest
import torch

from detkit.data import CocoDataset, HorizontalFlip, ResizeFit, Transform
from detkit.data.loader import MAX_REPLACEMENTS
from detkit.utils.seed import derive_key
from tests.data.builders import annotation, image, write_coco
from tests.data.loaders import UPRIGHT, Broken, assert_same, damage, evaluate, ids, take, train

pytestmark = pytest.mark.usefixtures("no_orphans")


def test_a_batch_is_uint8_padded_with_zeros_to_a_common_size(data):
    batch = next(evaluate(data, batch_size=12).__iter__())
    pixels = batch.images.pixels
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (12, 3, 64, 64))
    assert pixels.is_contiguous()
    for i, (meta, target) in enumerate(zip(batch.images.meta, batch.targets, strict=True)):
        h, w = meta.size
        assert meta.size == meta.original_size == data.truths[i].size
        assert meta.file == data.truths[i].file
        np.testing.assert_array_equal(pixels[i, :, :h, :w].permute(1, 2, 0), data.read(i))
        assert not pixels[i, :, h:].any()
        assert not pixels[i, :, :, w:].any()
        assert (target.boxes.dtype, target.labels.dtype, target.ignore.dtype) == (
            torch.float32,
            torch.int64,
            torch.bool,
        )
        assert len(target) == len(data.truths[i])
        assert target.ignore.tolist() == data.truths[i].crowd.tolist()


def test_size_divisor_and_square(data):
    batch = take(train(data, [ResizeFit(size=50)], size_divisor=8), 1)[0]
    assert batch.images.padded_size == (56, 56)
    lying = evaluate(data, [ResizeFit(size=50)], batch_size=1, size_divisor=1)
    assert {b.images.padded_size for b in lying} == {(50, 36), (36, 50)}
    square = evaluate(data, [ResizeFit(size=50)], batch_size=1, size_divisor=1, square=True)
    assert {b.images.padded_size for b in square} == {(50, 50)}
    with pytest.raises(ValueError, match="size_divisor must be positive, not 0"):
        train(data, size_divisor=0)


def test_a_batch_that_is_mostly_padding_is_told_once_with_two_files(tmp_path, caplog):
    sizes = {1: (40, 56), 2: (2, 900), 3: (900, 2), 4: (64, 64), 5: (2, 800), 6: (800, 2), 7: (40, 40), 8: (60, 40)}
    data = CocoDataset(root=str(write_coco(tmp_path, [image(i, *size) for i, size in sizes.items()], [])))
    loader = evaluate(data)
    assert len([*loader, *loader]) == 4
    (told,) = caplog.messages
    folder = tmp_path / "images"
    assert told.startswith(
        f"{folder}/3.png (2 x 900) and {folder}/2.png (900 x 2) are padded to 928 x 928 px (w x h) in one batch: "
    )
    caplog.clear()
    take(train(data, [ResizeFit(size=64)], batch_size=8), 2)  # 64 x 1 px at least: nothing that needs words
    list(evaluate(data, batch_size=1))
    list(evaluate(data, square=True))  # was asked for
    assert not caplog.messages


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("start", [0, 5])
def test_workers_and_start_change_nothing(data, num_workers, start):
    alone = take(train(data, group_by_aspect=True), start + 8)[start:]
    assert_same(take(train(data, group_by_aspect=True, num_workers=num_workers), 8, start), alone)


def test_the_seed_changes_order_and_augmentation(data):
    first, second = take(train(data, seed=1), 6), take(train(data, seed=2), 6)
    assert ids(first) != ids(second)
    assert_same(first, take(train(data, seed=1), 6))


def test_every_image_draws_from_its_key(data):
    batches = take(train(data, seed=9), 6)  # two epochs
    seen = {}
    for number, meta in enumerate(m for b in batches for m in b.images.meta):
        assert meta.key == derive_key(9, number // 12, meta.image_id - 1)
        seen.setdefault(meta.image_id, []).append(meta.affine)
    assert len(seen) == 12
    assert any(a != b for a, b in seen.values())


def test_processes_share_the_global_batch(data):
    alone = take(train(data, batch_size=6), 4)
    for world_size in (2, 3):
        loaders = [train(data, batch_size=6, rank=r, world_size=world_size) for r in range(world_size)]
        assert {loader.batch_size for loader in loaders} == {6 // world_size}
        parts = [take(loader, 4) for loader in loaders]
        for whole, *slices in zip(alone, *parts, strict=True):
            assert [m for s in slices for m in s.images.meta] == list(whole.images.meta)
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the 4 processes"):
        train(data, batch_size=6, world_size=4)


def test_epochs(data):
    loader = train(data, batch_size=5)
    assert loader.batches_per_epoch == 3
    assert sorted(ids(take(loader, 12))) == sorted(list(range(1, 13)) * 5)


def test_a_batch_may_be_larger_than_the_data_set(data):
    assert len(take(train(data, batch_size=30), 1)[0]) == 30


def test_the_global_random_state_is_neither_read_nor_changed(data):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = take(train(data, num_workers=1), 4)
    list(evaluate(data, num_workers=1))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == state[2]
    torch.manual_seed(123)
    assert_same(take(train(data, num_workers=1), 4), first)


def test_images_without_a_box_to_find_can_be_left_out(tmp_path):
    annotations = [
        annotation(1, 2, [1, 1, 9, 9]),
        annotation(2, 3, [1, 1, 9, 9], iscrowd=1),
        annotation(3, 4, [1, 1, 0, 9]),
    ]
    data = CocoDataset(root=str(write_coco(tmp_path, [image(i) for i in range(1, 5)], annotations)))
    assert sorted(ids(take(train(data), 1))) == [1, 2, 3, 4]
    chosen = train(data, keep_empty=False)
    assert chosen.batches_per_epoch == 1
    (batch,) = take(chosen, 1)
    assert ids([batch]) == [2] * 4
    assert {meta.key for meta in batch.images.meta} == {derive_key(0, epoch, 1) for epoch in range(4)}
    only_empty = CocoDataset(root=str(write_coco(tmp_path / "b", [image(1)], [])))
    with pytest.raises(ValueError, match=r"train.json: no image has a box to find; keep_empty=true would keep them$"):
        train(only_empty, keep_empty=False)


def test_grouping_by_aspect_pads_less(data):
    def padded(**options):
        return sum(b.images.pixels.numel() for b in take(train(data, (), size_divisor=1, **options), 30))

    assert padded(group_by_aspect=True) < 0.85 * padded()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_has_every_image_once_in_order_and_can_be_repeated(data, num_workers):
    loader = evaluate(data, [ResizeFit(size=60)], batch_size=5, num_workers=num_workers)
    first, second = list(loader), list(loader)
    assert ids(first) == list(range(1, 13))
    assert [len(b) for b in first] == [5, 5, 2]
    assert len(loader) == 3
    assert_same(first, second)
    next(iter(loader))  # given up after one batch
    assert_same(list(loader), first)


def test_evaluation_keeps_its_workers(data):
    loader = evaluate(data, num_workers=2)
    list(loader)
    before = {p.pid for p in multiprocessing.active_children()}
    list(loader)
    assert {p.pid for p in multiprocessing.active_children()} == before
    assert len(before) == 2


@pytest.mark.parametrize("world_size", [1, 3, 20])
def test_processes_evaluate_every_image_once(data, world_size):
    shards = [list(evaluate(data, rank=r, world_size=world_size, num_workers=0)) for r in range(world_size)]
    assert sorted(ids(list(itertools.chain(*shards)))) == list(range(1, 13))


def test_evaluation_can_map_back(data):
    for batch in evaluate(data, [ResizeFit(size=100), HorizontalFlip(p=1)]):
        for meta, target in zip(batch.images.meta, batch.targets, strict=True):
            truth = data.truths[meta.image_id - 1]
            corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
            h, w = truth.size
            np.testing.assert_allclose(meta.affine.undo(target.boxes), corners.clip(0, [w, h, w, h]), atol=1e-3)


class NoWayBack(Transform):
    """Loses the affine."""

    def __call__(self, sample, key):
        return dataclasses.replace(sample, affine=None)


def test_evaluation_needs_transforms_with_an_inverse(data):
    message = f"{data.truths[0].file}: one of ResizeFit, NoWayBack has no inverse: evaluation could not map boxes back"
    with pytest.raises(ValueError, match=re.escape(message)):
        list(evaluate(data, [ResizeFit(size=50), NoWayBack()]))
    assert take(train(data, [NoWayBack()]), 1)[0].images.meta[0].affine is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_an_error_that_names_it(data, num_workers):
    (file,) = damage(data, 3)
    with pytest.raises(ValueError, match=rf"^{re.escape(file)}: cut off or damaged"):
        take(train(data, num_workers=num_workers), 3)
    with pytest.raises(ValueError, match=rf"^{re.escape(file)}: cut off or damaged"):
        list(evaluate(data, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_replaced_by_the_next_one_and_told_once(data, num_workers, caplog):
    sound = take(train(data), 6)
    files = damage(data, 3, 4, 11)
    loader = train(data, on_bad_image="replace", num_workers=num_workers)
    with caplog.at_level(logging.WARNING, logger="detkit"):
        batches = take(loader, 6)
    substitutes = {4: 6, 5: 6, 12: 1}
    assert ids(batches) == [substitutes.get(i, i) for i in ids(sound)]
    for old, new in zip(sound, batches, strict=True):  # all others are as they were, and each keeps its key
        assert [m.key for m in old.images.meta] == [m.key for m in new.images.meta]
    assert set(loader.replaced) == set(files)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    for file in files:
        assert sum(m.startswith(f"replaced by the next image: {file}: cut off or damaged") for m in messages) == 1


def test_an_image_of_another_size_than_its_annotations_can_be_replaced_too(tmp_path):
    data = CocoDataset(root=str(write_coco(tmp_path, [image(1), image(2)], [])))
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "2.png").read_bytes())
    write_coco(tmp_path / "b", [image(2, 20, 20)], [])
    (tmp_path / "images" / "2.png").write_bytes((tmp_path / "b" / "images" / "2.png").read_bytes())
    with pytest.raises(ValueError, match=r"2.png: the image is 20 x 20 px \(w x h\), but its annotations say 64 x 48"):
        take(train(data, ()), 2)
    assert set(ids(take(train(data, (), on_bad_image="replace"), 2))) == {1}


def test_when_nothing_can_be_read_it_ends(data):
    files = damage(data, *range(12))
    with pytest.raises(ValueError, match=r"^12 images in a row cannot be read; the first: ") as caught:
        take(train(data, on_bad_image="replace"), 1)
    assert any(file in str(caught.value) for file in files)
    assert MAX_REPLACEMENTS >= 12


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "the transforms left a box that is not finite"),
        ("flat", r"the transforms left a box without area: \[1.0, 1.0, 1.0, 5.0\]"),
        ("label", r"labels from 2 to 2 are not in \[0, 2\)"),
        ("float", "the transforms left pixels of float32, not uint8 in 0..255: the detector normalises"),
        ("value", "too dark"),
    ],
)
def test_value_checks_name_the_file(data, num_workers, how, message):
    with pytest.raises(ValueError, match=UPRIGHT) as caught:
        take(train(data, [Broken(how)], num_workers=num_workers), 3)
    assert re.fullmatch(rf"\S*/{UPRIGHT}: {message}", str(caught.value))
    # A worker's traceback does not travel with its error, so it is sent as a note.
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert ("in __call__" in notes) == (how == "value" and num_workers == 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_other_exception_keeps_its_type_and_names_the_file(data, num_workers):
    with pytest.raises(KeyError) as caught:
        take(train(data, [Broken("raise")], num_workers=num_workers), 3)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert re.search(rf"while transforming \S*/{UPRIGHT}", told)
    assert "no such thing" in told


@pytest.mark.parametrize("option", ["num_workers", "timeout"])
def test_numbers_out_of_range(data, option):
    with pytest.raises(ValueError, match="must not be negative"):
        train(data, **{option: -1})


def test_a_slip_in_the_number_of_workers_starts_none(data):
    with pytest.raises(ValueError, match=r"num_workers must be \d+ or less here, not 100000"):
        train(data, num_workers=100_000)


def test_evaluation_numbers_out_of_range(data):
    with pytest.raises(ValueError, match=r"batch_size 0 must be positive and rank 0 in \[0, 1\)"):
        evaluate(data, batch_size=0)
    with pytest.raises(ValueError, match=r"rank 3 in \[0, 3\)"):
        evaluate(data, rank=3, world_size=3)
