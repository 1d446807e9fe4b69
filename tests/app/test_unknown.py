"""``calibrate unknown=...`` and ``predict unknown=true``: what is like no known class is said to be unknown."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

import detkit
from detkit.app import train
from detkit.app.calibrate import tool as calibrate
from detkit.app.calibrate.found import RightCosines
from detkit.app.use import predict
from detkit.engine import load_checkpoint
from detkit.engine.state.checkpoint import save_checkpoint
from detkit.evaluation.errors import image_errors
from detkit.evaluation.results import Results
from detkit.models.cosine_regions import CosineRegions
from detkit.models.unknown import Recogniser, nearness
from detkit.structures import Categories, Detections, GroundTruth
from tests.app.test_configs import composed
from tests.app.tools import call
from tests.models.builders import build_model, images, small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A cosine head that has learnt next to nothing."""
    folder = tmp_path_factory.mktemp("run")
    cfg = composed(
        "experiment=quickstart", "debug=overfit", "device=cpu", f"data.root={folder / 'shapes'}", "callbacks={}",
        "data.train.image_size=96", "data.loader.train.batch_size=4", "trainer.steps=14", "schedule.warmup_steps=0",
        "loss@model.head.roi.cls_loss=NormalizedSoftmax",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, folder)
    trainer.fit()
    return folder / "last.pt"


def with_least(checkpoint, path, least):
    """A copy of ``checkpoint`` whose classes have the ``least`` cosines."""
    stored = load_checkpoint(checkpoint)
    known = len(stored.categories)
    calibration = {"thresholds": [0.0] * known, "aim": "nothing", "unknown": {"thresholds": [float(v) for v in least]}}
    save_checkpoint(path, dataclasses.replace(stored, calibration=calibration))
    return path


def predicted(checkpoint, monkeypatch, capsys, tmp_path, *more):
    image = next(checkpoint.parent.rglob("train_*.jpg"), None) or more[-1]
    out = tmp_path / f"p{len(list(tmp_path.iterdir()))}"
    call(
        predict.main, monkeypatch, capsys, f"checkpoint={checkpoint}", f"input={image}", "device=cpu",
        f"output={out}", "score_threshold=0", *more[:-1],
    )  # fmt: skip
    return json.loads((out / "detections.json").read_text()), cv2.imread(str(next(out.glob("*.png"))))


