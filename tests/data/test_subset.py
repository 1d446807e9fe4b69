"""A part of the training images: by name, nested, whole groups, and the rest of the house sees no other."""

import numpy as np
import pytest

from detkit.app.assemble.parts import build_dataset, build_evaluator
from detkit.config import ConfigError
from detkit.data import CocoDataset
from detkit.data.datasets.table import TruthTable
from detkit.data.subset import Subset
from tests.data.builders import annotation, image, write_coco


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """23 images named a_0.png, b_1.png, c_2.png, a_3.png, ...; image i has i % 3 boxes."""
    root = tmp_path_factory.mktemp("coco")
    images = [image(i, file_name=f"{'abc'[i % 3]}_{i}.png") for i in range(23)]
    boxes = [annotation(100 * i + k, i, [k, 1, 9, 8]) for i in range(23) for k in range(i % 3)]
    write_coco(root, images, boxes)
    return CocoDataset(root=str(root))


def test_shares_are_nested_and_as_large_as_they_say(dataset):
    before: set[int] = set()
    for share, count in ((0.01, 1), (0.25, 6), (0.5, 12), (1.0, 23)):
        places = Subset(share=share, seed=3).places(dataset)
        assert len(places) == count
        assert before <= set(places.tolist())
        before = set(places.tolist())
    assert set(Subset(share=0.5).places(dataset)) != set(Subset(share=0.5, seed=3).places(dataset))


def test_names_decide_and_not_their_order(dataset, tmp_path):
    names = {dataset.truths[i].file.rpartition("/")[2] for i in Subset(share=0.4).places(dataset)}
    write_coco(tmp_path, [image(90 - i, file_name=f"{'abc'[i % 3]}_{i}.png") for i in range(23)], [], pictures=True)
    other = CocoDataset(root=str(tmp_path))
    assert {other.truths[i].file.rpartition("/")[2] for i in Subset(share=0.4).places(other)} == names


def test_each_image_is_held_out_by_one_fold(dataset):
    held_out = [set(range(23)) - set(Subset(fold=i, folds=4).places(dataset).tolist()) for i in range(4)]
    assert sorted(i for fold in held_out for i in fold) == list(range(23))
    assert sorted(map(len, held_out)) == [5, 6, 6, 6]
    of = Subset(folds=4).folds_of(dataset)
    assert [set(np.flatnonzero(of == i).tolist()) for i in range(4)] == held_out


def test_groups_stay_together(dataset):
    letters = np.array([truth.file.rpartition("/")[2][0] for truth in dataset.truths])
    for fold in range(3):
        kept = Subset(fold=fold, folds=3, group="^(.)_").places(dataset)
        assert set(letters[kept]) == set("abc") - set(np.delete(letters, kept))
    assert len(set(letters[Subset(share=0.3, group="^(.)_").places(dataset)])) == 1


def test_what_is_left_is_the_data_set(dataset):
    part = Subset(share=0.5).of(dataset)
    places = Subset(share=0.5).places(dataset).tolist()
    assert isinstance(part.truths, TruthTable)
    assert len(part) == len(places) == part.report.num_images
    for i, place in enumerate(places):
        mine, whole = part.truths[i], dataset.truths[place]
        assert (mine.image_id, mine.file, mine.size) == (whole.image_id, whole.file, whole.size)
        for column in ("boxes", "labels", "area", "crowd", "annotation_ids"):
            assert np.array_equal(getattr(mine, column), getattr(whole, column))
        assert np.array_equal(part.read(i), dataset.read(place))
    assert part.report.num_boxes == part.report.num_trainable == sum(place % 3 for place in places)
    assert part.categories == dataset.categories
    assert Subset(share=0.5).of(part).whole is part.whole is dataset.whole is dataset


def test_the_training_alone_has_a_subset(dataset):
    node = {"_target_": "CocoDataset", "root": dataset.truths[0].file.rpartition("/images")[0]}
    data = {"train": node, "val": node, "subset": {"fold": 0, "folds": 2}}
    assert len(build_dataset(data, "train")) in (11, 12)
    assert len(build_dataset(data, "val")) == 23
    with pytest.raises(ConfigError, match=r"data\.subset\.folds: 30 cannot be made of 23 images or groups of them"):
        build_dataset(data | {"subset": {"fold": 0, "folds": 30}}, "train")
    with pytest.raises(ConfigError, match=r"data\.subset\.group: '\^x' does not match "):
        build_dataset(data | {"subset": {"share": 0.5, "group": "^x"}}, "train")


def test_a_class_is_as_frequent_as_in_all_training_images(dataset):
    node = {"_target_": "CocoDataset", "root": dataset.truths[0].file.rpartition("/images")[0]}
    data = {"train": node, "subset": {"share": 0.25}}
    of_subset = build_dataset(data, "train")
    seen = [sum(len(truth) > 0 for truth in part.truths) for part in (of_subset, dataset)]
    assert seen[0] < seen[1] == 15
    bounds = {"_target_": "CocoEvaluator", "_partial_": True, "frequency_bounds": [seen[0], seen[1] - 1]}
    assert build_evaluator(bounds, dataset, lambda: of_subset).frequency[0] == "frequent"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "share: must lie above 0, and be 1 at most, not 0"),
        ({"share": 1.5}, "share: must lie above 0, and be 1 at most, not 1.5"),
        ({"folds": 1}, "folds: must be 2 or more, not 1"),
        ({"fold": 0}, "fold: needs folds, not 0"),
        ({"fold": 3, "folds": 3}, "fold: must be from 0 to 2, not 3"),
        ({"seed": -1}, "seed: must be 0 or more, not -1"),
    ],
)
def test_numbers_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Subset(**given)
