"""How images are looked at for wrong labels: as they are, mirrored and enlarged, and weighed together."""

import numpy as np
import pytest
import torch

from detkit.app.labels.views import Views, look_at
from detkit.config import ConfigError
from detkit.evaluation.label_errors import Kind, label_errors
from detkit.models import Detector
from detkit.structures import Affine, Categories, Detections, GroundTruth, ImageMeta, Images


class Hesitant(Detector):
    """Of a place in an image of 50 x 100 that is marked at its left edge: class 1 by 0.9; class 0 by 0.6 where the mark is
    at the right or the image is larger."""

    def forward(self, images, targets=None):
        (meta,) = images.meta
        h, w = meta.size
        box = torch.tensor([[10.0, 10, 30, 30]]) * h / 50
        is_mirrored = bool(images.pixels[0, 0, 0, w - 1] > 0.5)
        if is_mirrored:
            box = torch.stack([w - box[:, 2], box[:, 1], w - box[:, 0], box[:, 3]], dim=1)
        is_plain = h == 50 and not is_mirrored
        return [Detections(box, torch.tensor([0.9 if is_plain else 0.6]), torch.tensor([int(is_plain)]))]


class Strict(Hesitant):
    def forward(self, images, targets=None):
        if images.meta[0].size != (50, 100):
            raise ValueError("64 x 128 px and no other")
        return super().forward(images, targets)


def marked():
    meta = ImageMeta(5, "a.png", (50, 100), (100, 200), Affine(0.5, 0.5), key=0)
    pixels = torch.zeros(1, 3, 64, 128)
    pixels[..., 0] = 1
    return Images(pixels, (meta,))


def test_several_looks_at_one_image_are_weighed_together():
    categories = Categories(("cat", "dog"), (3, 7))
    views = Views(((1.0, True), (1.5, False)))
    found, looks = look_at(Hesitant(), marked(), categories, views)
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[20, 20, 60, 60]], [1])
    assert [look.labels.tolist() for look in looks] == [[1], [0], [0]]
    assert np.concatenate([look.boxes for look in looks]) == pytest.approx(np.array([[20, 20, 60, 60]] * 3))
    truth = GroundTruth(
        5, "a.png", (100, 200), np.array([[20, 20, 40, 40.0]]), np.array([1]), np.ones(1), np.zeros(1, bool),
        np.array([40]),
    )  # fmt: skip
    (wrong,) = label_errors(truth, found, looks, 2).suspicions
    assert (wrong.kind, wrong.label) == (Kind.WRONG_CLASS, 0)
    assert wrong.certainty == pytest.approx(0.4 * (1 - 0.3)), "two of three looks see the other class"
    with pytest.raises(ConfigError, match=r"enlarge: the detector refuses images of 1\.5 times the size: 64 x 128"):
        look_at(Strict(), marked(), categories, views)


def test_a_mirror_is_looked_into_where_the_training_did():
    def config(**steps):
        return {"transform": {"train": steps}, "data": {"loader": {"val": {"size_divisor": 64}}}}

    flip = {"_target_": "HorizontalFlip", "p": 0.5}
    assert Views.of(config(flip=flip, resize=None), None, 1.5) == Views(((1.0, True), (1.5, False)), 64)
    assert Views.of(config(flip={**flip, "p": 0.0}), None, None) == Views((), 64)
    assert Views.of(config(flip=flip), False, 1) == Views((), 64)
    assert Views.of(config(), True, None) == Views(((1.0, True),), 64)
