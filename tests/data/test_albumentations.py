"""The adapter, and each known trap of the library behind it."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest

from detkit.config import ConfigError, validate
from detkit.data import Albumentations, Sample
from detkit.structures import Affine
from tests.data.test_transforms import sample

A = pytest.importorskip("albumentations")


def test_importing_the_data_package_does_not_import_the_library_and_never_asks_the_network():
    code = (
        "import sys, detkit.data; assert 'albumentations' not in sys.modules; "
        "import urllib.request as u; u.OpenerDirector.open = lambda *a, **k: sys.exit('asked the network'); "
        "from detkit.config import build; "
        "t = build({'_target_': 'Albumentations', 'transforms': [{'_target_': 'albumentations.HorizontalFlip'}]}); "
        "assert t.moves_boxes and 'albumentations' in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"PYTHONPATH": os.getcwd()})


def test_a_box_less_than_a_pixel_over_the_edge_is_clipped():
    before = replace(sample(num_boxes=2), boxes=np.array([[-0.4, -0.3, 9, 9], [50, 30, 64.4, 48.4]], np.float32))
    with pytest.raises(ValueError, match="to be in the range"):  # what the library itself does
        A.Compose([A.NoOp()], bbox_params=A.BboxParams("pascal_voc", label_fields=[]))(
            image=before.image, bboxes=before.boxes
        )
    after = Albumentations(transforms=[A.HorizontalFlip(p=1)])(before, 0)
    np.testing.assert_allclose(after.boxes, [[55, 0, 64, 9], [0, 30, 14, 48]], atol=1e-4)
    assert (after.boxes <= [64, 48, 64, 48]).all()


def test_without_boxes_the_arrays_keep_their_shapes():
    after = Albumentations(transforms=[A.HorizontalFlip(p=1)])(sample(num_boxes=0), 0)
    assert (after.boxes.shape, after.boxes.dtype) == ((0, 4), np.float32)
    assert (after.labels.shape, after.ignore.shape) == ((0,), (0,))


def test_all_boxes_may_leave_the_picture():
    before = replace(sample(num_boxes=1), boxes=np.array([[40, 30, 60, 40]], np.float32))
    after = Albumentations(transforms=[A.Crop(0, 0, 20, 20)])(before, 0)
    assert after.boxes.shape == (0, 4)
    assert after.size == (20, 20)


def test_an_unknown_argument_is_an_error_from_yaml():
    node = {"_target_": "Albumentations", "transforms": [{"_target_": "albumentations.HorizontalFlip", "prob": 1.0}]}
    with pytest.raises(ConfigError, match=r"^transforms\[0\].prob: no argument 'prob'; "):
        validate(node)


def test_an_unknown_argument_is_an_error_from_python():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all that the library does is warn
        inner = A.OneOf([A.CLAHE(), A.GaussianBlur(limit=3)])
    with pytest.raises(ValueError, match=r"^GaussianBlur has no argument 'limit'$"):
        Albumentations(transforms=[A.HorizontalFlip(), inner])


def test_something_else_among_the_transforms():
    with pytest.raises(ValueError, match=r"^'flip' is no transform of albumentations$"):
        Albumentations(transforms=["flip"])


def test_transforms_of_one_step_draw_independently():
    step = Albumentations(transforms=[A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = 255
    before = Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0, bool), Affine())
    seen = [tuple(np.argwhere(step(before, key).image[..., 0])[0].tolist()) for key in range(200)]
    assert {place: seen.count(place) > 25 for place in ((0, 0), (0, 3), (3, 0), (3, 3))} == dict.fromkeys(
        [(0, 0), (0, 3), (3, 0), (3, 3)], True
    )


def test_other_random_numbers_drawn_in_between_change_nothing():
    step = Albumentations(transforms=[A.RandomBrightnessContrast(p=1), A.RandomCrop(20, 20)])
    first = step(sample(), 5)
    np.random.default_rng(1).random(3)
    step(sample(), 6)
    np.testing.assert_array_equal(step(sample(), 5).image, first.image)


def test_pixel_transforms_leave_boxes_and_the_way_back_alone():
    before = sample()
    after = Albumentations(transforms=[A.OneOf([A.GaussNoise(p=1), A.CLAHE(p=1)], p=1)])(before, 0)
    assert after.boxes is before.boxes
    assert after.affine == before.affine
    assert not np.array_equal(after.image, before.image)
    assert Albumentations(transforms=[A.HorizontalFlip(p=1)])(before, 0).affine is None


def test_min_visibility_and_min_size():
    boxes = np.array([[0, 0, 10, 10], [15, 0, 25, 10], [19.5, 0, 30, 10]], np.float32)
    before = replace(sample(num_boxes=3), boxes=boxes)
    crop = A.Crop(0, 0, 20, 20)
    assert Albumentations(transforms=[crop])(before, 0).labels.tolist() == [0, 1]
    assert Albumentations(transforms=[crop], min_size=0.1)(before, 0).labels.tolist() == [0, 1, 2]
    assert Albumentations(transforms=[crop], min_visibility=0.6)(before, 0).labels.tolist() == [0]


@pytest.mark.parametrize("last", [A.Normalize(), A.ToFloat()])
def test_normalizing_is_refused(last):
    with pytest.raises(ValueError, match=r"must leave a uint8 image \(H, W, 3\), not float32 of \(48, 64, 3\)"):
        Albumentations(transforms=[last])(sample(), 0)


@pytest.mark.parametrize(
    ("options", "message"), [({"min_visibility": 2}, "min_visibility"), ({"min_size": 0}, "min_size")]
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Albumentations(transforms=[A.NoOp()], **options)


def test_boxes_are_clipped_at_the_size_after():
    before = replace(sample(48, 64, 1), boxes=np.array([[40, 20, 60, 44]], np.float32))
    after = Albumentations(transforms=[A.Resize(96, 128)])(before, 0)
    np.testing.assert_allclose(after.boxes, [[80, 40, 120, 88]], atol=1e-3)
