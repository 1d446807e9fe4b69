"""What ``tools/predict.py`` writes: the same detections in every form, and one prediction in a folder."""

# ruff: noqa: F401, F811 - the fixtures of tests.app.test_predict

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from detkit.app.use.writers import Place, detection_writer
from detkit.data.datasets import YoloDataset
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.evaluation.results import Results
from detkit.structures import Categories, ImageMeta
from tests.app.test_predict import checkpoint, pictures, rows, run, write_picture


def test_the_forms_say_the_same(run, tmp_path):
    write_picture(tmp_path / "in" / "a.png")
    write_picture(tmp_path / "in" / "b c" / "b.png")
    for form in ("coco", "csv", "yolo", "label_studio"):
        run("input=in", f"output={form}", f"format={form}", "score_threshold=0")
    wanted = rows(tmp_path / "coco")
    assert wanted

    with open(tmp_path / "csv" / "detections.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["file"], int(r["category_id"]), float(r["score"])) for r in table] == [
        (w["file_name"], w["category_id"], w["score"]) for w in wanted
    ]
    corners = np.array([[float(r[k]) for k in ("x1", "y1", "x2", "y2")] for r in table])
    boxes = np.array([w["bbox"] for w in wanted])
    np.testing.assert_allclose(corners[:, 2:] - corners[:, :2], boxes[:, 2:], atol=1e-9)
    np.testing.assert_allclose(corners[:, :2], boxes[:, :2])

    names = (tmp_path / "yolo" / "classes.txt").read_text().split("\n")
    files = [tmp_path / "yolo" / "labels" / name for name in ("a.txt", "b c/b.txt")]
    lines = np.array([[float(v) for v in line.split()] for f in files for line in f.read_text().splitlines()])
    assert [names[int(label)] for label in lines[:, 0]] == [r["class"] for r in table]
    px = lines[:, 1:] * (64, 48, 64, 48)
    np.testing.assert_allclose(px[:, :2] - px[:, 2:] / 2, boxes[:, :2], atol=1e-3)
    np.testing.assert_allclose(px[:, 2:], boxes[:, 2:], atol=1e-3)

    tasks = json.loads((tmp_path / "label_studio" / "label_studio.json").read_text())
    assert [Path(t["data"]["image"]).name for t in tasks] == ["a.png", "b.png"]
    regions = [r for t in tasks for r in t["predictions"][0]["result"]]
    assert [r["value"]["rectanglelabels"][0] for r in regions] == [r["class"] for r in table]
    shares = np.array([[r["value"][k] for k in ("x", "y", "width", "height")] for r in regions])
    np.testing.assert_allclose(shares * (64, 48, 64, 48) / 100, boxes, atol=1e-9)
    assert 'toName="image"' in (tmp_path / "label_studio" / "label_studio.xml").read_text()
    assert not list((tmp_path / "csv").glob("*.json")), "the form that was asked for, and no other"


def test_labels_are_what_scores_enough_and_are_read_again(run, checkpoint, tmp_path):
    for name in ("a.png", "b c/a.png"):
        write_picture(tmp_path / "in" / name)
    run("input=in", "output=all")
    wanted = rows(tmp_path / "all")
    middle = float(np.median([w["score"] for w in wanted]))
    wanted = [w for w in wanted if w["score"] > middle]
    options = ("input=in", f"score_threshold={middle}")
    run(*options, "output=yolo", "format=yolo")
    run(*options, "output=ls", "format=label_studio", "image_prefix='/data/local-files/?d=my/'")
    tasks = json.loads((tmp_path / "ls" / "label_studio.json").read_text())
    assert [t["data"]["image"] for t in tasks] == [
        "/data/local-files/?d=my/a.png",
        "/data/local-files/?d=my/b%20c/a.png",
    ]
    assert sum(len(t["predictions"][0]["result"]) for t in tasks) == len(wanted)
    read = YoloDataset(root=str(tmp_path / "yolo"), images=str(tmp_path / "in"), labels="labels")
    boxes = np.concatenate([truth.boxes for truth in read.truths])
    np.testing.assert_allclose(boxes, [w["bbox"] for w in wanted], atol=1e-3)
    stored = load_checkpoint(checkpoint).categories
    assert read.categories.names == stored.names
    assert [stored.ids[n] for truth in read.truths for n in truth.labels] == [w["category_id"] for w in wanted]
    before = {f: f.read_bytes() for f in (tmp_path / "yolo").rglob("*.txt")}
    assert "has labels already" in run("input=in", "output=yolo", "format=yolo", "score_threshold=0", code=2)
    assert before == {f: f.read_bytes() for f in (tmp_path / "yolo").rglob("*.txt")}


