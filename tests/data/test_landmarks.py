"""Landmarks from COCO's keypoints through every transform to a batch."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from detkit.data import (
    Albumentations,
    CocoDataset,
    HorizontalFlip,
    MixUp,
    Mosaic,
    RandomTile,
    RandomWindow,
    Resize,
    ResizeFit,
    ShapesDataset,
)
from detkit.data.datasets import stored
from detkit.data.datasets.scenes import TIP_NAMES, draw_scene
from detkit.data.transforms import apply
from detkit.data.writers import write
from detkit.structures import Affine, Landmarks
from tests.data.builders import annotation, image, write_coco
from tests.data.loaders import assert_same, evaluate, take, train
from tests.data.test_transforms import EVERY, run, sample

NAMES = ["left_eye", "right_eye", "nose"]
FACE = [{"id": 3, "name": "face", "keypoints": NAMES, "skeleton": []}, {"id": 7, "name": "hat"}]
EYES = [12, 10, 2, 20, 11, 1, 0, 0, 0]


def faces(root, *keypoints, categories=FACE, **more):
    """An image of 48 x 64 px with a face at 8, 6, 20 x 16 px or more for each of ``keypoints``, None for one without."""
    said = [{} if k is None else {"keypoints": k} for k in keypoints]
    annotations = [annotation(i, 1, [8, 6, 20, 15 + i], **k, **more) for i, k in enumerate(said, start=1)]
    return write_coco(root, [image(1)], annotations, categories)


@pytest.mark.parametrize("how", ["quickly", "carefully"])
def test_keypoints_are_read(tmp_path, how):
    root = faces(tmp_path, EYES, None, **({"iscrowd": "0"} if how == "carefully" else {}))
    data = CocoDataset(root=str(root))
    assert data.categories.landmarks == tuple(NAMES)
    assert data.truths[0].landmarks.points.tolist() == [[[12, 10, 2], [20, 11, 1], [0, 0, 0]], [[0, 0, 0]] * 3]
    assert data.truths[0].landmarks.mirror == (1, 0, 2)
    assert data.report.findings == ()


def test_chosen_images_keep_their_landmarks(tmp_path):
    said = [annotation(i, i, [8, 6, 20, 16], keypoints=[i, *EYES[1:]]) for i in (1, 2, 3)]
    write_coco(tmp_path, [image(i) for i in (1, 2, 3)], said, FACE)
    chosen = CocoDataset(root=str(tmp_path)).truths.select(np.array([2, 0]))
    assert [truth.landmarks.points[0, 0].tolist() for truth in chosen] == [[3, 10, 2], [1, 10, 2]]


@pytest.mark.parametrize("how", ["quickly", "carefully"])
@pytest.mark.parametrize(
    "wrong", [EYES[:6], [*EYES[:8], 3], [*EYES[:8], "2"], "none", [*EYES[:8], True], [1e999, *EYES[1:]]]
)
def test_keypoints_that_are_none_are_counted_and_not_taken(tmp_path, how, wrong):
    root = faces(tmp_path, wrong, EYES, **({"iscrowd": "0"} if how == "carefully" else {}))
    data = CocoDataset(root=str(root))
    assert data.report.count("keypoints that are not 3 times x, y and v of 0, 1 or 2") == 1
    assert data.truths[0].landmarks.is_labelled.sum(axis=1).tolist() == [0, 2]


def test_points_beside_the_image_are_told_and_not_trained_on(tmp_path):
    data = CocoDataset(root=str(faces(tmp_path, [12, 10, 2, 70, 11, 1, 0, 0, 0])))
    assert data.report.count("landmarks outside their image") == 1
    assert data.truths[0].landmarks.points[0, 1].tolist() == [70, 11, 1]
    (batch,) = evaluate(data)
    assert batch.targets[0].landmarks.tolist() == [[[12, 10, 2], [0, 0, 0], [0, 0, 0]]]


def test_categories_that_differ_and_names_of_one_s_own(tmp_path):
    hat = {**FACE[1], "keypoints": ["top"]}
    data = CocoDataset(root=str(faces(tmp_path / "a", EYES, categories=[FACE[0], hat])))
    assert data.report.count("categories with other keypoints than face") == 1
    assert data.categories.landmarks == ()
    assert data.truths[0].landmarks is None
    bare = faces(tmp_path / "b", EYES, categories=[{"id": 3, "name": "face"}])
    assert CocoDataset(root=str(bare)).truths[0].landmarks is None
    assert CocoDataset(root=str(bare), landmarks=("a", "b", "c")).truths[0].landmarks.mirror == (0, 1, 2)
    assert CocoDataset(root=str(faces(tmp_path / "c", EYES)), landmarks=()).truths[0].landmarks is None
    with pytest.raises(ValueError, match=r"landmark given more than once: \['a'\]"):
        CocoDataset(root=str(bare), landmarks=("a", "b", "a"))


def test_a_stored_table_has_them_too(tmp_path, monkeypatch):
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "SMALLEST", 0)
    monkeypatch.setattr(stored, "SETTLED", -1.0)
    root = faces(tmp_path / "data", EYES, None)
    first, second = CocoDataset(root=str(root)), CocoDataset(root=str(root))
    assert second.truths.stored is not None
    assert second.categories.landmarks == tuple(NAMES)
    for data in (first, second):
        assert data.truths[0].landmarks.points[0].tolist() == [[12, 10, 2], [20, 11, 1], [0, 0, 0]]


def marked(points, mirror=(1, 0, 2)):
    """An image of 48 x 64 px with one box, 8 6 28 22, and ``points`` (3, 3)."""
    before = sample(num_boxes=1)
    boxes = np.array([[8, 6, 28, 22]], np.float32)
    landmarks = Landmarks(np.array([points], np.float32), mirror)
    return dataclasses.replace(before, boxes=boxes, ignore=np.zeros(1, bool), landmarks=landmarks)


FACE_POINTS = [[12, 10, 2], [20, 11, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (Resize(height=24, width=128), [[24, 5, 2], [40, 5.5, 1], [0, 0, 0]]),
        (ResizeFit(size=32), [[6, 5, 2], [10, 5.5, 1], [0, 0, 0]]),
        (HorizontalFlip(p=1.0), [[44, 11, 1], [52, 10, 2], [0, 0, 0]]),
        (HorizontalFlip(p=0.0), FACE_POINTS),
    ],
)
def test_a_step_by_hand(step, wanted):
    after = step(marked(FACE_POINTS), key=1)
    assert after.landmarks.points[0].tolist() == wanted
    assert step.lay(marked(FACE_POINTS).layout, key=1).landmarks.points[0].tolist() == wanted


def test_a_tile_shows_what_lies_in_it():
    before, seen = marked(FACE_POINTS), set()
    for key in range(60):
        after = RandomTile(tile=16, around=0.0, min_visibility=0.0)(before, key)
        left, top = -after.affine.shift_x, -after.affine.shift_y
        for points in after.landmarks.points:
            for (x, y, mark), (was_x, was_y, was) in zip(points, FACE_POINTS, strict=True):
                shown = was and 0 <= was_x - left <= 16 and 0 <= was_y - top <= 16
                assert (x, y, mark) == ((was_x - left, was_y - top, was) if shown else (0, 0, 0))
            seen.add(tuple(points[:, 2].tolist()))
    assert {(0, 0, 0), (2, 1, 0)} <= seen
    assert len(seen) > 2, "some tiles show one of them"


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("Mosaic", "MixUp")])
def test_points_go_where_the_corners_of_boxes_go(name):
    """A point at each corner of a box is at the corner that the affine says, whatever a step draws."""
    before = sample(num_boxes=4)
    corners = before.boxes[:, [0, 1, 2, 3]].reshape(4, 2, 2)
    points = np.concatenate([corners, np.full((4, 2, 1), 2.0, np.float32)], axis=2)
    before = dataclasses.replace(before, landmarks=Landmarks(points, (0, 1)))
    for key in range(20):
        after = run(EVERY[name], before, key)
        h, w = after.size
        for label, moved in zip(after.labels, after.landmarks.points, strict=True):
            there = corners[label] * after.affine[:2] + np.array(after.affine[2:])
            labelled = moved[:, 2] > 0
            np.testing.assert_allclose(moved[labelled, :2], there[labelled], atol=1e-3)
            inside = ((there >= -1e-3) & (there <= np.array([w, h]) + 1e-3)).all(axis=1)
            assert (inside | ~labelled).all()


def test_mixed_images_keep_theirs():
    parts = [marked(FACE_POINTS) for _ in range(4)]
    for step in (Mosaic(size=100, scale=(0.5, 0.5), translate=0.0), MixUp(scale=(1.0, 1.0), flip=1.0)):
        after = step.mix(parts[0], parts[1 : step.num_partners + 1], 3)
        assert len(after.landmarks) == len(after.boxes) > 1
        for box, points in zip(after.boxes, after.landmarks.points, strict=True):
            shown = points[points[:, 2] > 0, :2]
            assert ((shown >= box[:2] - 1e-3) & (shown <= box[2:] + 1e-3)).all()
    mirrored = MixUp(scale=(1.0, 1.0), flip=1.0).mix(parts[0], parts[1:2], 3)
    assert mirrored.landmarks.points[:, :2, 2].tolist() == [[2, 1], [1, 2]], "left and right of the partner alone"
    bare = dataclasses.replace(parts[1], landmarks=None)
    assert MixUp(scale=(1.0, 1.0)).mix(parts[0], [bare], 3).landmarks is None


def test_steps_of_albumentations_that_move_boxes_leave_landmarks_out():
    albumentations = pytest.importorskip("albumentations")
    moving = Albumentations(transforms=[albumentations.HorizontalFlip(p=1.0)])
    assert moving(marked(FACE_POINTS), 1).landmarks is None
    light = Albumentations(transforms=[albumentations.RandomBrightnessContrast(p=1.0)])
    assert light(marked(FACE_POINTS), 1).landmarks is not None


def shapes(root, **options):
    return ShapesDataset(root=str(root), num_train=6, num_val=2, image_size=96, **options)


def test_a_batch_has_them_and_is_the_same_in_all_else(tmp_path):
    """Padding moves nothing; boxes, pixels and keys have the same bits with landmarks as without."""
    steps = [RandomWindow(height=80, width=64), HorizontalFlip()]
    with_them, without = shapes(tmp_path, landmarks=True), shapes(tmp_path)
    for workers in (0, 1):
        ours = take(train(with_them, steps, num_workers=workers), 3)
        theirs = take(train(without, steps, num_workers=workers), 3)
        for one, other in zip(ours, theirs, strict=True):
            metas = [dataclasses.replace(m, file="") for m in one.images.meta]
            assert metas == [dataclasses.replace(m, file="") for m in other.images.meta]
            for mine, bare in zip(one.targets, other.targets, strict=True):
                assert bare.landmarks is None
                assert mine.landmarks.shape == (len(mine), 4, 3)
                assert mine.landmarks.dtype == torch.float32
                assert all(torch.equal(getattr(mine, n), getattr(bare, n)) for n in ("boxes", "labels", "ignore"))
            assert torch.equal(one.images.pixels, other.images.pixels)
    again = take(train(with_them, steps), 3)
    assert_same(ours, again)
    assert all(
        torch.equal(s.landmarks, t.landmarks)
        for a, b in zip(ours, again, strict=True)
        for s, t in zip(a.targets, b.targets, strict=True)
    )


def test_transforms_that_leave_a_point_nowhere_are_told(tmp_path):
    class Lost(HorizontalFlip):
        def __call__(self, before, key):
            points = np.full_like(before.landmarks.points, np.nan)
            return dataclasses.replace(before, landmarks=dataclasses.replace(before.landmarks, points=points))

    with pytest.raises(ValueError, match="the transforms left a landmark that is not finite"):
        list(evaluate(shapes(tmp_path, landmarks=True), [Lost()]))


def test_tips_are_where_the_figure_is(tmp_path):
    """Half-way from a seen tip to the middle of its box lies the figure, and the tips span the box of a whole square."""
    spans = 0
    for i in range(60):
        scene = draw_scene(np.random.default_rng([8, i]), 160, 2)
        for box, label, tips in zip(scene.boxes, scene.labels, scene.tips, strict=True):
            seen = tips[tips[:, 2] == 2, :2]
            assert (seen >= box[:2] - 2).all()
            assert (seen <= box[:2] + box[2:] + 2).all()
            if label in (0, 5):
                assert not tips.any(), "round ones have none"
            if label == 1 and (tips[:, 2] == 2).all():
                span = [tips[0, 0] - tips[2, 0], tips[1, 1] - tips[3, 1]]
                np.testing.assert_allclose(span, box[2:], atol=2.0)
                spans += 1
    assert spans > 5


def test_shapes_with_landmarks_are_the_same_pictures(tmp_path):
    ours, bare = shapes(tmp_path, landmarks=True), shapes(tmp_path)
    assert ours.folder != bare.folder
    assert ours.categories.landmarks == TIP_NAMES
    for a, b in zip(ours.truths, bare.truths, strict=True):
        assert a.boxes.tolist() == b.boxes.tolist()
    assert all(np.array_equal(ours.read(i), bare.read(i)) for i in range(6))


def test_convert_keeps_or_counts_them(tmp_path):
    data = shapes(tmp_path / "shapes", landmarks=True)
    (tmp_path / "coco").mkdir()
    write(data, "coco", {"train": range(6)}, tmp_path / "coco", is_linked=False)
    again = CocoDataset(root=str(tmp_path / "coco"))
    assert again.categories.landmarks == TIP_NAMES
    for a, b in zip(data.truths, again.truths, strict=True):
        assert a.landmarks.points.tolist() == b.landmarks.points.tolist()
    (tmp_path / "yolo").mkdir()
    lost = write(data, "yolo", {"train": range(6)}, tmp_path / "yolo", is_linked=False).counts
    with_points = sum(int(t.landmarks.is_labelled.any(axis=1).sum()) for t in data.truths)
    assert lost["objects whose landmarks are lost: the format has none"] == with_points > 0


def test_numbers_of_keypoints_stand_in_the_file(tmp_path):
    content = json.loads((shapes(tmp_path, landmarks=True).folder / "train.json").read_text())
    for entry in content["annotations"]:
        assert entry["num_keypoints"] == sum(v > 0 for v in entry["keypoints"][2::3])
    assert all(c["keypoints"] == list(TIP_NAMES) for c in content["categories"])


def test_several_steps_together_are_one_affine():
    after = apply([ResizeFit(size=128), HorizontalFlip(p=1.0), Resize(height=48, width=64)], marked(FACE_POINTS), 5)
    assert after.affine == Affine(-1.0, 1.0, 64.0, 0.0)
    assert after.landmarks.points[0].tolist() == [[44, 11, 1], [52, 10, 2], [0, 0, 0]]
