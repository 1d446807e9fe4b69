"""``tools/audit.py``: its counts are the training's own, for every head; it reads no pixel, and its advice helps."""

import dataclasses
import itertools
import json
import re
import shlex
from collections import Counter

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from detkit.app.audit import tool as audit
from detkit.app.audit.advice import _larger_input, advise
from detkit.app.audit.found import Audit
from detkit.app.audit.pictures import albums
from detkit.app.audit.plan import Planner
from detkit.app.audit.shown import Shown
from detkit.config import ConfigError
from detkit.data import CocoDataset, Mosaic, RandomTile, ShapesDataset, TrainLoader
from detkit.models import Detector, build_detector
from detkit.structures import Batch, ImageMeta, Images, Target
from tests.app.test_configs import composed
from tests.app.tools import call
from tests.data.builders import annotation, image, write_coco
from tests.data.test_real_data import folder


def node_of(experiment, folder, *overrides):
    cfg = composed(
        f"experiment={experiment}", f"data.root={folder}", "data.train.num_train=9", "data.train.num_val=2",
        "data.loader.train.batch_size=3", *overrides,
    )  # fmt: skip
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def audited(node, most=None):
    dataset = audit.build_dataset(node["data"], "train")
    torch.manual_seed(0)
    detector = build_detector(node["model"], dataset.categories)
    transforms = audit.build_transforms(node["transform"]["train"], "")
    batches, _ = audit.first_batches(audit._batches(audit._loader(node, "train", dataset, transforms)), most)
    return detector, batches, dataset, Audit.of(Planner(detector), batches, dataset)


ALL_ANCHORS = "model.head.rpn.sampler.num=100000"
MOSAIC = ("transform=mosaic_320", "transform.size=128", "transform.train.mosaic.p=0.7")


@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("quickstart", (ALL_ANCHORS,)), ("quickstart", (ALL_ANCHORS, *MOSAIC)), ("retinanet/shapes", ()),
        ("centernet/shapes", ()), ("yolov1/shapes", ()), ("retinanet/shapes", ("transform=centernet_320",)),
    ],
)  # fmt: skip
def test_the_counts_are_those_that_training_logs(experiment, overrides, shapes):
    assert_counts_are_logged(node_of(experiment, shapes, *overrides))


def test_the_counts_are_those_that_training_logs_on_photographs():
    node = node_of("quickstart", folder("coco_mini"), ALL_ANCHORS)
    node["data"]["train"] = {"_target_": "CocoDataset", "root": str(folder("coco_mini"))}
    assert_counts_are_logged(node, most=12)


def assert_counts_are_logged(node, most=None):
    detector, batches, dataset, found = audited(node, most)
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
        objects += sum(int((~t.ignore).sum()) for t in batch.targets)
    assert found.positives.sum() == pytest.approx(logged)
    assert len(found.labels) == objects
    assert found.rows()[0]["recall_ceiling"] == pytest.approx((found.num_positive > 0).mean())


