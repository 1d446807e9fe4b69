"""Landmarks of objects: their mirror images, and that they go wherever their boxes go."""

import numpy as np
import pytest
import torch

from detkit.structures import Affine, Categories, Detections, Landmarks, Target
from detkit.structures.landmarks import mirror_of

MIRROR = (1, 0, 2)
POINTS = np.array([[[10, 20, 2], [30, 24, 1], [18, 40, 2]], [[5, 6, 2], [0, 0, 0], [7, 9, 1]]], np.float32)


def test_names_with_left_and_right_change_places():
    assert mirror_of(("left_eye", "right_eye", "nose", "left_ear")) == (1, 0, 2, 3)
    assert mirror_of(("RightHand", "LeftHand", "mouth right", "mouth left")) == (1, 0, 3, 2)
    assert mirror_of(()) == ()


def test_a_mirror_image_by_hand():
    """100 px wide: x becomes 100 - x, and the left eye is called the right one; what is not labelled stays at 0."""
    moved = Landmarks(POINTS, MIRROR).moved(Affine(scale_x=-1.0, shift_x=100.0))
    assert moved.points.tolist() == [
        [[70, 24, 1], [90, 20, 2], [82, 40, 2]],
        [[0, 0, 0], [95, 6, 2], [93, 9, 1]],
    ]
    assert moved.moved(Affine(scale_x=-1.0, shift_x=100.0)).points.tolist() == POINTS.tolist()
    half_turn = Landmarks(POINTS, MIRROR).moved(Affine(-1.0, -1.0, 100.0, 50.0))
    assert half_turn.points[0].tolist() == [[90, 30, 2], [70, 26, 1], [82, 10, 2]], "turned, left stays left"


def test_scaled_and_shifted_by_hand():
    moved = Landmarks(POINTS, MIRROR).moved(Affine(2.0, 0.5, 3.0, -1.0))
    assert moved.points[0].tolist() == [[23, 9, 2], [63, 11, 1], [39, 19, 2]]
    assert moved.points[1, 1].tolist() == [0, 0, 0]
    assert moved.points.dtype == np.float32


def test_what_an_image_does_not_show_is_not_labelled():
    shown = Landmarks(POINTS, MIRROR).inside((24, 29))
    assert shown.points[0].tolist() == [[10, 20, 2], [0, 0, 0], [0, 0, 0]]
    assert shown.is_labelled.tolist() == [[True, False, False], [True, False, True]]


def test_of_several_all_or_none_have_landmarks():
    one = Landmarks(POINTS, MIRROR)
    assert len(Landmarks.join([one, one.select(np.array([1]))])) == 3
    assert Landmarks.join([one, None]) is None
    with pytest.raises(ValueError, match=r"points must be \(N, 3, 3\), not \(2, 3, 2\)"):
        Landmarks(POINTS[..., :2], MIRROR)


def target() -> Target:
    boxes = torch.tensor([[0.0, 0, 40, 50], [1, 1, 9, 9]])
    return Target(boxes, torch.tensor([1, 0]), torch.tensor([False, True]), torch.from_numpy(POINTS))


def test_a_target_keeps_its_landmarks():
    assert torch.equal(target().select(torch.tensor([1])).landmarks, torch.from_numpy(POINTS[1:]))
    assert torch.equal(target().wanted.landmarks, torch.from_numpy(POINTS[:1]))
    assert target().to("cpu").landmarks is not None
    assert target().to("meta").landmarks.device.type == "meta"
    assert Target.empty().select(torch.zeros(0, dtype=torch.int64)).landmarks is None
    with pytest.raises(ValueError, match=r"1 boxes but landmarks \(2, 3, 3\), not \(1, L, 3\)"):
        Target(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), torch.from_numpy(POINTS))


def found(x: float, landmarks: bool = True) -> Detections:
    points = torch.tensor([[[x, 2.0], [x + 4, 2], [x + 2, 6]]]) if landmarks else None
    return Detections(torch.tensor([[x, 0.0, x + 8, 8]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), points)


def test_detections_are_chosen_and_joined_with_their_landmarks():
    both = Detections.join([found(10), found(50)])
    assert both.landmarks.shape == (2, 3, 2)
    assert both.select(torch.tensor([1])).landmarks[0, 0].tolist() == [50, 2]
    assert Detections.join([found(10), found(50, landmarks=False)]).landmarks is None
    with pytest.raises(ValueError, match=r"landmarks \(1, 3, 3\), not \(1, L, 2\)"):
        Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1), torch.zeros(1, 3, 3))


def test_detections_go_back_to_the_image_that_a_view_was_made_of():
    back = found(10).undone(Affine(2.0, 2.0, 4.0, 0.0))
    assert back.boxes.tolist() == [[3, 0, 7, 4]]
    assert back.landmarks.tolist() == [[[3, 1], [5, 1], [4, 3]]]
    mirrored = found(10).undone(Affine(scale_x=-1.0, shift_x=100.0), MIRROR)
    assert mirrored.boxes.tolist() == [[82, 0, 90, 8]]
    assert mirrored.landmarks.tolist() == [[[86, 2], [90, 2], [88, 6]]], "the left eye is on the left again"
    assert found(10).undone(Affine(scale_x=-1.0, shift_x=100.0)).landmarks is None, "left or right: nobody knows"


def test_categories_name_landmarks():
    faces = Categories(("face",), (1,), ("left_eye", "right_eye", "nose"))
    assert faces.mirror == (1, 0, 2)
    assert Categories.from_dict(faces.to_dict()).landmarks == faces.landmarks
    assert Categories(("face",), (1,)).to_dict() == {"names": ["face"], "ids": [1]}, "as checkpoints had it before"
    assert faces.difference(Categories(("face",), (1,))) == "", "a set without landmarks may be evaluated on"
    with pytest.raises(ValueError, match=r"landmark given more than once: \['eye'\]"):
        Categories(("face",), (1,), ("eye", "eye"))
