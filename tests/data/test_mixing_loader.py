"""Mixing in the loader: the same batches anywhere, and the file at fault is the one that is named."""

import itertools
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from detkit.data import (
    CocoDataset,
    HorizontalFlip,
    MixUp,
    Mosaic,
    RandomWindow,
    ResizeFit,
    ResizeShortestEdge,
    Sample,
    TrainLoader,
    Transform,
)
from detkit.data.samplers import TrainSampler
from detkit.data.workers import WorkerError
from tests.data.builders import annotation, image, write_coco
from tests.data.loaders import UPRIGHT, Broken, assert_same, damage, evaluate, ids, take, train

MIX = (HorizontalFlip(), Mosaic(size=64), MixUp(), ResizeFit(size=(32, 64, 96), per_batch=True))


@pytest.mark.parametrize("start", [0, 5])
def test_workers_and_start_change_nothing(data, start):
    alone = take(train(data, MIX), start + 8)[start:]
    assert len({batch.images.padded_size for batch in alone}) > 1
    assert_same(take(train(data, MIX, num_workers=2), 8, start), alone)


def test_seeds_and_epochs_mix_differently(data):
    first, second = (take(train(data, MIX, seed=seed, batch_size=12), 2) for seed in (1, 2))
    boxes = [torch.cat([t.boxes for t in batch.targets]).shape for batch in (*first, *second)]
    assert len(set(boxes)) > 2