def test_of_many_images_the_first_batches_are_looked_at_and_it_is_said(shapes, tmp_path, monkeypatch, capsys):
    node = node_of("quickstart", shapes, "data.train.num_train=50", "data.loader.train.group_by_aspect=true")
    _, whole, *_ = audited(node)
    for most in (1, 7, 49):
        _, batches, _, found = audited(node, most)
        assert found.num_images == most
        ids = [m.image_id for b in whole for m in b.images.meta]
        assert [m.image_id for m in found.metas] == ids[:most]
        assert all(b.images.padded_size == w.images.padded_size for b, w in zip(batches, whole, strict=False))
    monkeypatch.setattr(audit, "MOST_PIXELS", 1)
    assert len(audited(node)[1]) == 1, "whole batches, and never none"
    monkeypatch.undo()
    options = [
        "experiment=quickstart", f"data.root={shapes}", "data.train.num_train=9", "data.train.num_val=2",
        "num_pictures=0", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    crop = "+transform.train.crop={_target_: Albumentations, transforms: [{_target_: albumentations.RandomCrop, height: 90, width: 90}]}"
    output = call(audit.main, monkeypatch, capsys, *options, "num_images=4", crop)
    assert "Looked at: 4 of the 9 images, those of the first batches; num_images=9 takes all of them" in output
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    num_all = sum(report["all"].values())
    assert num_all > report["rows"][0]["objects"]
    assert f"All {num_all} objects of the epoch by size in the network: " in output
    assert "Albumentations tells where objects go only after seeing pixels: run on black images here" in output
    output = call(audit.main, monkeypatch, capsys, *options)
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    sizes = {row["name"]: row["objects"] for row in report["rows"] if row["kind"] == "size"}
    assert sizes == {name: count for name, count in report["all"].items() if count}
    assert "Looked at" not in output
    assert "black images" not in output
    message = call(audit.main, monkeypatch, capsys, *options, "num_images=0", code=2)
    assert "num_images: must be 1 or more, or null, not 0" in message


def test_without_an_object_there_is_no_number(tmp_path, monkeypatch, capsys):
    """It said that nan% have no reference, and that nothing needs to change."""
    outside, inside = (annotation(i, i, [x, 0, 20, 20]) for i, x in ((1, 500), (2, 4)))  # the second image's
    options = [
        "experiment=quickstart", "data=coco", "data.train.annotations=train.json", "data.val.annotations=train.json",
        f"data.root={tmp_path}", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    write_coco(tmp_path, [image(1)], [outside])
    message = call(audit.main, monkeypatch, capsys, *options, code=2)
    assert "data.train: none of its 1 images has an object: nothing can be assigned" in message
    write_coco(tmp_path, [image(1), image(2)], [inside])
    message = call(audit.main, monkeypatch, capsys, *options, "split=val", "num_images=1", code=2)
    assert "num_images: none of the first 1 images shows an object: nothing can be assigned" in message


def test_it_counts_the_landmarks_that_are_shown(tmp_path):
    data = ShapesDataset(root=str(tmp_path), num_train=6, num_val=1, image_size=128, landmarks=True)
    bare = ShapesDataset(root=str(tmp_path), num_train=6, num_val=1, image_size=128)
    loader = TrainLoader(dataset=data, transforms=[RandomTile(tile=64)], batch_size=3, num_workers=0)
    shown = Shown(data)
    batches = list(shown.counted(itertools.islice(loader.lay(), 2)))
    points = torch.cat([target.landmarks[~target.ignore] for batch in batches for target in batch.targets])
    seen, of_all = int((points[..., 2] > 0).sum()), sum(int(t.landmarks.is_labelled.sum()) for t in data.truths)
    assert 0 < seen < of_all
    assert shown.to_dict().items() >= {"landmarks": of_all, "landmarks_shown": seen}.items()
    assert f"Of {of_all} labelled landmarks the transforms show {seen} in an epoch" in shown.in_words()
    plain = Shown(bare)
    list(plain.counted(itertools.islice(TrainLoader(dataset=bare, transforms=[], num_workers=0).lay(), 1)))
    assert plain.in_words() == []


def test_it_counts_what_tiles_show_cut_and_leave_out(shapes, tmp_path, monkeypatch, capsys):
    options = [
        "experiment=quickstart", f"data.root={shapes}", "data.train.num_train=9", "data.train.num_val=2",
        "num_pictures=0", "num_images=3", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
    tiles = [*options, "transform=tiles", "transform.train.tile.tile=48", "transform.train.tile.min_visibility=0.9"]
    output = call(audit.main, monkeypatch, capsys, *tiles)
    shown = json.loads((tmp_path / "out" / "audit.json").read_text())["shown"]
    node = node_of("quickstart", shapes, "data.train.num_train=9", "data.train.num_val=2", *tiles[-3:])
    dataset = audit.build_dataset(node["data"], "train")
    steps = audit.build_transforms(node["transform"]["train"], "transform.train")
    loader = TrainLoader(dataset=dataset, transforms=steps, batch_size=3, num_workers=0, seed=node["seed"])
    batches = list(itertools.islice(loader.iterate(), 3))  # the pixels too
    targets = [target for batch in batches for target in batch.targets]
    assert len(targets) == shown["images"] == 9
    assert shown["objects"] == sum(len(truth) for truth in dataset.truths)
    assert shown["to_find"] == sum(len(t.wanted) for t in targets) < shown["objects"]
    assert shown["to_ignore"] == sum(int(t.ignore.sum()) for t in targets) > 0
    assert shown["emptied"] == sum(len(t.wanted) == 0 for t in targets)
    assert (
        f"In an epoch the transforms show {shown['to_find']} objects to find, of images that have {shown['objects']}; "
        f"{shown['to_ignore']} more are there to be ignored (the images have 0 such)"
    ) in output
    output = call(audit.main, monkeypatch, capsys, *options)
    assert "In an epoch the transforms show" not in output


def test_an_object_of_a_mixed_image_has_no_id(tmp_path):
    """The box of another image passed for the one of the image that it was mixed into, where each has one."""
    boxes = [annotation(i, i, [4 + i, 4, 20, 20]) for i in range(1, 9)]
    data = CocoDataset(root=str(write_coco(tmp_path, [image(i) for i in range(1, 9)], boxes)))
    planner = Planner(build_detector(node_of("quickstart", tmp_path)["model"], data.categories))
    for steps, has_ids in (([], True), ([Mosaic(size=64, scale=(1.0, 1.0))], False)):
        batch = next(TrainLoader(dataset=data, transforms=steps, batch_size=8, num_workers=0).lay())
        assert 1 in map(len, batch.targets)
        found = Audit.of(planner, [batch], data)
        ids = {found.describe(i)["annotation_id"] for i in range(len(found.labels))}
        assert ids == (set(range(1, 9)) if has_ids else {None})


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
    detector, *_ = audited(node_of("quickstart", shapes))
    (found,) = Planner(detector).assigned(*_parts(batch_of([12.0, 12, 20, 20], [24.0, 24, 40, 40])))
    assert (found.counts.sum(dim=1) > 0).all()
    assert found.fit.tolist() == pytest.approx([0.25, 1.0])
    assert found.counts[:, 1:].sum() == 0, "both on the finest level"
    (found,) = Planner(detector).assigned(*_parts(batch_of([32.0, 32, 96, 96], size=(128, 128))))
    assert found.counts[0].nonzero().squeeze(1).tolist() == [2], "anchors of 64 px are those of stride 16"
    assert found.fit.tolist() == pytest.approx([1.0])


def _parts(batch):
    return batch.images, batch.targets


def test_every_image_counts_once(shapes):
    """Batches of one aspect end their epoch late: all the same each image is looked at, none twice."""
    node = node_of("quickstart", shapes, "data.train.num_train=50", "data.loader.train.group_by_aspect=true")
    _, batches, dataset, found = audited(node)
    assert sorted(m.image_id for m in found.metas) == sorted(t.image_id for t in dataset.truths)
    assert len(found.labels) == sum(len(t) for t in dataset.truths)
    assert all(len({m.size[0] > m.size[1] for m in b.images.meta}) <= 1 for b in batches)


def test_advice_is_tried_before_it_is_given(shapes):
    """Tiny objects: what is advised can be pasted into a command line, and there does what was promised."""
    tiny = ("data=shapes_tiny", "data.train.num_train=12")
    node = node_of("quickstart", shapes, *tiny)
    detector, batches, dataset, found = audited(node)
    advice = advise(node, {"train": {"flip": {}}, "val": {}}, found, Planner(detector), batches, dataset.categories)
    assert found.poor.mean() > 0.8
    assert len({a.change for a in advice}) == len(advice) > 2
    assert all(a.poor < found.poor.mean() - 0.5 for a in advice)
    anchors_last = [a.change.startswith("model.head.rpn.anchors.scales=[") for a in advice]
    assert anchors_last == [False] + [True] * (len(advice) - 1)
    assert re.search(
        r"; \d\d% of them are smaller than two cells of the finest level, where anchors help", advice[0].text
    )
    for one in (advice[0], advice[-1]):
        *_, again = audited(node_of("quickstart", shapes, *tiny, *shlex.split(one.change)))
        assert again.poor.mean() == pytest.approx(one.poor, abs=0.02), one.change
        assert f"{one.poor:.1%} instead of {found.poor.mean():.1%} of the objects have" in one.text


def test_advice_for_long_objects_and_for_full_cells(shapes):
    """Wide boxes want wide anchors; objects that share a cell want a finer grid."""
    wide = batch_of([2.0, 4, 62, 14], [2.0, 40, 62, 52])
    node = node_of("retinanet/shapes", shapes)
    changes = {c.split("=")[0]: c for c in advised(node, wide, shapes)}
    assert "model.head.anchors.ratios" in changes
    assert "0.25" in changes["model.head.anchors.ratios"]
    crowd = batch_of([0.0, 0, 10, 10], [10.0, 10, 15, 15], [32.0, 32, 36, 36])
    assert advised(node_of("yolov1/shapes", shapes), crowd, shapes)[0] == "model.neck.stride=8"


def advised(node, batch, folder):
    detector, _, dataset, _ = audited(node)
    meta = dataclasses.replace(batch.images.meta[0], image_id=dataset.truths[0].image_id)
    batch = Batch(Images(batch.images.pixels, (meta,)), batch.targets)
    planner = Planner(detector)
    advice = advise(node, {}, Audit.of(planner, [batch], dataset), planner, [batch], dataset.categories)
    return [a.change for a in advice]


@pytest.mark.parametrize(
    ("transform", "overrides"),
    [
        ("short_320", "transform.train.resize.short=[640] transform.train.resize.long=854"),
        ("fit_320", "transform.train.resize.size=640"),
        ("square_320", "transform.size=640"),
        ("multiscale", "transform.train.resize.short=[1280,1344,1408,1472,1536,1600] "
         "transform.train.resize.long=2666 transform.val.resize.short=[1600]"),
        ("flip", "'transform.train.resize={_target_: ResizeFit, size: 256}' "
         "'transform.val.resize={_target_: ResizeFit, size: 256}'"),
    ],
)  # fmt: skip
def test_a_larger_input_in_the_recipes_own_words(transform, overrides):
    written = OmegaConf.to_container(composed("experiment=quickstart", f"transform={transform}").transform)
    assert _larger_input(written, 2.0, 128.0) == overrides


@pytest.mark.parametrize(("experiment", "per_class"), [("yolov1/shapes", False), ("centernet/shapes", True)])
def test_collisions_are_counted_over_a_data_set(experiment, per_class, shapes):
    """By plain loops: objects less the cells (of all classes, or of each) that hold a centre."""
    dense = ("data.train.image_size=64", "data.train.max_objects=60", "data.train.size_range=[0.07,0.1]")
    node = node_of(experiment, shapes, "data=shapes_tiny", "data.train.num_train=60", "transform=identity", *dense)
    detector, _, dataset, found = audited(node)
    (stride,) = detector.neck.out_spec.strides
    collisions = 0
    for truth in dataset.truths:
        cells = set()
        for (x, y, w, h), label in zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True):
            cells.add((int((x + w / 2) // stride), int((y + h / 2) // stride), label if per_class else 0))
        collisions += len(truth) - len(cells)
    assert found.crowded_out.sum() == collisions
    assert collisions > 0
    assert found.rows()[0]["crowded_out"] == found.rows()[0]["none"] == collisions
    assert f"({collisions} since another object has theirs)" in found.in_words()


def test_pictures_by_cause(shapes):
    """Each shows the object, the nearest anchor, and who has its reference."""
    node = node_of("quickstart", shapes, "data=shapes_tiny", "data.train.num_train=60")
    detector, batches, dataset, found = audited(node)
    planner = Planner(detector)
    html = "".join(albums(found, planner, batches, dataset, 3))
    causes = {found.cause(int(i)) for i in np.flatnonzero(found.poor)}
    assert "another object has its reference" in causes
    for cause in causes:
        assert cause.capitalize() in html
    assert html.count("<figure>") == sum(
        min(3, n) for n in Counter(map(found.cause, np.flatnonzero(found.poor))).values()
    )
    assert "nearest anchor" in html
    assert albums(found, planner, batches, dataset, 0) == []
    batch = batch_of([0.0, 0, 20, 20], [2.0, 2, 18, 18], [40.0, 40, 60, 60])
    yolo = Planner(audited(node_of("yolov1/shapes", shapes))[0])
    assert yolo.seen(batch, 0, 1) == (None, 0), "the larger object has the cell"
    assert yolo.seen(batch, 0, 2) == (None, None)
    anchor, rival = planner.seen(batch_of([12.0, 12, 20, 20]), 0, 0)
    assert rival is None
    assert (anchor[2:] - anchor[:2]).prod() == pytest.approx(256, rel=1e-3), "of 16 px, the smallest there is"


def test_anchors_fifty_times_too_large_are_told_of(shapes, tmp_path, monkeypatch, capsys):
    options = [
        "experiment=quickstart", f"data.root={shapes}", "data.train.num_train=9", "data.train.num_val=2",
        "num_pictures=0", "model.head.rpn.anchors.scales=[400]",
    ]  # fmt: skip
    output = call(audit.main, monkeypatch, capsys, *options, f"hydra.run.dir={tmp_path / 'out'}")
    line = "Every anchor (1600..25600 px) is larger than the image of "
    assert line in output
    assert line in (tmp_path / "out" / "audit.html").read_text()
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["advice"][0]["text"].startswith(line)


def test_the_command_line_needs_no_image_file(shapes, tmp_path, monkeypatch, capsys):
    folder = ShapesDataset(root=str(tmp_path / "data"), num_train=6, num_val=2, image_size=96).folder
    for file in (folder / "images").iterdir():
        file.write_bytes(b"")  # whoever decodes one fails
    options = [
        "experiment=quickstart", f"data.root={tmp_path / 'data'}", "data.train.num_train=6", "data.train.num_val=2",
        "data.train.image_size=96", "data.train.max_objects=6", "num_pictures=0", f"hydra.run.dir={tmp_path / 'out'}",
    ]  # fmt: skip
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

    with pytest.raises(ConfigError, match=r"^model: Cascade has no head that assigns references to objects"):
        Planner(Cascade())
    start = (audit.main, monkeypatch, capsys, "experiment=quickstart", f"data.root={shapes}", "data.train.num_train=9")
    start += ("data.train.num_val=2", f"hydra.run.dir={tmp_path / 'out'}")
    assert "split: must be one of 'train', 'val', not 'test'" in call(*start, "split=test", code=2)
    assert "spit: no key 'spit'; did you mean 'split'?" in call(*start, "spit=val", code=2)
