"""Plans: what is known of a batch before a pixel is read is what the batch then is, to the last bit."""

import itertools
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from detkit.config import TRANSFORMS, build
from detkit.data import (
    Albumentations,
    CocoDataset,
    EvalLoader,
    HorizontalFlip,
    MixUp,
    Mosaic,
    RandomWindow,
    Resize,
    ResizeFit,
    Sample,
    TrainLoader,
)
from detkit.data.transforms import Plan, PlannedTransform, Transform, apply, lay, unplanned
from detkit.data.transforms.base import MixingTransform
from detkit.data.transforms.plan import Limits, blank, render
from detkit.structures import Affine
from tests.data.builders import annotation, coco_set, image, write_coco
from tests.data.loaders import evaluate, take, train
from tests.data.test_configs import TRANSFORMS as PRESETS
from tests.data.test_configs import composed
from tests.data.test_real_data import folder
from tests.data.test_transforms import every_transform, run, sample


def assert_same_layout(planned, done) -> None:
    assert planned.size == done.size
    assert planned.affine == done.affine
    for name in ("boxes", "labels", "ignore"):
        one, other = getattr(planned, name), getattr(done, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_every_transform_lays_objects_where_it_moves_them(name):
    transform, before = every_transform()[name], sample(num_boxes=7)
    for key in range(12):
        done = run(transform, before, key)
        if isinstance(transform, MixingTransform):
            partners = [sample(30 + i, 40, 4, seed=i).layout for i in range(transform.num_partners)]
            assert_same_layout(transform.lay_mixed(before.layout, partners, key), done.layout)
        else:
            assert_same_layout(transform.lay(before.layout, key), done.layout)


def steps(preset: str, part: str) -> list[Transform]:
    nodes = composed(f"transform={preset}")["transform"][part]
    return [build(node) for node in nodes.values() if node is not None]


def assert_planned(loader: TrainLoader | EvalLoader, num_batches: int) -> int:
    """How many boxes there were."""
    done = loader.iterate() if isinstance(loader, TrainLoader) else loader
    num_boxes = 0
    for plan, batch in itertools.islice(zip(loader.lay(), done, strict=False), num_batches):
        assert plan.images.meta == batch.images.meta
        assert plan.images.pixels.shape == batch.images.pixels.shape
        for one, other in zip(plan.targets, batch.targets, strict=True):
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.ignore, other.ignore)
            num_boxes += len(one)
    return num_boxes


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loader_s_batches_are_those_it_plans(preset, data):
    loader = TrainLoader(dataset=data, transforms=steps(preset, "train"), batch_size=5, num_workers=0)
    assert assert_planned(loader, 4) > 20
    assert assert_planned(EvalLoader(dataset=data, transforms=steps(preset, "val"), num_workers=0), 4) > 5
    assert not unplanned(steps(preset, "train"))


@pytest.mark.parametrize("preset", ["mosaic_640", "centernet_320", "multiscale"])
def test_the_same_on_photographs(preset):
    data = CocoDataset(root=str(folder("coco_mini")))
    loader = TrainLoader(dataset=data, transforms=steps(preset, "train"), batch_size=8, num_workers=0, seed=2)
    assert assert_planned(loader, 3) > 50


def test_partners_draw_what_they_draw_in_the_batch(data):
    mix = [RandomWindow(height=40, width=50), HorizontalFlip(), Mosaic(size=64), MixUp(min_size=1.0), HorizontalFlip()]
    assert assert_planned(train(data, mix), 4) > 20


def test_a_later_epoch_has_plans_of_its_own(data):
    loader = train(data, [Mosaic(size=64, num_epochs=1), ResizeFit(size=(32, 64, 96), per_batch=True)], batch_size=6)
    for plan, batch in zip(itertools.islice(loader.lay(start=1), 4), take(loader, 4, start=1), strict=True):
        assert plan.images.meta == batch.images.meta