def test_processes_share_the_batch_and_its_size(data):
    alone = take(train(data, MIX, batch_size=6), 6)
    loaders = [train(data, MIX, batch_size=6, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(alone, *(take(loader, 6) for loader in loaders), strict=True):
        assert [m for part in parts for m in part.images.meta] == list(whole.images.meta)
        assert {part.images.padded_size for part in parts} == {whole.images.padded_size}


def test_a_size_for_each_batch_depends_on_its_number_alone(data):
    steps = (ResizeFit(size=tuple(range(32, 96)), per_batch=True),)
    sizes = [{max(m.size) for m in batch.images.meta} for batch in take(train(data, steps), 12)]
    assert all(len(each) == 1 for each in sizes)
    assert len(set.union(*sizes)) > 8
    assert [{max(m.size) for m in b.images.meta} for b in take(train(data, steps, batch_size=2), 12)] == sizes
    assert [{max(m.size) for m in b.images.meta} for b in take(train(data, steps, seed=1), 12)] != sizes


def test_the_name_stays_that_of_the_first_image(data):
    for plain, mixed in zip(take(train(data, ()), 4), take(train(data, MIX), 4), strict=True):
        assert ids([plain]) == ids([mixed])
        for a, b in zip(plain.images.meta, mixed.images.meta, strict=True):
            assert (a.file, a.original_size, a.key) == (b.file, b.original_size, b.key)
        assert [m.affine for m in mixed.images.meta] == [None] * len(mixed)


def test_the_image_of_the_meta_is_in_the_mosaic(data):
    """At a zoom that shows it whole and unchanged."""
    mosaic = Mosaic(size=224, scale=(0.25, 0.25), translate=0.0)  # the longer side stays 56 px, C is within 112 +- 28
    for batch in take(train(data, (mosaic,), size_divisor=1), 3):
        for i, meta in enumerate(batch.images.meta):
            h, w = meta.original_size
            pixels = batch.images.pixels[i].permute(1, 2, 0).numpy()
            own = data.read(meta.image_id - 1)
            found = any(
                np.array_equal(pixels[y - h : y, x - w : x], own) for y in range(84, 141) for x in range(84, 141)
            )
            assert found


def test_mixing_ends_with_its_epochs(data):
    steps = (Mosaic(size=64, num_epochs=2), MixUp(num_epochs=1))
    batches = take(train(data, steps), 12)  # 4 epochs of 3 batches
    mixed = [[m.affine is None for m in batch.images.meta] for batch in batches]
    assert mixed == [[True] * 4] * 6 + [[False] * 4] * 6
    assert_same(take(train(data, steps), 6, start=6), batches[6:])
    assert_same(batches[6:], take(train(data, (ResizeFit(size=64),)), 12)[6:])
    after_the_first = [len(t) for batch in batches[3:6] for t in batch.targets]
    plain = take(train(data, (Mosaic(size=64),)), 12)[3:6]
    assert after_the_first == [len(t) for batch in plain for t in batch.targets]


class Recorder(Transform):
    """Remembers the labels of the samples that pass."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, sample: Sample, key: int) -> Sample:
        self.seen.append(sample.labels.tolist())
        return sample


def test_every_image_passes_what_stands_before_and_is_decoded_once(data, monkeypatch):
    reads = []
    read = data.read
    monkeypatch.setattr(data, "read", lambda place: reads.append(place) or read(place))
    recorder, between = Recorder(), Recorder()
    take(train(data, (recorder, Mosaic(size=64), between, MixUp()), batch_size=1), 1)
    assert len(reads) == len(recorder.seen) == 5
    assert len(between.seen) == 1


def test_partners_are_of_the_images_in_use(tmp_path):
    marks = [annotation(1, 2, [1, 1, 30, 30]), annotation(2, 4, [1, 1, 30, 30], 7)]
    data = CocoDataset(root=str(write_coco(tmp_path, [image(i) for i in range(1, 6)], marks)))
    recorder = Recorder()
    take(train(data, (recorder, Mosaic(size=64)), keep_empty=False), 3)
    assert {tuple(labels) for labels in recorder.seen} == {(0,), (1,)}


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("marks", [0, 3])
def test_one_image_is_enough_with_boxes_crowds_or_nothing(tmp_path, marks, crowd):
    annotations = [annotation(i + 1, 1, [5 + i, 6, 20, 20], iscrowd=crowd) for i in range(marks)]
    data = CocoDataset(root=str(write_coco(tmp_path, [image(1)], annotations)))
    batches = take(train(data, MIX), 3)
    assert [len(batch) for batch in batches] == [4] * 3
    ignore = torch.cat([t.ignore for batch in batches for t in batch.targets])
    assert (len(ignore) > 12) == (marks > 0)
    assert ignore.all() if crowd else not ignore.any()


def seed_for(data: CocoDataset, culprits: set[int], steps: tuple[Transform, ...]) -> tuple[int, int]:
    """A seed whose first image is none of the ``culprits`` but has one for a partner, and that image."""
    for seed in range(100):
        ((_, first),) = next(iter(TrainSampler(num_images=12, batch_size=1, seed=seed)))
        if first in culprits:
            continue
        recorder = PlaceRecorder(data)
        take(TrainLoader(dataset=recorder, transforms=steps, batch_size=1, num_workers=0, seed=seed), 1)
        if culprits & set(recorder.places):
            return seed, first
    raise AssertionError("no seed serves")


class PlaceRecorder(CocoDataset):
    """The same data set; remembers which images were read."""

    def __init__(self, data: CocoDataset) -> None:
        self.data, self.places = data, []
        self.categories, self.truths, self.report = data.categories, data.truths, data.report

    def read(self, index: int) -> np.ndarray:
        self.places.append(index)
        return self.data.read(index)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_partner_is_an_error_that_names_its_file(data, num_workers):
    seed, _ = seed_for(data, {3}, (Mosaic(size=64),))
    (file,) = damage(data, 3)
    with pytest.raises(ValueError, match=rf"^{re.escape(file)}: cut off or damaged"):
        take(train(data, (Mosaic(size=64),), batch_size=1, seed=seed, num_workers=num_workers), 1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_partner_is_replaced_and_told(data, num_workers, caplog):
    seed, first = seed_for(data, {3}, (Mosaic(size=64),))
    (file,) = damage(data, 3)
    loader = train(data, (Mosaic(size=64),), batch_size=1, seed=seed, num_workers=num_workers, on_bad_image="replace")
    with caplog.at_level(logging.WARNING, logger="detkit"):
        (batch,) = take(loader, 1)
    assert ids([batch]) == [first + 1]
    assert set(loader.replaced) == {file}
    assert caplog.records[0].getMessage().startswith(f"replaced by the next image: {file}: cut off or damaged")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("how", "message"), [("value", "too dark"), ("nan", "the transforms left a box that is not finite")]
)
def test_a_step_that_fails_on_a_partner_names_its_file(data, num_workers, how, message):
    upright = {2, 5, 8, 11}
    seed, _ = seed_for(data, upright, (Mosaic(size=64),))
    loader = train(data, (Broken(how), Mosaic(size=64)), batch_size=1, seed=seed, num_workers=num_workers)
    with pytest.raises(ValueError, match=UPRIGHT) as caught:
        take(loader, 1)
    assert re.fullmatch(rf"\S*/{UPRIGHT}: {message}", str(caught.value))


def test_a_step_that_breaks_or_dies_on_a_partner_names_its_file(data):
    seed, _ = seed_for(data, {2, 5, 8, 11}, (Mosaic(size=64),))
    options = {"batch_size": 1, "seed": seed}
    with pytest.raises(KeyError) as caught:
        take(train(data, (Broken("raise"), Mosaic(size=64)), **options), 1)
    assert re.search(rf"while transforming \S*/{UPRIGHT}", caught.value.__notes__[0])
    with pytest.raises(WorkerError, match=rf"images being loaded: \S*/{UPRIGHT}$"):
        take(train(data, (Broken("die"), Mosaic(size=64)), num_workers=1, timeout=30, **options), 1)


class Tilt(Transform):
    """Fails on what a mixing step left."""

    def __call__(self, sample: Sample, key: int) -> Sample:
        if sample.affine is None:
            raise ValueError("not after a mosaic")
        return sample


def test_a_step_after_mixing_is_the_first_image_s_fault(data):
    (batch,) = take(train(data, (), batch_size=1), 1)
    with pytest.raises(ValueError, match=rf"^{re.escape(batch.images.meta[0].file)}: not after a mosaic$"):
        take(train(data, (Mosaic(size=64), Tilt()), batch_size=1), 1)


@pytest.mark.parametrize(
    "step", [Mosaic(size=64), MixUp(), RandomWindow(), ResizeFit(size=(32, 64)), ResizeShortestEdge(short=(32, 64))]
)
def test_validation_refuses_them_at_once(data, step):
    message = (
        f"{type(step).__name__} cannot stand in transform.val as it is: "
        "evaluation must see every image whole, by itself and at one size"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate(data, (ResizeShortestEdge(short=(32,)), step))


def test_boxes_lead_back_through_a_window(data):
    batches = list(itertools.islice(train(data, (RandomWindow(height=64, width=64),)).iterate(), 3))
    for meta, target in ((m, t) for b in batches for m, t in zip(b.images.meta, b.targets, strict=True)):
        truth = data.truths[meta.image_id - 1]
        corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
        back = meta.affine.undo(target.boxes).numpy()
        h, w = meta.original_size
        for box, label in zip(back, target.labels.tolist(), strict=True):
            inside = corners[truth.labels == label].clip(0, [w, h, w, h])
            assert ((box[:2] >= inside[:, :2] - 1e-3) & (box[2:] <= inside[:, 2:] + 1e-3)).all(axis=1).any()


def test_samples_are_not_changed_by_those_that_mix_them(data):
    truth = data.truths[3]
    sample = Sample.from_truth(data.read(3), truth)
    copy = replace(sample, image=sample.image.copy(), boxes=sample.boxes.copy())
    Mosaic(size=64).mix(sample, [sample] * 3, 0)
    MixUp(scale=(1.0, 1.0)).mix(sample, [sample], 0)
    np.testing.assert_array_equal(sample.image, copy.image)
    np.testing.assert_array_equal(sample.boxes, copy.boxes)
