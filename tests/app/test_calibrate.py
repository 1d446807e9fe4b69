"""``tools/calibrate.py``: what it promises is in the copy of the checkpoint, and every tool keeps to it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import detkit
from detkit.app.calibrate import tool as calibrate
from detkit.app.calibrate.found import Calibration
from detkit.app.explain import tool as explain
from detkit.app.pages import html as page
from detkit.app.publish.tool import published
from detkit.app.use import evaluate, predict
from detkit.engine import load_checkpoint
from detkit.engine.state.checkpoint import save_checkpoint
from detkit.engine.state.published import write_published
from detkit.evaluation.reliability import ScoreMap
from detkit.evaluation.risk_control import Judged
from detkit.evaluation.thresholds import Aim
from detkit.models import Detector
from detkit.models.calibrated import Calibrated, check_thresholds
from detkit.structures import Detections
from tests.app.test_explain import checkpoint  # noqa: F401 - a fixture: a small run on shapes
from tests.app.tools import call

REACHED = ("target.false_alarms=0.9", "delta=0.5", "device=cpu")


@pytest.fixture
def calibrated(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """The folder of a calibration, and what the tool said."""
    start = (calibrate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", *REACHED)
    return tmp_path / "out", call(*start, "scores=isotonic", f"output={tmp_path / 'out'}")


def test_the_copy_holds_thresholds_and_every_tool_keeps_to_them(checkpoint, calibrated, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder, said = calibrated
    assert "false alarms in at most 0.9 of the images, with probability 0.5" in " ".join(said.split())
    assert f"next: python tools/predict.py checkpoint={folder / 'last.pt'}" in said
    before, after = load_checkpoint(checkpoint), load_checkpoint(folder / "last.pt")
    assert before.calibration is None, "the given file stays"
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.weights.items())
    found = json.loads((folder / "calibration.json").read_text())
    thresholds = after.calibration["thresholds"]
    assert thresholds == [row["threshold"] for row in found["classes"]]
    assert "<svg" in (folder / "calibration.html").read_text()

    image = next(checkpoint.parent.rglob("train_*.jpg"))
    plain, kept = (detkit.load(path, device="cpu").predict(image) for path in (checkpoint, folder / "last.pt"))
    wanted = plain.scores >= np.array(thresholds)[plain.labels]
    assert np.allclose(kept.boxes, plain.boxes[wanted])
    to_probability = ScoreMap.from_dict(after.calibration["scores"])
    assert np.allclose(kept.scores, to_probability(plain.scores[wanted]), atol=1e-6)

    output = call(
        evaluate.main, monkeypatch, capsys, f"checkpoint={folder / 'last.pt'}", "device=cpu", f"output={tmp_path / 'e'}"
    )
    assert "left out is what is below the thresholds for false alarms in at most 0.9" in output
    rows = json.loads((tmp_path / "e" / "detections.json").read_text())
    call(evaluate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'f'}")
    assert len(rows) < len(json.loads((tmp_path / "f" / "detections.json").read_text()))


def test_a_copy_is_not_written_over_a_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    kept = shutil.copy(checkpoint, tmp_path / "kept.pt")
    words = [calibrate.main, monkeypatch, capsys, f"checkpoint={kept}", *REACHED, f"output={tmp_path}"]
    said = call(*words, code=2)
    assert f"output: {kept} is there, and a copy is not written over it: choose another folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pt"]
    again = [*words[:-1], f"output={tmp_path / 'out'}"]
    call(*again)
    call(*again)  # its own copy it may write anew
    of_copy = [*words[:3], f"checkpoint={tmp_path / 'out' / 'kept.pt'}", *REACHED, f"output={tmp_path / 'out'}"]
    assert "kept.pt is there, and a copy is not written over it" in call(*of_copy, code=2)


def test_the_copy_of_a_published_file_is_a_checkpoint(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    stored = load_checkpoint(checkpoint)
    write_published(tmp_path / "mine.safetensors", stored.weights, published(stored, "CC0-1.0"))
    data = f"data.root={next(checkpoint.parent.rglob('train.json')).parent.parent}"
    start = (calibrate.main, monkeypatch, capsys, f"checkpoint={tmp_path / 'mine.safetensors'}", *REACHED, data)
    said = call(*start, "data=shapes_small", f"output={tmp_path / 'out'}")
    assert f"checkpoint={tmp_path / 'out' / 'mine.pt'}" in said
    assert load_checkpoint(tmp_path / "out" / "mine.pt").calibration is not None


def test_what_cannot_be_promised_is_told(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    start = (calibrate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'o'}")
    for target in ([], ["target.precision=0.9", "target.recall=0.5"]):
        assert "target: one of precision, recall, false_alarms is wanted" in call(*start, *target, code=2)
    assert "target.precision: must lie between 0 and 1, not 1" in call(*start, "target.precision=1", code=2)
    assert "delta: must lie between 0 and 1, not 0" in call(*start, "target.precision=0.9", "delta=0", code=2)
    assert "seed: must be 0 or more, not -1" in call(*start, "target.precision=0.9", "seed=-1", code=2)
    assert "needs 459 images at least" in call(*start, "target.recall=0.99", "delta=0.01", code=1)
    output = call(*start, "target.recall=0.9", "model.head.roi.selector.score_threshold=1", code=1)
    assert "recall of at least 0.9, with probability 0.9: the detector finds nothing in these" in " ".join(
        output.split()
    )
    assert not (tmp_path / "o").exists(), "nothing is left behind"


def test_a_class_with_few_images_has_the_shared_threshold():
    """200 images of class 0, where all from 0.5 on are right and none below; 3 of class 1."""
    rng = np.random.default_rng(0)
    images = np.concatenate([np.repeat(np.arange(200), 4), [0, 1, 2]])
    labels = np.concatenate([np.zeros(800, int), np.ones(3, int)])
    scores = rng.random(803)
    judged = Judged(
        200, images, labels, scores, scores >= 0.5, images, labels, np.where(scores >= 0.5, scores, -np.inf)
    )
    found = Calibration.of(judged, ("many", "few"), Aim("precision", 0.1, 0.1), None, seed=0)
    many, few = found.thresholds.rows
    assert (many.own, few.own) == (True, False)
    assert few.why.startswith("3 images, 22 at least") or "images, 22 at least are needed" in few.why
    precision, recall = found.reached(0)
    shown = (labels == 0) & (scores >= many.threshold)
    assert precision == pytest.approx((scores[shown] >= 0.5).mean())
    assert recall == pytest.approx((scores[labels == 0] >= max(0.5, many.threshold)).sum() / 800)


class Fixed(Detector):
    def forward(self, images, targets=None):
        return [Detections(torch.zeros(4, 4), torch.tensor([0.9, 0.5, 0.5, 0.2]), torch.tensor([0, 1, 0, 1]))]


def test_a_detection_at_its_threshold_stays():
    (found,) = Calibrated(Fixed(), [0.6, 0.5])(None)
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.labels.tolist() == [0, 1]
    (found,) = Calibrated(Fixed(), [0.6, 0.5], lambda scores: scores / 2)(None)
    assert found.scores.tolist() == pytest.approx([0.45, 0.25]), "thresholds are in the detector's own scores"
    assert not Calibrated(Fixed(), [0.6, 0.5]).state_dict()


@pytest.mark.parametrize("thresholds", [None, [0.5], [0.5, 2], [0.5, "x"], [0.5, float("nan")]])
def test_thresholds_of_unknown_origin_are_looked_at(thresholds):
    with pytest.raises(ValueError, match=r"x\.pt: its thresholds are not 2 numbers in \[0, 1\]"):
        check_thresholds({"thresholds": thresholds}, 2, "x.pt")


def test_predict_takes_the_calibrated_copy(calibrated, checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    folder, _ = calibrated
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    output = call(
        predict.main, monkeypatch, capsys, f"checkpoint={folder / 'last.pt'}", f"input={image}", "device=cpu",
        f"output={tmp_path / 'p'}", "tta=flip",
    )  # fmt: skip
    assert "left out is what is below the thresholds" in output
    assert (tmp_path / "p" / "detections.json").is_file()


def rows_of(folder):
    return json.loads((folder / "detections.json").read_text())


def key(row):
    return row["image_id"], row["category_id"], *(round(v, 3) for v in row["bbox"])


@pytest.fixture
def thresholded(checkpoint, tmp_path):  # noqa: F811
    """A copy whose classes have thresholds of their own, at quantiles of what the detector says of its images."""
    stored = load_checkpoint(checkpoint)
    values = np.linspace(0.06, 0.3, len(stored.categories))[::-1].tolist()
    path = tmp_path / "own.pt"
    calibration = {"thresholds": values, "aim": "a test", "scores": None, "tta": None}
    save_checkpoint(path, dataclasses.replace(stored, calibration=calibration))
    return path, dict(zip(stored.categories.ids, values, strict=True))


@pytest.mark.parametrize("tool", ["evaluate", "predict"])
def test_evaluate_and_predict_keep_what_reaches_the_threshold_of_its_class(
    tool,
    checkpoint,  # noqa: F811
    thresholded,
    tmp_path,
    monkeypatch,
    capsys,
):
    path, least = thresholded
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted(checkpoint.parent.rglob("train_*.jpg"))[:6]:  # predict draws each
        shutil.copy(image, images)
    found = []
    for name, of in (("all", checkpoint), ("kept", path)):
        more = [f"input={images}"] if tool == "predict" else []
        main = predict.main if tool == "predict" else evaluate.main
        call(main, monkeypatch, capsys, f"checkpoint={of}", "device=cpu", f"output={tmp_path / name}", *more)
        found.append(rows_of(tmp_path / name))
    every, kept = found
    wanted = [row for row in every if row["score"] >= least[row["category_id"]]]
    assert 0 < len(wanted) < len(every)
    assert sorted(map(key, kept)) == sorted(map(key, wanted))


def test_explain_keeps_to_them_too(checkpoint, thresholded, monkeypatch, capsys, tmp_path):  # noqa: F811
    path, least = thresholded
    counts = []
    for name, of in (("all", checkpoint), ("kept", path)):
        start = (monkeypatch, capsys, f"checkpoint={of}", "device=cpu", f"output={tmp_path / name}")
        call(explain.main, *start, "score_threshold=0")
        said = json.loads((tmp_path / name / "explanation.json").read_text())
        counts.append(said["found"] + len(said["false_alarms"]))
    call(evaluate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'e'}")
    rows = rows_of(tmp_path / "e")
    assert counts == [len(rows), sum(row["score"] >= least[row["category_id"]] for row in rows)]


def test_the_curves_of_the_page_are_means_over_images():
    """Against plain loops over images; three images with none, one and several detections."""
    images, labels = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 0, 0, 1, 1])
    scores, right = np.array([0.91, 0.51, 0.31, 0.71, 0.21, 0.95]), np.array([1, 0, 1, 0, 1, 0], bool)
    object_images = np.array([0, 0, 2, 3])
    object_scores = np.array([0.91, 0.31, 0.21, -np.inf])
    judged = Judged(4, images, labels, scores, right, object_images, np.array([0, 0, 1, 0]), object_scores)
    curves = Calibration(None, judged, None).curves()
    for name in ("precision", "recall"):
        drawn = dict(zip(curves[name].x.tolist(), range(len(curves[name].x)), strict=True))
        for x, place in drawn.items():
            values = []
            for image in range(4):
                if name == "precision":
                    shown = [bool(r) for i, s, r in zip(images, scores, right, strict=True) if i == image and s >= x]
                else:
                    shown = [s >= x for i, s in zip(object_images, object_scores, strict=True) if i == image]
                values += [sum(shown) / len(shown)] if shown else []
            assert curves[name].y[place] == pytest.approx(np.mean(values)), (name, x)
            wide = 1.96 * np.std(values) / len(values) ** 0.5
            assert curves[name].low[place] == pytest.approx(max(0, np.mean(values) - wide))
            assert curves[name].high[place] == pytest.approx(min(1, np.mean(values) + wide))
        assert len(drawn) > 40 - 5 * (name == "precision")


def test_a_band_is_drawn_from_its_low_to_its_high_line():
    """At 50 to 432 px from left to right and 264 to 8 px upwards: there along the low line, back along the high one."""
    drawn = page.curves({"line": ([0, 1], [0.5, 0.5])}, "x", "y", {"line": ([0.25, 0.25], [0.75, 1.0])})
    assert 'points="50.0,200.0 432.0,200.0 432.0,8.0 50.0,72.0"' in drawn
    assert "<polygon" not in page.curves({"line": ([0, 1], [0.5, 0.5])}, "x", "y")


def test_views_that_the_thresholds_were_not_measured_with_are_told(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    start = (calibrate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", *REACHED)
    call(*start, f"output={tmp_path / 'plain'}")
    call(*start, f"output={tmp_path / 'flipped'}", "tta=flip")
    assert load_checkpoint(tmp_path / "plain" / "last.pt").calibration["tta"] is None
    flipped = "2 views of each image (scales 1, each mirrored too), merged by NMS"
    assert load_checkpoint(tmp_path / "flipped" / "last.pt").calibration["tta"] == flipped
    for measured, with_flip, without in (
        ("plain", "measured with the plain detector (tta=null); with 2 views of each image", None),
        ("flipped", None, f"measured with {flipped}; with the plain detector (tta=null) scores differ"),
    ):
        for more, expected in ((["tta=flip"], with_flip), ([], without)):
            said = call(
                predict.main, monkeypatch, capsys, f"checkpoint={tmp_path / measured / 'last.pt'}", f"input={image}",
                "device=cpu", f"output={tmp_path / 'p'}", *more,
            )  # fmt: skip
            said = " ".join(said.split())
            assert (expected in said) if expected else ("thresholds were measured with" not in said)
            shutil.rmtree(tmp_path / "p")


def test_what_predict_draws_is_compared_after_the_map(checkpoint, tmp_path, monkeypatch, capsys):  # noqa: F811
    """score_threshold is of the scores that the rows show: mapped ones where there is a map."""
    stored = load_checkpoint(checkpoint)
    half = ScoreMap("isotonic", np.array([0.0, 1.0]), np.array([0.0, 0.5])).to_dict()
    calibration = {"thresholds": [0.0] * len(stored.categories), "aim": "a test", "scores": half, "tta": None}
    save_checkpoint(tmp_path / "half.pt", dataclasses.replace(stored, calibration=calibration))
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    drawn = []
    draw = predict.draw_boxes
    monkeypatch.setattr(predict, "draw_boxes", lambda *given, **more: drawn.append(given[4]) or draw(*given, **more))
    for name, of, threshold in (("a", checkpoint, 0.1), ("b", tmp_path / "half.pt", 0.1), ("c", checkpoint, 0.2)):
        call(
            predict.main, monkeypatch, capsys, f"checkpoint={of}", f"input={image}", "device=cpu",
            f"output={tmp_path / name}", f"score_threshold={threshold}",
        )  # fmt: skip
    plain, mapped, twice = (sorted(scores.tolist()) for scores in drawn)
    assert mapped == pytest.approx([s / 2 for s in twice])
    assert len(mapped) < len(plain)
