"""Real data sets, where they are at hand: DETKIT_DATA names the folder that holds them."""

import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detkit.data import CocoDataset, EvalLoader, ResizeShortestEdge, TrainLoader

ROOT = Path(os.environ.get("DETKIT_DATA", "/nowhere"))


def folder(name: str) -> Path:
    if not (ROOT / name).is_dir():
        pytest.skip(f"DETKIT_DATA does not lead to a folder with {name}")
    return ROOT / name


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["bccd", "coco_mini", "facemask", "raccoon"])
def test_counts_are_those_of_pycocotools(name, split):
    root = folder(name)
    data = CocoDataset(root=str(root), annotations=f"{split}.json")
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(root / f"{split}.json"))
    assert len(data) == len(coco.imgs)
    assert sum(map(len, data.truths)) == data.report.num_boxes == len(coco.anns)
    assert data.categories.ids == tuple(sorted(coco.cats))
    for truth in data.truths:
        expected = coco.loadAnns(coco.getAnnIds(imgIds=[truth.image_id]))
        np.testing.assert_array_equal(truth.boxes, np.reshape([a["bbox"] for a in expected], (-1, 4)))
        assert [data.categories.ids[k] for k in truth.labels] == [a["category_id"] for a in expected]
        assert truth.crowd.tolist() == [bool(a["iscrowd"]) for a in expected]


def test_coco_has_gaps_crowds_and_empty_images():
    data = CocoDataset(root=str(folder("coco_mini")))
    assert len(data.categories) == 80
    assert max(data.categories.ids) == 90
    assert data.categories.names[data.categories.ids.index(90)] == "toothbrush"
    assert data.report.count("images without boxes") == sum(not len(t) for t in data.truths) > 0
    assert data.report.count("crowd or difficult boxes") == sum(int(t.crowd.sum()) for t in data.truths) > 0
    without = TrainLoader(dataset=data, transforms=[], batch_size=1, num_workers=0, keep_empty=False)
    assert without.batches_per_epoch == sum((~t.crowd).any() for t in data.truths)


@pytest.mark.parametrize("name", ["bccd", "coco_mini", "facemask", "raccoon"])
def test_every_validation_image_is_read_and_maps_back(name):
    data = CocoDataset(root=str(folder(name)), annotations="val.json")
    resize = [ResizeShortestEdge(short=(160,), long=213)]
    num_images = 0
    for batch in EvalLoader(dataset=data, transforms=resize, batch_size=16, num_workers=2):
        assert batch.images.padded_size[0] % 32 == batch.images.padded_size[1] % 32 == 0
        for meta, target in zip(batch.images.meta, batch.targets, strict=True):
            truth = data.truths[num_images]
            assert (meta.image_id, meta.original_size) == (truth.image_id, truth.size)
            h, w = truth.size
            x, y, bw, bh = truth.boxes.T
            expected = np.stack([x, y, x + bw, y + bh], axis=1).clip(0, [w, h, w, h])
            np.testing.assert_allclose(meta.affine.undo(target.boxes), expected, atol=1e-2)
            num_images += 1
    assert num_images == len(data)
