"""Data without anything to learn or to find, and images with more objects than may come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from detkit.app.assemble import objects
from detkit.config import ConfigError
from detkit.data.datasets.base import DataReport, DetectionDataset
from detkit.evaluation import CocoEvaluator
from detkit.matching import Selector
from detkit.structures import Categories, GroundTruth


class Given(DetectionDataset):
    """Images of 100 x 100 px with boxes of ``side`` px by label; ``crowd`` makes all of them crowds."""

    looked_in = ("here/labels",)

    def __init__(self, *labels: list[int], side: float = 20, crowd: bool = False, num_classes: int = 2) -> None:
        names = ("cat", "dog", "cow")[:num_classes]
        self.categories = Categories(names, tuple(range(1, num_classes + 1)))
        self.truths = []
        for i, of_image in enumerate(labels, start=1):
            n = len(of_image)
            self.truths.append(
                GroundTruth(
                    image_id=i, file=f"here/images/{i}.jpg", size=(100, 100), boxes=np.tile([5.0, 5, side, side], (n, 1)),
                    labels=np.array(of_image, dtype=np.int64), area=np.full(n, side**2), crowd=np.full(n, crowd),
                    annotation_ids=np.arange(1, n + 1) + 1000 * i,
                )
            )  # fmt: skip
        self.report = DataReport("here/train.json", len(labels), 0, 0, num_classes, ())

    def read(self, index: int) -> np.ndarray:
        raise AssertionError("no picture is needed")


def scorer(dataset: DetectionDataset, limit: int = 100) -> CocoEvaluator:
    limits = (1, 2, limit)
    return CocoEvaluator(categories=dataset.categories, truths=dataset.truths, max_detections=limits)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Given([], []), "in 2 images, which have no boxes at all"),
        (Given([0, 1], crowd=True), "in 1 images, of 2 boxes: 2 crowd or difficult, 0 without an area inside"),
        (Given([0, 1, 1], side=0.01), "in 1 images, of 3 boxes: 0 crowd or difficult, 3 without an area inside"),
    ],
)
def test_a_training_set_without_a_box_to_train_on_is_refused(dataset: Given, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objects.refuse_nothing_to_learn(dataset)
    assert f"data.train: nothing to learn: not one box to train on {words}" in str(caught.value)
    assert "looked in: here/train.json, here/labels, here/images" in str(caught.value)


def test_one_box_is_enough() -> None:
    objects.refuse_nothing_to_learn(Given([], [], [1]))


@pytest.mark.parametrize(
    ("val", "monitor", "words"),
    [
        (Given([], []), "AP", "not one object to find in 2 images"),
        (Given([0], crowd=True), "AP50", "AP is not defined, so there will be no best.pt by trainer.monitor=AP50"),
        (Given([0, 1]), "APl", "no object of the size that APl counts, so there will be no best.pt"),
        (Given([1], num_classes=2), "AP", "not one object of 1 classes that data.val has; their AP will be 0: dog"),
    ],
)
def test_a_validation_set_that_gives_no_score_is_told(
    val: Given, monitor: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    train = Given([0]) if "of 1 classes" in words else Given([0, 1])
    objects.warn_of_validation(train, val, scorer(val), monitor)
    assert words in caplog.text


def test_a_loss_can_be_monitored_without_objects_and_sound_data_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    objects.warn_of_validation(Given([0, 1]), Given([]), scorer(Given([])), "val_loss")
    assert "best.pt" not in caplog.text
    caplog.clear()
    val = Given([0, 1], [])
    objects.warn_of_validation(Given([0, 1]), val, scorer(val), "APs")
    objects.warn_of_limits(val, "data.val", nn.Identity(), scorer(val))
    assert not caplog.text


def test_pictures_that_are_trained_on_and_validated_on_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By whatever name: through a linked folder, a linked file, or a path that goes up and down again."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.jpg").symlink_to(tmp_path / "images" / "c.jpg")
    train, val = Given([0], [0], [0]), Given([0], [0], [0], [0])
    for dataset, names in (
        (train, ("images/a.jpg", "images/b.jpg", "images/c.jpg")),
        (val, ("linked/a.jpg", "linked/d.jpg", "other/../images/b.jpg", "other/x.jpg")),
    ):
        placed = zip(dataset.truths, names, strict=True)
        dataset.truths = [replace(truth, file=str(tmp_path / name)) for truth, name in placed]
    objects.warn_of_shared(train, val)
    assert caplog.messages == [
        "3 of 4 images of data.val are in data.train too (a.jpg, b.jpg, x.jpg): AP will be too high"
    ]
    caplog.clear()
    val.truths = val.truths[1:2]
    objects.warn_of_shared(train, val)
    assert not caplog.text


def test_limits_of_an_image_and_of_a_class() -> None:
    val = Given([0] * 6, [0] * 2 + [1] * 2)
    assert objects.highest_recall(val, 6, of_class=True) == (0, 1.0)
    assert objects.highest_recall(val, 3, of_class=True) == (1, pytest.approx((5 / 8 + 1) / 2))
    assert objects.highest_recall(val, 3, of_class=False) == (2, pytest.approx((4 / 8 + 1) / 2)), "the rare class first"


def test_a_limit_is_told_with_its_key_and_its_cost(caplog: pytest.LogCaptureFixture) -> None:
    head = nn.Identity()
    head.selector = Selector(max_detections=2)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    val = Given([0] * 6, [1], [])
    objects.warn_of_limits(val, "data.val", nn.ModuleDict({"head": head}), scorer(val, limit=3))
    assert caplog.messages == [
        "data.val: more objects than model.head.selector.max_detections=2 lets out in 1 of 3 images: even a perfect detector "
        "reaches no AR above 0.667",
        "data.val: more objects of a class than evaluator.max_detections=[1, 2, 3] lets count in 1 of 3 images: even a "
        "perfect detector reaches no AR above 0.750",
    ]