def test_predict_says_what_is_unknown_in_its_rows_and_pictures(checkpoint, tmp_path, monkeypatch, capsys):
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    free = with_least(checkpoint, tmp_path / "free.pt", [-1.0] * 6)
    plain, picture = predicted(free, monkeypatch, capsys, tmp_path, image)
    assert not any("unknown" in row or "cosine" in row for row in plain), "an option, off unless asked for"
    known, same = predicted(free, monkeypatch, capsys, tmp_path, "unknown=true", image)
    assert [{k: v for k, v in row.items() if k not in ("cosine", "unknown")} for row in known] == plain
    assert not any(row["unknown"] for row in known)
    assert np.array_equal(picture, same)

    cosines = sorted(row["cosine"] for row in known)
    middle = cosines[len(cosines) // 2]
    some = with_least(checkpoint, tmp_path / "some.pt", [middle] * 6)
    drawn = []
    draw = predict.draw_boxes
    monkeypatch.setattr(predict, "draw_boxes", lambda *given, **more: drawn.append(given) or draw(*given, **more))
    rows, other = predicted(some, monkeypatch, capsys, tmp_path, "unknown=true", image)
    ((_, _, labels, names, _),) = drawn
    assert [names[label] == "unknown" for label in labels] == [row["unknown"] for row in rows if row["score"] > 0]
    assert all(row["unknown"] == (row["cosine"] < middle) for row in rows)
    assert {row["unknown"] for row in rows} == {True, False}
    assert sum(not row["unknown"] for row in rows) == sum(row["cosine"] >= middle for row in known), "known ones stay"
    assert not np.array_equal(picture, other)

    found = detkit.load(some, "unknown=true", device="cpu").predict(image)
    assert found.unknown.tolist() == [row["unknown"] for row in rows]
    assert [name == "unknown" for name in found.names] == found.unknown.tolist()
    assert not detkit.load(some, device="cpu").predict(image).unknown.any()
    assert len(found.above(0.99).unknown) == len(found.above(0.99))


def test_predict_without_thresholds_for_it_says_how_to_get_them(checkpoint, tmp_path, monkeypatch, capsys):
    image = next(checkpoint.parent.rglob("train_*.jpg"))
    said = call(
        predict.main, monkeypatch, capsys, f"checkpoint={checkpoint}", f"input={image}", "device=cpu",
        f"output={tmp_path / 'p'}", "unknown=true", code=1,
    )  # fmt: skip
    assert "calibrate it with unknown=0.05 and give the copy" in said


def test_a_form_without_a_place_for_it_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    image = next(checkpoint.parent.rglob("*.jpg"))
    said = call(
        predict.main, monkeypatch, capsys, f"checkpoint={checkpoint}", f"input={image}", "device=cpu",
        f"output={tmp_path / 'p'}", "unknown=true", "format=csv", code=2,
    )  # fmt: skip
    assert "unknown=true: only format=coco has a place for it, not format=csv" in said


def test_calibrate_finds_the_least_cosines(checkpoint, tmp_path, monkeypatch, capsys):
    start = (
        *(calibrate.main, monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", f"output={tmp_path / 'c'}"),
        *("target.false_alarms=0.9", "delta=0.5", "split=train"),
    )
    assert "unknown: must lie between 0 and 1, not 1" in call(*start, "unknown=1", code=2)
    assert "unknown=0.0001 needs 9999 right detections at least" in call(*start, "unknown=0.0001", code=1)
    said = call(*start, "unknown=0.3")
    assert "of known objects 0.3 at most" in said
    copy = load_checkpoint(tmp_path / "c" / "last.pt")
    stored = copy.calibration["unknown"]
    assert len(stored["thresholds"]) == len(copy.categories)
    assert stored == json.loads((tmp_path / "c" / "calibration.json").read_text())["unknown"]
    assert sum(stored["counts"]) >= 3


@pytest.fixture(scope="module")
def regions():
    torch.manual_seed(0)
    made = [*small("faster_rcnn_fpn"), "loss@model.head.roi.cls_loss=CosFace"]
    return CosineRegions.of(build_model("faster_rcnn_fpn", Categories(("a", "b"), (1, 2)), made).eval())


BOXES = torch.tensor([[4.0, 4, 30, 40], [5, 4, 31, 40], [10, 10, 60, 60], [40, 40, 60, 62]])


def noise(*sizes):
    batch = images(*sizes)
    batch.pixels.copy_(torch.randint(0, 256, batch.pixels.shape, generator=torch.Generator().manual_seed(1)))
    return batch


def test_the_threshold_is_that_of_the_nearest_class_and_an_unknown_thing_is_said_once(regions):
    batch = noise((64, 64), (64, 64))
    found = [
        Detections(BOXES, torch.tensor([0.3, 0.9, 0.5, 0.2]), torch.tensor([0, 0, 1, 1])),
        Detections(BOXES[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64)),
    ]
    (best, nearest), (none, _) = nearness(regions, batch, found)
    assert len(none) == 0
    expected = regions.cosines(batch, [BOXES, BOXES[:0]])[0]
    assert torch.equal(best, expected.max(1).values)
    least = np.array([-1.0, -1.0])
    least[int(nearest[0])] = 1.0
    first, second = Recogniser(regions, least)(batch, found)
    would_be = nearest == nearest[0]
    assert len(second.detections) == 0
    assert first.unknown.tolist() == would_be[first_kept(would_be)].tolist()
    assert first.detections.scores.tolist() == pytest.approx(found[0].scores[first_kept(would_be)].tolist())
    every, _ = Recogniser(regions, np.array([1.0, 1.0]))(batch, found)
    assert every.unknown.all()
    assert every.detections.scores.tolist() == pytest.approx([0.9, 0.5, 0.2]), "the two that overlap are one"
    assert torch.equal(every.detections.labels, torch.tensor([0, 1, 1]))


def first_kept(would_be):
    """All but the first box, if both it and the better one over it are unknown."""
    kept = torch.ones(4, dtype=torch.bool)
    kept[0] = not (would_be[0] and would_be[1])
    return kept


def test_only_right_detections_count_and_each_with_its_own_cosine(regions):
    batch = noise((64, 64))
    found = Detections(BOXES, torch.tensor([0.3, 0.9, 0.5, 0.2]), torch.tensor([0, 0, 1, 1]))
    truth = GroundTruth(
        image_id=0, file="0.png", size=(64, 64), boxes=np.array([[10.0, 10, 50, 50], [40, 40, 20, 22]]),
        labels=np.array([1, 1]), crowd=np.zeros(2, bool), area=np.array([2500.0, 440]), annotation_ids=np.arange(2),
    )  # fmt: skip
    categories = Categories(("a", "b"), (1, 2))
    boxes = BOXES.double().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    results = Results(np.zeros(4, np.int64), np.array([1, 1, 2, 2]), boxes, found.scores.double().numpy())
    collected = RightCosines(regions.detector)
    collected.add(batch, [found], [image_errors(truth, results, categories)])
    ((best, _),) = nearness(regions, batch, [found])
    right = sorted(best[[2, 3]].double().tolist())
    assert sorted(np.concatenate(collected._best)) == pytest.approx(right)
    assert collected.least(2, 0.34).values.min() == pytest.approx(right[0]), "of two the lowest: j = 1"
    assert collected.least(2, 0.67).counts.sum() == 2
