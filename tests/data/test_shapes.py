"""The generated data set: determinism, statistics, and that it is whole or not there."""

import hashlib
import json
import os
import re

import numpy as np
import pytest

from detkit.data import CocoDataset, ShapesDataset
from detkit.data.datasets import shapes
from detkit.data.datasets.scenes import FIGURES, MIN_VISIBLE, _place, draw_scene

SMALL = {"num_train": 6, "num_val": 3, "image_size": 96}


def digest(folder) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def make(root, **options) -> ShapesDataset:
    return ShapesDataset(root=str(root), **{**SMALL, **options})


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert first.folder.name == second.folder.name
    assert digest(first.folder) == digest(second.folder)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"image_size": 100}, {"max_objects": 2}, {"num_val": 4}, {"size_range": (0.1, 0.2)}]
)
def test_other_arguments_give_another_folder_and_other_pictures(tmp_path, other):
    first, second = make(tmp_path), make(tmp_path, **other)
    assert first.folder != second.folder
    assert digest(first.folder) != digest(second.folder)


def test_it_is_made_once(tmp_path, monkeypatch):
    before = digest(make(tmp_path).folder)
    monkeypatch.setattr(shapes, "draw_scene", None)  # not called again
    assert digest(make(tmp_path, split="val").folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [make(tmp_path).folder.name]


def test_the_splits_share_nothing(tmp_path):
    train, val = make(tmp_path), make(tmp_path, split="val")
    assert (len(train), len(val)) == (6, 3)
    assert train.categories == val.categories
    assert train.categories.names == ("circle", "square", "triangle", "star", "cross", "ring")
    assert not {t.image_id for t in train.truths} & {t.image_id for t in val.truths}
    pictures = {train.read(i).tobytes() for i in range(6)} | {val.read(i).tobytes() for i in range(3)}
    assert len(pictures) == 9


def test_it_is_an_ordinary_coco_data_set(tmp_path):
    data = make(tmp_path)
    coco = CocoDataset(root=str(data.folder))
    assert data.report.findings == coco.report.findings == ()
    assert coco.truths[3].boxes.tolist() == data.truths[3].boxes.tolist()
    json_files = sorted(p.name for p in data.folder.glob("*.json"))
    assert json_files == ["shapes.json", "train.json", "val.json"]
    assert json.loads((data.folder / "shapes.json").read_text()) == {
        **SMALL,
        "max_objects": 6,
        "size_range": [0.08, 0.75],
        "seed": 0,
        "version": shapes.VERSION,
    }
    assert oct(data.folder.stat().st_mode & 0o777) == "0o755"


def test_statistics():
    scenes = [draw_scene(np.random.default_rng([1, i]), 160, 6) for i in range(150)]
    labels = np.concatenate([s.labels for s in scenes])
    boxes = np.concatenate([s.boxes for s in scenes])
    counts = np.bincount(labels, minlength=len(FIGURES))
    assert counts.min() > 0.6 * counts.mean()
    assert 3 < len(labels) / len(scenes) < 4.5
    assert max(len(s.labels) for s in scenes) == 6
    side = np.sqrt(boxes[:, 2] * boxes[:, 3])
    assert side.min() < 16
    assert side.max() > 96
    assert 0.25 < (side < 32).mean() < 0.75
    assert {max(s.image.shape[:2]) for s in scenes} == {160}
    assert min(min(s.image.shape[:2]) for s in scenes) >= 120
    for s in scenes:
        h, w = s.image.shape[:2]
        assert s.image.dtype == np.uint8
        assert s.image.std() > 8  # textured
        assert (s.boxes[:, :2] >= 0).all()
        assert (s.boxes[:, 0] + s.boxes[:, 2] <= w).all()
        assert (s.boxes[:, 1] + s.boxes[:, 3] <= h).all()
        assert (s.areas <= s.boxes[:, 2] * s.boxes[:, 3]).all()
        assert (s.areas > 0).all()


def test_the_sizes_are_those_asked_for():
    """A figure's width is drawn; turned, stretched and partly hidden its box has between half and one and a half of it."""
    scenes = [draw_scene(np.random.default_rng([4, i]), 128, 12, (0.05, 0.1)) for i in range(40)]
    boxes = np.concatenate([s.boxes for s in scenes])
    assert len(boxes) > 150
    assert boxes[:, 2:].max(axis=1).min() >= 4
    assert boxes[:, 2:].max() <= 15


def test_figures_overlap():
    overlapping = 0
    for i in range(60):
        scene = draw_scene(np.random.default_rng([2, i]), 160, 6)
        if len(scene.labels) > 1:
            x1, y1 = scene.boxes[:, 0], scene.boxes[:, 1]
            x2, y2 = x1 + scene.boxes[:, 2], y1 + scene.boxes[:, 3]
            w = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
            h = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
            overlapping += ((w > 0) & (h > 0)).sum() > len(scene.labels)
    assert overlapping > 20


def test_a_box_fits_its_figure_to_the_pixel():
    """A whole circle, however stretched, fills about pi / 4 of its box."""
    found = 0
    for i in range(200):
        scene = draw_scene(np.random.default_rng([3, i]), 160, 1)
        x, y, w, h = scene.boxes[0]
        whole = x > 0 and y > 0 and x + w < scene.image.shape[1] and y + h < scene.image.shape[0]
        if scene.labels.tolist() == [0] and w > 40 and whole:
            assert scene.areas[0] / (w * h) == pytest.approx(np.pi / 4, abs=0.04)
            found += 1
    assert found > 3


def test_no_figure_is_placed_where_it_would_hide_another():
    rng = np.random.default_rng(0)
    below = np.zeros((20, 20), dtype=np.int16)  # figure 0 fills the image
    assert _place(rng, np.ones((20, 20), np.float32), below, drawn=[400]) is None
    assert _place(rng, np.ones((8, 8), np.float32), below, drawn=[400]) is not None
    assert _place(rng, np.ones((8, 8), np.float32), below, drawn=[650]) is None  # over the border or hidden already


def test_figures_do_not_leave_the_picture():
    rng = np.random.default_rng(0)
    empty = np.full((40, 40), -1, dtype=np.int16)
    mask = np.zeros((20, 20), np.float32)
    mask[:8, :8] = 1
    for _ in range(200):
        place = _place(rng, mask, empty, drawn=[])
        assert place is not None
        inside = np.prod([min(p + 8, 40) - max(p, 0) for p in place])
        assert inside >= MIN_VISIBLE * 64


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    calls = iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return draw_scene(*arguments)

    monkeypatch.setattr(shapes, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    other = make(tmp_path / "other")
    rename = os.rename

    def late(source, target):
        rename(other.folder, target)
        rename(source, target)

    monkeypatch.setattr(shapes.os, "rename", late)
    data = make(tmp_path / "mine")
    assert len(data) == 6
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [data.folder.name]


def test_a_folder_of_something_else_is_refused(tmp_path):
    folder = make(tmp_path).folder
    (folder / "shapes.json").write_text('{"seed": 5}')
    message = f"{folder}: its shapes.json is missing or tells of other pictures; delete the folder"
    with pytest.raises(ValueError, match=re.escape(message)):
        make(tmp_path)


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the shapes cannot be written: (Not a directory|File exists)"):
        make(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("num_train", 0, 1), ("num_val", 0, 1), ("image_size", 63, 64), ("max_objects", 0, 1), ("seed", -1, 0)],
)
def test_arguments_out_of_range(tmp_path, option, value, least):
    with pytest.raises(ValueError, match=f"^{option} must be at least {least}, not {value}$"):
        make(tmp_path, **{option: value})


@pytest.mark.parametrize("sizes", [(0.03, 0.5), (0.5, 0.2), (0.2, 1.5)])
def test_sizes_out_of_range(tmp_path, sizes):
    words = "size_range must be two shares of the image's side between 0.042 (4 px) and 1, the lesser one first, not "
    with pytest.raises(ValueError, match=f"^{re.escape(words + str(list(sizes)))}$"):
        make(tmp_path, size_range=sizes)