def test_no_file_is_read_and_no_memory_taken(tmp_path):
    root = coco_set(tmp_path)
    for file in (root / "images").iterdir():
        file.write_bytes(b"")  # whoever decodes one fails
    data = CocoDataset(root=str(root))
    for loader in (train(data, [Mosaic(size=2048)]), evaluate(data, [ResizeFit(size=2048)])):
        batch = next(loader.lay())
        assert batch.images.padded_size[1] == 2048
        num_bytes = batch.images.pixels.untyped_storage().nbytes()
        assert num_bytes == 1


class Slant(Transform):
    """A plug-in's step that knows nothing of plans: where its box goes, its pixels tell."""

    def __call__(self, sample: Sample, key: int) -> Sample:
        return Sample(sample.image[:, ::2], sample.boxes / 2, sample.labels, sample.ignore, None)


def test_steps_without_a_plan_are_run_on_black_images_and_named(data):
    crop = Albumentations(transforms=[A.RandomCrop(20, 20), A.GaussNoise(p=1)])
    some = [ResizeFit(size=50), crop, Slant(), HorizontalFlip(), Albumentations(transforms=[A.GaussNoise(p=1)])]
    assert unplanned(some) == ["Albumentations", "Slant"]
    assert assert_planned(train(data, some), 3) > 5
    before = sample(48, 64)
    assert_same_layout(lay(some, before.layout, 5), apply(some, before, 5).layout)


def test_mixing_without_others_is_refused_in_the_plan_too():
    with pytest.raises(ValueError, match="Mosaic mixes images: only a loader for training has others at hand"):
        lay([Mosaic()], sample().layout, 0)


def test_a_plan_whose_boxes_cannot_be_used_names_the_file(data):
    class Flat(Transform):
        def __call__(self, sample, key):
            boxes = sample.boxes.copy()
            boxes[:, 2] = boxes[:, 0]
            return Sample(sample.image, boxes, sample.labels, sample.ignore, sample.affine)

    with pytest.raises(ValueError, match=r"images/\d+\.png: the transforms left a box without area"):
        list(itertools.islice(train(data, [Flat()]).lay(), 3))


def test_the_affine_of_a_plan_is_what_it_does():
    plan = Plan((20, 10), (40, 60), (40, 30), (10, -6), mirrored=True)
    before = sample(20, 10, 3)
    assert plan.affine == plan.move(before.layout).affine == Affine(-3.0, 2.0, 24.0, 10.0)
    assert render(before.image, plan).shape == (40, 60, 3)
    assert plan.fills is plan.is_idle is False
    assert Plan.resized((5, 6), (5, 6)).is_idle
    assert not Plan((5, 6), (5, 6), (5, 6), limits=Limits(0.1, 2.0)).is_idle


def test_a_step_of_ones_own_is_a_plan_and_nothing_else(data):
    class Half(PlannedTransform):
        def plan(self, size, key):
            return Plan.resized(size, (size[0] // 2, size[1] // 2))

    loader = train(data, [Half()])
    assert assert_planned(loader, 3) > 3
    assert all(m.size in ((20, 28), (28, 20)) for b in take(loader, 2) for m in b.images.meta)


def test_images_without_an_object_to_find_are_left_out_as_before(tmp_path):
    rows = [annotation(1, 2, [0, 0, 9, 9], iscrowd=1), annotation(2, 3, [1, 1, 5, 5]), annotation(3, 4, [99, 9, 5, 5])]
    data = CocoDataset(root=str(write_coco(tmp_path, [image(i) for i in range(1, 6)], rows)))
    loader = train(data, [], batch_size=1, keep_empty=False)
    assert loader.num_images == 1
    assert next(loader.lay()).images.meta[0].image_id == 3
    data.truths = list(data.truths)  # a plug-in's data set has any sequence
    assert train(data, [], batch_size=1, keep_empty=False).num_images == 1
    assert Path(data.truths[2].file).name == "3.png"


def test_a_picture_made_smaller_one_way_is_averaged_that_way():
    """Every fourth row is white: a quarter of the height has a quarter of white in each row."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::4] = 255
    seen = Resize(height=16, width=64)(replace(sample(64, 64, 0), image=stripes), 0)
    np.testing.assert_allclose(seen.image, 64, atol=1)


def test_what_no_picture_covers_is_grey():
    """114, as in the published mosaics."""
    assert np.unique(blank(2, 3)).tolist() == [114]