@pytest.mark.parametrize("form", ["coco", "csv", "label_studio"])
def test_two_predictions_are_not_mixed_in_one_folder(run, tmp_path, form):
    for name in ("one/a.png", "other/b.png"):
        write_picture(tmp_path / name)
    run("input=one", "output=out", f"format={form}")
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    for again in (form, "csv"):
        output = run("input=other", "output=out", f"format={again}", code=2)
        assert "output: out/" in output
        assert "is there already, and nothing is written over: choose another folder" in output
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before


def test_forms_that_images_cannot_have_are_refused(run, tmp_path):
    for name in ("a.png", "a.jpg"):
        write_picture(tmp_path / "in" / name)
    assert "in/a.jpg and in/a.png would have one file of labels, a.txt" in run("input=in", "format=yolo", code=2)
    assert "image_prefix: only tasks of format=label_studio" in run("input=in", "image_prefix=x", code=2)


@pytest.mark.parametrize("names", [("left", "right"), ()])
def test_landmarks_are_in_every_form(tmp_path, names):
    """Two images, the first without a detection; the points are named where the data name them."""
    categories = Categories(("face",), (7,), names)
    points = np.array([[[10.0, 12], [30.5, 50]], [[-4.0, 8], [20, 24]]])  # one lies outside
    boxes = np.array([[5.0, 6, 40, 20], [0, 0, 32, 24]])
    found = Results(np.full(2, 2), np.full(2, 7), boxes, np.array([0.9, 0.4]), points)
    for form in ("csv", "yolo", "label_studio"):
        (tmp_path / form).mkdir()
        writer = detection_writer(form, Place(tmp_path / form, tmp_path), categories)
        for number, results in enumerate((found.select(slice(0)), found), start=1):
            writer.add(results, ImageMeta(number, f"{tmp_path}/{number}.png", (48, 64), (48, 64)), number, [])
        writer.close()
    shown = names or ("point1", "point2")
    with open(tmp_path / "csv" / "detections.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [[[float(r[f"{n}_{side}"]) for side in "xy"] for n in shown] for r in table] == points.tolist()

    assert (tmp_path / "yolo" / "labels" / "1.txt").read_text() == ""
    lines = [line.split() for line in (tmp_path / "yolo" / "labels" / "2.txt").read_text().splitlines()]
    places = np.array([line[5:] for line in lines], float).reshape(2, 2, 3)
    np.testing.assert_allclose(places[..., :2] * (64, 48), points, atol=1e-4)
    assert (places[..., 2] == 2).all()
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text()) == {"names": {0: "face"}, "kpt_shape": [2, 3]}
    for name in ("1.png", "2.png"):
        write_picture(tmp_path / "pictures" / name)
    read = YoloDataset(root=str(tmp_path / "yolo"), images=str(tmp_path / "pictures"), labels="labels")
    np.testing.assert_allclose(read.truths[1].boxes, boxes, atol=1e-4)

    tasks = json.loads((tmp_path / "label_studio" / "label_studio.json").read_text())
    assert tasks[0]["predictions"][0]["result"] == []
    regions = [r for r in tasks[1]["predictions"][0]["result"] if r["type"] == "keypointlabels"]
    assert [(r["parentID"], *r["value"]["keypointlabels"]) for r in regions] == [
        (f"box{i}", name) for i in range(2) for name in shown
    ]
    places = np.array([[r["value"][k] for k in "xy"] for r in regions]).reshape(2, 2, 2)
    np.testing.assert_allclose(places * (0.64, 0.48), points, atol=1e-9)
    interface = ElementTree.parse(tmp_path / "label_studio" / "label_studio.xml").getroot()
    (control,) = interface.findall("KeyPointLabels")
    assert {r["from_name"] for r in regions} == {control.get("name")}
    assert [label.get("value") for label in control] == list(shown)
