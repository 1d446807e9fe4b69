"""``tools/explain.py``: the sums agree with an independent count, every error is named, the page holds together."""

import contextlib
import io
import json
import re

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.app import train
from detkit.app.explain import tool as explain
from detkit.app.explain.found import Examined
from detkit.app.explain.found import explain as explain_examined
from detkit.app.explain.page import explanation_page
from detkit.app.use import evaluate
from detkit.evaluation.synthetic import synthetic_set
from tests.app.test_configs import composed
from tests.app.tools import call
from tests.evaluation.plain_count import count
from tests.evaluation.test_errors import judged


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A detector that has learnt next to nothing: it makes nearly every mistake."""
    folder = tmp_path_factory.mktemp("run")
    cfg = composed(
        "experiment=quickstart", "debug=overfit", "device=cpu", f"data.root={folder / 'shapes'}", "callbacks={}",
        "data.train.image_size=96", "data.loader.train.batch_size=4", "trainer.steps=14", "schedule.warmup_steps=0",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, folder)
    trainer.fit()
    return folder / "last.pt"


@pytest.fixture(scope="module")
def report(checkpoint):
    """What the tool writes, called as it is from the command line."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr("sys.argv", ["explain.py", f"checkpoint={checkpoint}", "device=cpu", "score_threshold=0.15"])
        explain.main()
    folder = checkpoint.parent / "explanation_last_val+score_threshold-0.15"
    text = (folder / "explanation.json").read_text()
    return json.loads(text), (folder / "explanation.html").read_text(), out.getvalue()


