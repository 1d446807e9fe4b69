"""Several data sets as one: each image is read from its own."""

import numpy as np

from detkit.data import ShapesDataset
from detkit.data.together import Together


def test_each_place_is_the_image_of_its_part(tmp_path):
    sets = {
        split: ShapesDataset(root=str(tmp_path), split=split, num_train=3, num_val=2, image_size=64)
        for split in ("val", "train")
    }
    both = Together(sets)
    assert {name: list(places) for name, places in both.places.items()} == {"val": [0, 1], "train": [2, 3, 4]}
    assert (len(both), both.report.num_images, both.reader) == (5, 5, sets["val"].reader)
    for name, part in sets.items():
        for i, place in enumerate(both.places[name]):
            assert both.truths[place].file == part.truths[i].file
            np.testing.assert_array_equal(both.read(place), part.read(i))
