"""``tools/labels.py``: what is found, who may speak about an image, and what is written."""

import csv
import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from detkit.app.assemble.schema import LabelsOptions
from detkit.app.assemble.stored import load_stored
from detkit.app.inspect import data as inspect_data
from detkit.app.labels import fold, folds
from detkit.app.labels import tool as labels
from detkit.app.labels.corrections import COLUMNS, Correction, as_csv
from detkit.app.labels.found import LabelReport, look
from detkit.app.labels.known import same_pictures, trained_on
from detkit.app.labels.views import Views
from detkit.app.run.folder import RunFolder
from detkit.app.run.manifest import data_hash
from detkit.app.sweep.process import ended_with
from detkit.data import CocoDataset
from detkit.data.subset import Subset
from detkit.data.writers import write as write_data
from detkit.engine.state.checkpoint import load_checkpoint, save_checkpoint
from detkit.evaluation.label_errors import Kind
from detkit.models import Detector
from detkit.structures import (
    Affine,
    Batch,
    Categories,
    Detections,
    GroundTruth,
    ImageMeta,
    Images,
    Losses,
    Target,
)
from tests.app.test_sweep_runs import SMALL, finished, run, start
from tests.app.tools import call, train_briefly
from tests.data.builders import annotation, image, write_coco

# What is found


class Fixed(Detector):
    """Sees one object of class 1 at (10, 10, 30, 30) of the input; its loss is the share of labels that are not it."""

    def forward(self, images, targets=None):
        box, label = torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([1])
        if targets is None:
            return [Detections(box, torch.tensor([0.9]), label)]
        (target,) = targets
        right = (target.boxes == box).all(1) & (target.labels == label)
        return Losses({"wrong": (~right).double().mean() if len(right) else torch.tensor(2.0)})


def looked_at(boxes, classes, least=0.0):
    """What ``Fixed`` has against labels x y w h of an image of 50 x 100, shown at half its size."""
    n = len(boxes)
    truth = GroundTruth(
        5, "a.png", (100, 200), np.array(boxes, float).reshape(n, 4), np.array(classes, np.int64), np.ones(n),
        np.zeros(n, bool), np.arange(n) + 40,
    )  # fmt: skip
    meta = ImageMeta(5, "a.png", (50, 100), (100, 200), Affine(0.5, 0.5), key=0)
    batch = Batch(Images(torch.zeros(1, 3, 64, 128), (meta,)), (Target.empty(),))
    (image,) = look(
        Fixed(), torch.device("cpu"), [batch], [truth], Categories(("cat", "dog"), (3, 7)), "fp32", least, Views()
    )
    return image


def test_the_losses_are_those_of_the_labels_with_and_without_the_correction():
    found = looked_at([[20, 20, 40, 40], [120, 20, 40, 40]], [0, 0])
    wrong, spurious = sorted(found.findings, key=lambda f: f.suspicion.index)
    assert wrong.suspicion.kind is Kind.WRONG_CLASS
    assert wrong.loss_gain == pytest.approx(1 - 0.5)
    assert spurious.suspicion.kind is Kind.SPURIOUS
    assert spurious.loss_gain is None, "the loss of one box is another sum than that of two"
    assert (wrong.rank, spurious.rank) == (pytest.approx(0.9), 1)
    assert found.score == 1
    (moved,) = looked_at([[24, 20, 40, 40]], [1]).findings
    assert (moved.suspicion.kind, moved.loss_gain) == (Kind.MISPLACED, pytest.approx(1.0))
    row = wrong.correction(Categories(("cat", "dog"), (3, 7)), "a.png")
    assert (row.annotation_id, row.name, row.new_name, row.new_box) == (40, "cat", "dog", (20, 20, 40, 40))


def test_an_object_without_a_box_is_proposed_in_px_of_the_original():
    (missing,) = looked_at([], []).findings
    assert (missing.suspicion.box, missing.suspicion.label) == ((20, 20, 60, 60), 1)
    assert missing.loss_gain is None