def counted_by_pycocotools(checkpoint, threshold):
    """Found objects and false alarms at IoU 0.5, from nothing but the annotations and plain evaluation's detections."""
    folder = next(p.parent for p in checkpoint.parent.glob("shapes/*/train.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "train.json"))
        rows = json.loads((checkpoint.parent / "evaluation_last_val" / "detections.json").read_text())
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [1000]
        evaluation.evaluate()
    found = wrong = 0
    for entry in filter(None, evaluation.evalImgs):
        shown = np.array(entry["dtScores"]) >= threshold
        matched = entry["dtMatches"][0] > 0
        found += int((shown & matched).sum())
        wrong += int((shown & ~matched & ~entry["dtIgnore"][0].astype(bool)).sum())
    return len(truth.anns), found, wrong


def test_the_sums_agree_with_an_independent_count(checkpoint, report, monkeypatch, capsys):
    call(evaluate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu")
    numbers, _, _ = report
    objects, found, wrong = counted_by_pycocotools(checkpoint, 0.15)
    assert (numbers["objects"], numbers["found"]) == (objects, found)
    assert sum(numbers["missed_by_cause"].values()) == objects - found == len(numbers["missed"])
    assert sum(numbers["false_alarms_by_cause"].values()) == wrong == len(numbers["false_alarms"])
    assert 0 < found < objects
    assert wrong > 0
    assert len(numbers["missed_by_cause"]) > 1
    ap50 = json.loads((checkpoint.parent / "evaluation_last_val" / "evaluation.json").read_text())["metrics"]["AP50"]
    assert numbers["AP50"] == pytest.approx(ap50, abs=1e-9)


def as_rows(results):
    columns = (results.image_ids, results.category_ids, results.boxes, results.scores)
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_each_error_is_the_one_that_plain_loops_find(seed, threshold):
    """Which objects are missed, and of what kind each false alarm is, on generated detections with crowds."""
    made = synthetic_set(
        num_images=12, num_categories=3, detections_per_image=24, objects_per_image=7, crowd_share=0.1, size=200,
        seed=seed,
    )  # fmt: skip
    results = made.results
    results.category_ids[::5] = results.category_ids[::5] % 3 + 1  # near ones have the right class otherwise
    images = judged(made, results)
    report = explain_examined([Examined(image, None) for image in images], made.categories, threshold).to_dict("")
    annotations = [
        {"id": int(i), "image_id": t.image_id, "category_id": int(k) + 1, "bbox": box, "iscrowd": int(crowd)}
        for t in made.truths
        for i, k, box, crowd in zip(t.annotation_ids, t.labels, t.boxes.tolist(), t.crowd, strict=True)
    ]
    objects, found, missed, alarms = count(annotations, as_rows(results), threshold)
    assert (report["objects"], report["found"]) == (objects, found)
    assert {row["annotation_id"] for row in report["missed"]} == missed
    assert sum(report["missed_by_cause"].values()) == len(missed) == len(report["missed"])
    assert report["false_alarms_by_cause"] == alarms
    assert sum(alarms.values()) == len(report["false_alarms"])
    assert len(alarms) == 5 or threshold > 0.5, "all kinds occur"


def test_every_error_is_named_by_file_and_id(checkpoint, report):
    numbers, _, _ = report
    annotations = json.loads(next(checkpoint.parent.glob("shapes/*/train.json")).read_text())
    owner = {a["id"]: a["image_id"] for a in annotations["annotations"]}
    files = {i["id"]: i["file_name"] for i in annotations["images"]}
    for row in numbers["missed"]:
        assert owner[row["annotation_id"]] == row["image_id"]
        assert row["file"].endswith(files[row["image_id"]])
        assert row["text"].startswith(row["cause"].partition(" (")[0])
    assert len({row["annotation_id"] for row in numbers["missed"]}) == len(numbers["missed"])
    for row in numbers["false_alarms"]:
        assert row["score"] >= 0.15
        assert row["file"].endswith(files[row["image_id"]])


def test_the_page_holds_together(report):
    numbers, html, out = report
    for words in (*numbers["missed_by_cause"], *numbers["false_alarms_by_cause"]):
        assert words in html
        assert words in out
    assert "What to fix first" in html
    assert numbers["missed"][0]["file"].rpartition("/")[2] in html
    assert not re.search(r"(src|href)=\"(?!data:)", html), "it needs no other file and no network"
    for tag in ("section", "div", "table", "figure", "svg", "main"):
        assert html.count(f"<{tag}>") + html.count(f"<{tag} ") == html.count(f"</{tag}>"), tag
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    assert 2 < len(pictures) <= 6 * (len(numbers["missed_by_cause"]) + len(numbers["false_alarms_by_cause"]))


@pytest.mark.parametrize("num", [20, 150])
def test_the_page_of_many_classes_stays_small(num):
    """The matrix has the 100 that are confused most, the curves those with most objects; of few classes it has all."""
    made = synthetic_set(num_images=40, num_categories=num, detections_per_image=30, size=200)
    report = explain_examined([Examined(image, None) for image in judged(made, made.results)], made.categories, 0.0)
    html = explanation_page(report, None, "", 0)
    matrix = re.findall("<tr><td>[^<]*</td>", html.partition("<h2>Confusion</h2>")[2])
    assert len(matrix) == min(num, 100) + 1
    assert html.count("<polyline") == 20
    counts = np.array(report.to_dict("")["confusion"])[:-1, :-1]
    np.fill_diagonal(counts, 0)
    errors = counts.sum(axis=0) + counts.sum(axis=1)
    shown = [int(row.removeprefix("<tr><td>class ").removesuffix("</td>")) for row in matrix[:-1]]
    assert shown == sorted(shown)
    assert errors[shown].sum() == np.sort(errors)[::-1][:100].sum() > 0
    assert ("of 150 classes that are confused most" in html) == (num == 150)


def test_watching_leaves_the_detections_alone(checkpoint, report, monkeypatch, capsys):
    """The best F1 is chosen where no threshold is given; fewer pictures where asked."""
    folder = checkpoint.parent / "again"
    call(
        explain.main, monkeypatch, capsys,
        f"checkpoint={checkpoint}", "device=cpu", f"output={folder}", "num_pictures=0", "data.loader.val.batch_size=3",
    )  # fmt: skip
    again = json.loads((folder / "explanation.json").read_text())
    assert "<figure>" not in (folder / "explanation.html").read_text()
    assert again["score_threshold"] != 0.15
    assert again["cost_in_AP50"] == pytest.approx(report[0]["cost_in_AP50"], abs=1e-6)


def write_coco(folder, names, annotations):
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((64, 64, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))


def test_mistakes_get_one_clear_line(checkpoint, tmp_path, monkeypatch, capsys):
    start = (explain.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu")
    shapes = ["circle", "square", "triangle", "star", "cross", "ring"]
    write_coco(tmp_path / "empty", shapes, [])
    output = call(*start, "data=coco", f"data.root={tmp_path / 'empty'}", code=2)
    assert "error: data.val: none of its 1 images has an object to find: nothing can be missed" in output
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    write_coco(tmp_path / "dogs", ["dog"], [box])
    output = call(*start, "data=coco", f"data.root={tmp_path / 'dogs'}", code=2)
    assert "error: data.val has other classes than the model: missing ['circle'" in output
    assert "score_threshold: must lie in [0, 1], not 1.5" in call(*start, "score_threshold=1.5", code=2)
    assert "num_pictures: must be 0 or more, not -1" in call(*start, "num_pictures=-1", code=2)
    assert "split: must be one of 'train', 'val', not 'test'" in call(*start, "split=test", code=2)
    assert "nowhere.pt: there is no such file" in call(
        explain.main, monkeypatch, capsys, "checkpoint=nowhere.pt", code=1
    )


@pytest.mark.parametrize(
    "views", [["tta=tiles", "tta.tile=64"], ["tta=multiscale_flip", "tta/merge=WBF"]], ids=["tiles", "views"]
)
def test_several_views_are_explained_as_they_are_evaluated(views, checkpoint, tmp_path, monkeypatch, capsys):
    start = (f"checkpoint={checkpoint}", "device=cpu", "data.loader.val.batch_size=3", *views)
    call(evaluate.main, monkeypatch, capsys, *start, f"output={tmp_path / 'evaluation'}")
    output = call(explain.main, monkeypatch, capsys, *start, f"output={tmp_path / 'why'}", "score_threshold=0.1")
    numbers = json.loads((tmp_path / "why" / "explanation.json").read_text())
    evaluated = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert numbers["AP50"] == pytest.approx(evaluated["metrics"]["AP50"], abs=1e-6)
    assert "merged by" in numbers["source"]
    assert numbers["missed_by_cause"].get("lost in the merge of views", 0) > 0
    assert "lost in the merge of views" in output
