"""Sizes at the network's input, against the transforms at work on the images themselves."""

import numpy as np
import pytest

from detkit.data import CocoDataset
from detkit.data.at_scale import at_input_scale, input_size
from detkit.data.sample import Sample
from detkit.data.transforms import Albumentations, HorizontalFlip, ResizeFit, ResizeShortestEdge, apply
from tests.data.builders import coco_set


@pytest.mark.parametrize(
    "transforms", [[ResizeShortestEdge(short=(90,), long=130)], [ResizeFit(size=100), HorizontalFlip(p=1.0)], []]
)
def test_equal_to_what_the_transforms_make_of_each_image(tmp_path, transforms):
    data = CocoDataset(root=str(coco_set(tmp_path, 10)))
    found = at_input_scale(data, transforms)
    samples = [apply(transforms, Sample.from_truth(data.read(i), t), 3) for i, t in enumerate(data.truths)]
    assert found.image_sizes.tolist() == [list(s.size) for s in samples]
    expected = np.concatenate([s.boxes[~s.ignore] for s in samples])
    assert len(expected) > 5
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)


def test_without_boxes_and_without_an_inverse(tmp_path):
    from tests.data.builders import image, write_coco

    data = CocoDataset(root=str(write_coco(tmp_path, [image(1)], [])))
    assert at_input_scale(data, [ResizeFit(size=32)]).boxes.shape == (0, 4)
    assert input_size((480, 640), [ResizeShortestEdge()])[0] == (800, 1067)
    import albumentations as A

    with pytest.raises(ValueError, match="one of Albumentations has no inverse: where boxes go is not known"):
        at_input_scale(data, [Albumentations(transforms=[A.HorizontalFlip(p=1.0)])])