def test_what_is_not_seen_in_many_images_is_no_finding():
    """Boxes of one class without an object in fifty images: the detector's own mistake, most likely."""
    one = looked_at([[120, 20, 40, 40]], [0])
    categories = Categories(("cat", "dog"), (3, 7))
    (spurious,) = (f for f in LabelReport.of(categories, [one], 0.3).findings if f.suspicion.kind is Kind.SPURIOUS)
    assert spurious.rank == 1
    kinds = {f.suspicion.kind for f in LabelReport.of(categories, [one] * 50, 0.3).findings}
    assert kinds == {Kind.MISSING}
    ranks = [f.rank for f in LabelReport.of(categories, [one] * 50, 0.0).findings if f.suspicion.kind is Kind.SPURIOUS]
    assert ranks == pytest.approx([0.02 / (49 / 50)] * 50)


def test_right_labels_give_nothing():
    assert not looked_at([[20, 20, 40, 40]], [1], least=0.01).findings


def test_a_wrong_class_weighs_by_what_the_loss_gains():
    """Of three findings with gains of 0.4, 0.2 and none; the middle one of those above 0 is 0.3."""
    image = looked_at([[20, 20, 40, 40]], [0])
    (finding,) = image.findings
    images = [replace(image, findings=[finding._replace(loss_gain=gain)]) for gain in (0.4, 0.2, -0.1)]
    report = LabelReport.of(Categories(("cat", "dog", "cow"), (3, 7, 8)), images, 0.0)
    assert [f.weight for f in report.findings] == pytest.approx([0.4 / 0.7, 0.2 / 0.5, 0])


def test_the_same_picture_under_another_name_is_known(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"three"), ("copy", b"two"), ("far", b"longer")):
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in ("a", "copy", "far", "gone")]
    assert same_pictures(files, [str(tmp_path / name) for name in ("b", "c")]).tolist() == [False, True, False, False]


def test_the_baseline_takes_its_least_similarity_from_all_images():
    """An object whose class the image has no label of scores by that: 0.1 exp(-0.1 d), of the farthest pair anywhere."""
    near, far = looked_at([[20, 20, 40, 40]], [0]), looked_at([[120, 20, 40, 40]], [0])
    seen = replace(near, found=near.found._replace(scores=np.array([0.96])))
    scored = LabelReport.of(Categories(("cat", "dog"), (3, 7)), [seen, far], 0.0).images[0].baseline
    assert scored.overlooked == pytest.approx([0.1 * np.exp(-0.1 * 100) * (1 - 0.96)])
    assert near.baseline.least == pytest.approx(1)


# The tool


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_briefly(tmp_path_factory.mktemp("run"), "trainer.eval_every=1", "trainer.patience=2")


