"""``tools/audit.py``: its counts are the training's own, for every head; it reads no pixel, and its advice helps."""

import json
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from detkit.app import audit
from detkit.app.audit import Audit, Planner
from detkit.app.audit_advice import advise, poor_share
from detkit.config import ConfigError
from detkit.data import ShapesDataset
from detkit.models import Detector, build_detector
from detkit.structures import Batch, ImageMeta, Images, Target
from tests.app.test_configs import composed
from tests.app.tools import call

HEADS = ["quickstart", "retinanet/shapes", "centernet/shapes", "yolov1/shapes"]


def node_of(experiment, folder, *overrides):
    cfg = composed(
        f"experiment={experiment}", f"data.root={folder}", "data.train.num_train=9", "data.train.num_val=2",
        "data.loader.train.batch_size=3", *overrides,
    )  # fmt: skip
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def audited(node):
    dataset = audit.build_dataset(node["data"]["train"], "data.train")
    torch.manual_seed(0)
    detector = build_detector(node["model"], dataset.categories)
    batches = list(audit._batches(node, "train", dataset))
    return detector, batches, dataset, Audit.of(Planner(detector), batches, dataset)


@pytest.mark.parametrize("experiment", HEADS)
def test_the_counts_are_those_that_training_logs(experiment, shapes):
    node = node_of(experiment, shapes, *(["model.head.rpn.sampler.num=100000"] if experiment == "quickstart" else []))
    detector, batches, dataset, found = audited(node)
    loader = audit.build(node["data"]["loader"]["train"])(
        dataset=dataset, transforms=audit.build_transforms(node["transform"]["train"], ""), seed=node["seed"]
    )
    logged = objects = 0.0
    for batch, blank in zip(loader.iterate(), batches, strict=False):
        assert [m.key for m in batch.images.meta] == [m.key for m in blank.images.meta]
        for one, other in zip(batch.targets, blank.targets, strict=True):
            assert torch.equal(one.boxes, other.boxes), "the training's own boxes, augmented as they are there"
        with torch.no_grad():
            stats = detector(batch.images, batch.targets).stats
        logged += float(stats.get("num_pos", stats.get("rpn_num_pos"))) * len(batch)
        objects += sum(len(t) for t in batch.targets)
    assert found.positives.sum() == pytest.approx(logged)
    assert len(found.labels) == objects
    assert found.rows()[0]["recall_ceiling"] == pytest.approx((found.num_positive > 0).mean())


def batch_of(*boxes, size=(64, 64)):
    meta = ImageMeta(1, "1.png", size, size)
    target = Target(torch.tensor(boxes), torch.arange(len(boxes)) % 6, torch.zeros(len(boxes), dtype=torch.bool))
    return Batch(Images(torch.zeros(1, 3, *size, dtype=torch.uint8), (meta,)), (target,))


def test_two_objects_in_one_cell(shapes):
    """YOLOv1 has one object in a cell of 16 px: of two whose centres meet there, one goes without."""
    detector, _, dataset, _ = audited(node_of("yolov1/shapes", shapes))
    truth = dataset.truths[0]
    batch = batch_of([0.0, 0, 20, 20], [2.0, 2, 18, 18], [40.0, 40, 60, 60])
    meta = ImageMeta(truth.image_id, truth.file, (64, 64), truth.size)
    batch = Batch(Images(batch.images.pixels, (meta,)), batch.targets)
    found = Audit.of(Planner(detector), [batch], dataset)
    assert sorted(found.num_positive.tolist()) == [0, 1, 1]
    assert found.crowded_out.tolist() == (found.num_positive == 0).tolist()
    row = found.describe(int(np.flatnonzero(found.num_positive == 0)[0]))
    assert row["reason"] == "another object has its reference"
    assert (row["file"], row["image_id"], row["annotation_id"]) == (truth.file, truth.image_id, None)


def test_anchors_that_fit_badly_by_hand(shapes):
    """Anchors of 16 px and more: a box of 8 x 8 is overlapped by a quarter, and yet the best anchor is given to it."""
    detector, _, dataset, _ = audited(node_of("quickstart", shapes))
    (found,) = Planner(detector).assigned(*_parts(batch_of([12.0, 12, 20, 20], [24.0, 24, 40, 40])))
    assert (found.counts.sum(dim=1) > 0).all()
    assert found.fit.tolist() == pytest.approx([0.25, 1.0])
    assert found.counts[:, 1:].sum() == 0, "both on the finest level"


def _parts(batch):
    return batch.images, batch.targets


def test_advice_is_tried_before_it_is_given(shapes):
    """Tiny objects: smaller anchors are advised, and with them the objects are well covered."""
    node = node_of("quickstart", shapes, "data.train.image_size=64", "data.train.max_objects=3")
    detector, batches, dataset, found = audited(node)
    advice = advise(node, found, Planner(detector), batches, dataset.categories)
    assert found.poor.mean() > 0.2
    anchors = [a for a in advice if a.change.startswith("model.head.rpn.anchors.scales=[")]
    assert anchors
    assert all(a.poor < found.poor.mean() - 0.02 for a in advice)
    again = node_of("quickstart", shapes, "data.train.image_size=64", "data.train.max_objects=3", anchors[0].change)
    other = build_detector(again["model"], dataset.categories)
    assert poor_share(Planner(other), batches) == pytest.approx(anchors[0].poor), "what was promised"
    assert any("as large" in a.change for a in advice)


def test_the_command_line_needs_no_image_file(shapes, tmp_path, monkeypatch, capsys):
    folder = ShapesDataset(root=str(tmp_path / "data"), num_train=6, num_val=2, image_size=96).folder
    shutil.rmtree(folder / "images")
    options = [
        "experiment=quickstart", f"data.root={tmp_path / 'data'}", "data.train.num_train=6", "data.train.num_val=2",
        "data.train.image_size=96", "data.train.max_objects=6", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    monkeypatch.setattr("detkit.data.datasets.coco.find_missing", lambda *_: [], raising=False)
    output = call(audit.main, monkeypatch, capsys, *options)
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    annotations = json.loads((folder / "train.json").read_text())["annotations"]
    assert report["rows"][0]["objects"] == len(annotations)
    assert f"{len(annotations)} objects in 6 images" in output
    for row in report["poor"]:
        (same,) = [a for a in annotations if a["id"] == row["annotation_id"]]
        assert same["image_id"] == row["image_id"]
    html = (tmp_path / "out" / "audit.html").read_text()
    assert "What to change" in html
    assert report["advice"][0]["text"].split(":")[0].lower() in html.lower()


def test_mistakes_get_one_clear_line(shapes, tmp_path, monkeypatch, capsys):
    class Cascade(Detector):
        def forward(self, images, targets=None):
            return []

    with pytest.raises(ConfigError, match="^model: Cascade has no head that assigns references to objects: nothing to"):
        Planner(Cascade())
    start = (audit.main, monkeypatch, capsys, "experiment=quickstart", f"data.root={shapes}", "data.train.num_train=9")
    start += ("data.train.num_val=2", f"hydra.run.dir={tmp_path / 'out'}")
    assert "split: must be one of 'train', 'val', not 'test'" in call(*start, "split=test", code=2)
    assert "spit: no key 'spit'; did you mean 'split'?" in call(*start, "spit=val", code=2)