def test_from_the_report_to_the_corrected_file(checkpoint, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    start_of = (labels.main, monkeypatch, capsys)
    said = call(*start_of, f"checkpoint={checkpoint}", "device=cpu", "least=0", f"output={folder}", "num_pictures=2")
    assert f"next: python tools/labels.py apply={folder / 'findings.csv'}" in said
    numbers = json.loads((folder / "labels.json").read_text())
    annotations = next(checkpoint.parent.glob("shapes/*/val.json"))
    assert numbers["annotations"] == str(annotations)
    assert numbers["sha256"] == hashlib.sha256(annotations.read_bytes()).hexdigest()
    assert (numbers["images_looked_at"], numbers["images_left_out"]) == (2, 0)
    rows = list(csv.DictReader((folder / "findings.csv").open(encoding="utf-8-sig")))
    assert sum(numbers["findings"].values()) == len(rows) > 1
    assert [float(row["certainty"]) for row in rows] == sorted((float(r["certainty"]) for r in rows), reverse=True)
    html = (folder / "labels.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html), "it needs no other file and no network"
    assert html.count("<figure>") == 2 * sum(min(2, count) for count in numbers["findings"].values())
    proposed = json.loads((folder / "corrected.json").read_text())
    assert len(proposed["images"]) == 2

    table = folder / "findings.csv"
    assert "none of its" in call(*start_of, f"apply={table}", code=2)
    target = next(i for i, row in enumerate(rows) if row["annotation_id"])
    for i, row in enumerate(rows):
        row["accept"] = "yes" if i == target else ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    said = call(*start_of, f"apply={table}")
    assert f"1 of {len(rows)} findings are corrected in" in said
    shapes = f"data=coco data.root={annotations.parent} data.val.images={annotations.parent / 'images'}"
    assert f"to measure by it: {shapes} data.val.annotations={folder / 'accepted.json'}\n" in said
    assert "data.train is wanted" not in said, "it lies there, in COCO's form"
    before, after = (json.loads(p.read_text()) for p in (annotations, folder / "accepted.json"))
    changed = [a for a in before["annotations"] if a not in after["annotations"]]
    assert [a["id"] for a in changed] == [int(rows[target]["annotation_id"])]
    pictures = annotations.parent / "images"
    assert len(CocoDataset(root=str(folder), annotations="accepted.json", images=str(pictures))) == 2

    again = [f"checkpoint={checkpoint}", "device=cpu", f"output={folder}"]
    assert "has 1 rows that someone has decided on; choose another folder" in call(*start_of, *again, code=2)
    assert "is the file that is corrected" in call(*start_of, f"apply={table}", f"output={annotations}", code=2)
    for name in ("findings.csv", "labels.json"):
        own = (folder / name).read_bytes()
        said = call(*start_of, f"apply={table}", f"output={folder / name}", code=2)
        assert f"output: {folder / name} is there; nothing is written over" in said
        assert (folder / name).read_bytes() == own
    call(*start_of, f"apply={table}")
    shutil.copy(annotations, tmp_path / "kept.json")
    try:
        annotations.write_text(annotations.read_text() + "\n")
        assert "has changed since" in call(*start_of, f"apply={table}", code=2)
    finally:
        shutil.copy(tmp_path / "kept.json", annotations)


@pytest.mark.parametrize(("layout", "split"), [("coco", "val"), ("coco", "train"), ("voc", "val"), ("yolo", "train")])
def test_the_line_that_names_the_corrected_file_works(layout, split, checkpoint, tmp_path, monkeypatch, capsys):
    """From any folder, for labels of each layout, of the split that the table is about."""
    pictures = CocoDataset(root=str(shapes_of(checkpoint)), annotations="val.json")
    root, work = tmp_path / "my set, Größe=1", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    write_data(pictures, layout, {split: range(2)}, root, is_linked=False)
    monkeypatch.chdir(work)
    data = [f"data={layout}", f"data.root={root}"]
    classes = [] if layout != "voc" else [f"data.train.classes=[{','.join(pictures.categories.names)}]"]
    if layout == "yolo":  # which counts classes from 0
        known = Categories(pictures.categories.names, tuple(range(len(pictures.categories))))
        save_checkpoint(work / "last.pt", replace(load_checkpoint(checkpoint), categories=known))
        checkpoint = work / "last.pt"
    how = ("device=cpu", "least=0", "num_pictures=0", "enlarge=null", "mirror=false", "data.loader.val.num_workers=0")
    start_of = (labels.main, monkeypatch, capsys, f"checkpoint={checkpoint}", *how)
    call(*start_of, *data, *classes, f"split={split}", "output=out")
    table = work / "out" / "findings.csv"
    table.write_text(table.read_text().replace("\n,", "\nyes,", 1))
    said = call(labels.main, monkeypatch, capsys, "apply=out/findings.csv")
    use = "to train on it: " if split == "train" else "to measure by it: "
    (line,) = (line for line in said.splitlines() if line.startswith(use))
    words = shlex.split(line.removeprefix(use))
    assert [word.partition("=")[0] for word in words if "annotations" in word] == [f"data.{split}.annotations"]
    other = "val" if split == "train" else "train"
    assert (f"data.{other} is wanted in COCO's form as well" in said) == (layout != "coco")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    seen = []
    monkeypatch.setattr(inspect_data, "inspect", lambda dataset, folder, check_images: seen.append(dataset))
    call(inspect_data.main, monkeypatch, capsys, *(data if layout == "coco" else []), *words, f"split={split}")
    assert seen[0].coco_file == str(work / "out" / "accepted.json")
    assert all(seen[0].read(i).any() for i in range(2))
    assert seen[0].categories.names == pictures.categories.names


def test_a_table_from_before_names_the_file_alone(tmp_path, capsys):
    content = {
        "images": [image(1)],
        "annotations": [annotation(4, 1, [1, 2, 9, 9])],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    digest = hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()
    (tmp_path / "labels.json").write_text(json.dumps({"annotations": str(tmp_path / "a.json"), "sha256": digest}))
    row = Correction(Kind.SPURIOUS, 0.5, None, None, "1.png", 1, 4, "cat", (1, 2, 9, 9), None, None)
    (tmp_path / "findings.csv").write_text(as_csv([row]).replace("\n,", "\nyes,"))
    assert json.loads(labels.apply(tmp_path / "findings.csv", None).read_text())["annotations"] == []
    assert "on it" not in capsys.readouterr().out


def test_images_that_were_trained_on_are_refused_or_said(checkpoint, tmp_path, monkeypatch, capsys):
    start_of = (labels.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu")
    said = call(*start_of, "split=train", f"output={tmp_path / 'a'}", code=2)
    assert "has trained on all 4 images of data.train and knows their labels; folds=5 trains detectors that" in said
    assert not (tmp_path / "a").exists()
    shapes = next(checkpoint.parent.glob("shapes/*/train.json")).parent
    files = sorted((shapes / "images").iterdir())
    categories = json.loads((shapes / "val.json").read_text())["categories"]
    sizes = [cv_size(file) for file in (files[0], files[4])]
    images = [image(i, *size, file_name=f"{i}.jpg") for i, size in enumerate(sizes, start=1)]
    write_coco(tmp_path / "mixed", images, [], categories, pictures=False)
    (tmp_path / "mixed" / "images").mkdir()
    for number, file in enumerate((files[0], files[4]), start=1):
        shutil.copy(file, tmp_path / "mixed" / "images" / f"{number}.jpg")
    (tmp_path / "mixed" / "train.json").rename(tmp_path / "mixed" / "val.json")
    mixed = ["data=coco", f"data.root={tmp_path / 'mixed'}", f"output={tmp_path / 'b'}"]
    said = call(*start_of, *mixed)
    assert "1 of 2 images are left out" in said
    numbers = json.loads((tmp_path / "b" / "labels.json").read_text())
    assert [row["image_id"] for row in numbers["images"]] == [2]
    assert numbers["images_left_out"] == 1


def cv_size(file):
    import cv2

    return cv2.imread(str(file)).shape[:2]


def in_this_process(monkeypatch):
    """Let the folds that are not finished train here, one after the other; the folders of those that did."""
    seen = []

    def run_jobs(jobs, slots):
        for job in jobs:
            if ended_with(job.folder) is not None:
                continue
            monkeypatch.setattr(sys, "argv", ["fold.py", *job.program[1:]])
            fold.main()
            seen.append(job.folder)
        return {job.key: {"best": None} for job in jobs}

    monkeypatch.setattr(folds, "run_jobs", run_jobs)
    return seen


def test_each_fold_is_judged_by_a_detector_that_trained_on_the_others(checkpoint, tmp_path, monkeypatch, capsys):
    trained = in_this_process(monkeypatch)
    judged = []
    plain = labels._look
    monkeypatch.setattr(
        labels, "_look", lambda stored, data, places, options: (judged.append((stored, places)), plain(stored, data, places, options))[1]
    )  # fmt: skip
    said = call(
        labels.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", "folds=2", "seed=3",
        f"output={tmp_path / 'out'}",
    )  # fmt: skip
    assert "report with pictures" in said
    shapes = next(checkpoint.parent.glob("shapes/*/train.json")).parent
    whole = CocoDataset(root=str(shapes))
    assert len(trained) == len(judged) == 2
    for i, (stored, places) in enumerate(judged):
        subset = stored.checkpoint.config["data"]["subset"]
        assert (subset["fold"], subset["folds"], subset["seed"]) == (i, 2, 3)
        assert not set(places) & set(Subset(**subset).places(whole)), "a detector that knows the image"
    assert sorted(np.concatenate([places for _, places in judged])) == [0, 1, 2, 3]
    numbers = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert numbers["images_looked_at"] == 4


def test_folds_of_other_data_are_trained_anew(checkpoint, tmp_path, monkeypatch, capsys):
    """Folds are drawn from all names: with an image less, those that are held out were trained on before."""
    trained = in_this_process(monkeypatch)
    shapes = next(checkpoint.parent.glob("shapes/*/train.json")).parent
    root = shutil.copytree(shapes, tmp_path / "set")
    data = ("data=coco", f"data.root={root}", "data.val=null", "data.loader.train.batch_size=2")
    here = ("device=cpu", "data.loader.train.num_workers=0", "data.loader.val.num_workers=0")
    command = (f"checkpoint={checkpoint}", "folds=2", f"output={tmp_path / 'out'}", *data, *here)
    call(labels.main, monkeypatch, capsys, *command)
    call(labels.main, monkeypatch, capsys, *command)
    assert len(trained) == 2, "the same data: what is finished is not run again"
    content = json.loads((root / "train.json").read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    (root / "train.json").write_text(json.dumps(content))
    call(labels.main, monkeypatch, capsys, *command)
    assert len(trained) == 4
    whole = CocoDataset(root=str(root))
    for number, folder in enumerate(trained[2:]):
        expected = data_hash(Subset(fold=number, folds=2).of(whole))
        assert RunFolder(folder).manifest()["data"]["train"] == expected


def test_the_recipe_of_a_fold_starts_as_the_checkpoint_did(checkpoint):
    stored = stored_of(checkpoint)
    stored.checkpoint.config["model"]["backbone"]["weights"] = "somewhere.pth"
    assert stored.config["model"]["backbone"]["weights"] is None, "held back for everything but a training"
    recipe = folds.fold_recipe(stored, Subset(fold=1, folds=3))
    assert recipe["model"]["backbone"]["weights"] == "somewhere.pth"
    assert recipe["data"]["val"] is None
    assert recipe["data"]["subset"]["fold"] == 1
    assert recipe["trainer"] == {**stored.config["trainer"], "eval_every": None, "patience": None}


@pytest.fixture(scope="module")
def second(checkpoint, tmp_path_factory):
    """A training on other pictures that started from ``checkpoint``."""
    return train_briefly(tmp_path_factory.mktemp("second"), f"init_from={checkpoint}", "data.train.seed=5")


def stored_of(checkpoint, **said):
    given = {"checkpoint": str(checkpoint), "device": "cpu", **said}
    return load_stored(OmegaConf.create(given), LabelsOptions, {})[1]


def pictures_of(checkpoint):
    """What ``checkpoint`` itself has trained on."""
    return CocoDataset(root=str(shapes_of(checkpoint)))


def shapes_of(checkpoint):
    return next(checkpoint.parent.glob("shapes/*/train.json")).parent


def test_what_the_weights_that_a_training_started_from_have_seen_is_known_too(
    checkpoint, second, tmp_path, monkeypatch, capsys
):
    stored = stored_of(second)
    assert trained_on(stored, second, pictures_of(second)).images.all()
    known = trained_on(stored, second, pictures_of(checkpoint))
    assert known.is_all
    assert known.images.all(), "the first training's pictures, which the second never saw"
    first = pictures_of(checkpoint).coco_file
    command = (f"checkpoint={second}", "device=cpu", "data=coco", f"data.root={Path(first).parent}")
    words = (f"data.val.annotations={first}", "data.loader.val.num_workers=0", f"output={tmp_path / 'out'}")
    said = call(labels.main, monkeypatch, capsys, *command, *words, code=2)
    assert "has trained on all 4 images of data.val and knows their labels" in said


def test_a_start_that_is_gone_is_told(checkpoint, second, caplog):
    stored = stored_of(second)
    stored.checkpoint.config["init_from"] = "gone.pt"
    with caplog.at_level(logging.WARNING, "detkit"):
        known = trained_on(stored, second, pictures_of(checkpoint))
    assert (known.is_all, known.images.any()) == (False, False)
    assert "which images init_from=gone.pt trained on is not known" in caplog.text


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("FIRST", "init_from: FIRST has trained on 4 of the 4 images, and a fold that starts from it may judge what"),
        ("gone.pt", "init_from: which images gone.pt has trained on is not known, and a fold that starts from it may"),
        ("SECOND", "init_from: SECOND has trained on 4 of the 4 images"),
    ],
)
def test_no_fold_starts_from_weights_that_know_its_images(
    init_from, message, checkpoint, second, tmp_path, monkeypatch, capsys
):
    places = {"FIRST": str(checkpoint), "SECOND": str(second)}
    command = [f"checkpoint={checkpoint}", "device=cpu", "folds=2", f"output={tmp_path / 'out'}"]
    said = call(
        labels.main, monkeypatch, capsys, *command, f"init_from={places.get(init_from, init_from)}", code=2
    ).replace("\n", " ")
    for word, place in places.items():
        message = message.replace(word, place)
    assert message in said
    assert "init_from=null starts all folds without it" in said
    assert not (tmp_path / "out").exists()


def test_folds_start_from_weights_that_do_not_know_their_images(checkpoint, second, tmp_path, monkeypatch):
    """Those of another library, imported ones too, of a training on other pictures, or none, as the message says."""
    monkeypatch.setattr(folds, "run_jobs", lambda jobs, slots: {job.key: {"best": None} for job in jobs})
    other = train_briefly(tmp_path / "other", "data.train.seed=7")
    foreign, imported = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", tmp_path / "imported.pt"
    save_checkpoint(imported, replace(load_checkpoint(second), step=0, config=load_checkpoint(checkpoint).config))
    for number, init_from in enumerate((foreign, str(imported), str(other), None)):
        stored = stored_of(second, init_from=init_from)
        subsets = [Subset(fold=i, folds=2) for i in range(2)]
        trained = folds.train_folds(stored, pictures_of(second), subsets, tmp_path / str(number), 1)
        recipes = [yaml.safe_load((path.parent / fold.RECIPE).read_text()) for path in trained]
        assert [recipe["init_from"] for recipe in recipes] == [init_from] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "checkpoint: one is wanted, a best.pt or last.pt; or apply"),
        (["checkpoint=a", "apply=b"], "checkpoint: one is wanted"),
        (["checkpoint=CHECKPOINT", "folds=1"], "folds: must be 2 or more, not 1"),
        (["checkpoint=CHECKPOINT", "folds=2", "split=val"], "folds: are made of data.train, not of split=val"),
        (["checkpoint=CHECKPOINT", "group=folder"], "group: says which images stay together in a fold"),
        (["checkpoint=CHECKPOINT", "least=2"], "least: must lie in [0, 1], not 2"),
        (["checkpoint=CHECKPOINT", "folds=9"], "folds: 9 cannot be made of 4 images"),
        (["checkpoint=a.onnx"], "checkpoint: a.onnx is an exported file, which has no losses"),
        (["apply=nowhere.csv"], "apply: nowhere.csv: No such file or directory"),
    ],
)
def test_mistakes_get_one_clear_line(words, message, checkpoint, tmp_path, monkeypatch, capsys):
    words = [word.replace("CHECKPOINT", str(checkpoint)) for word in words]
    monkeypatch.chdir(tmp_path)
    where = [] if any(word.startswith("apply") for word in words) else [f"output={tmp_path / 'out'}"]
    assert message in call(labels.main, monkeypatch, capsys, *words, *where, code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_folds_that_were_killed_go_on(tmp_path):
    common = [*SMALL, f"data.root={tmp_path / 'data'}", "trainer.steps=6", "trainer.save_every=1"]
    run("train", *common, f"hydra.run.dir={tmp_path / 'run'}")
    command = [f"checkpoint={tmp_path / 'run' / 'last.pt'}", "device=cpu", "folds=2", f"output={tmp_path / 'out'}"]
    process = start("labels", *command)
    while not finished(tmp_path / "out" / "folds"):
        assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.communicate()
    assert "of 2 jobs are finished already" in run("labels", *command)
    assert (tmp_path / "out" / "findings.csv").is_file()
