"""Flowing boxes through the tools: a run goes on in the same bits, a checkpoint takes other steps and boxes."""

import json

import pytest
import torch

from detkit.app import train
from detkit.app.audit import tool as audit
from detkit.app.explain import tool as explain
from detkit.app.use import evaluate
from detkit.engine.state.checkpoint import load_checkpoint
from detkit.structures import ImageMeta, Images
from tests.app.test_configs import composed
from tests.app.tools import call, gone_on, trainer_in


def overrides(data):
    return [
        "experiment=flow/shapes", f"data.root={data}", "data.train.num_train=8",
        "data.train.num_val=3", "model.backbone.width=8", "model.neck.out_channels=16", "model.head.decoder.width=16",
        "model.head.num_boxes=10",
    ]  # fmt: skip


def small(folder, data, *more):
    return trainer_in(folder, *overrides(data), "model.head.selector.score_threshold=0.0", *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    small(folder / "run", folder / "data", "trainer.ema_decay=0.9").fit()
    return folder


def test_a_run_goes_on_in_the_same_bits_with_its_average(run):
    half, one, two = gone_on(run / "run", small(run / "again", run / "data", "trainer.ema_decay=0.9"))
    for a, b in ((one.weights, two.weights), (one.detector, two.detector)):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(one.weights[name], one.detector[name]) for name in one.weights), "the average differs"
    assert any(not torch.equal(one.weights[name], half.weights[name]) for name in one.weights)


def scored(run, monkeypatch, capsys, *more):
    folder = run / "_".join(["e", *(m.replace("/", "") for m in more)])
    start = [monkeypatch, capsys, f"checkpoint={run / 'run' / 'last.pt'}", "device=cpu", f"output={folder}"]
    output = call(evaluate.main, *start, *more)
    return output, json.loads((folder / "detections.json").read_text())


def test_steps_and_boxes_are_chosen_on_a_stored_checkpoint(run, monkeypatch, capsys):
    few = ["model.head.selector.nms_iou=null", "model.head.ensemble=false", "model.head.selector.max_detections=10000"]
    _, plain = scored(run, monkeypatch, capsys, *few)
    _, more = scored(run, monkeypatch, capsys, *few, "model.head.steps=8")
    _, wide = scored(run, monkeypatch, capsys, *few, "model.head.test_boxes=160")
    assert more != plain
    assert len(wide) > 10 * len(plain) > 0


def test_the_order_and_number_of_images_in_a_batch_change_no_detection(run, monkeypatch, capsys):
    one, three = (scored(run, monkeypatch, capsys, f"data.loader.val.batch_size={n}")[1] for n in (1, 3))
    assert len(one) == len(three) > 0
    for a, b in zip(one, three, strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)


def test_an_evaluation_tells_how_straight_the_ways_are(run, monkeypatch, capsys):
    output, _ = scored(run, monkeypatch, capsys, "val_loss=true")
    assert "stat/flow_straightness" in output
    folder = run / "e_val_loss=true"
    assert 0 < json.loads((folder / "evaluation.json").read_text())["metrics"]["stat/flow_straightness"] < 10


def test_explain_traces_every_object_that_is_missed(run, monkeypatch, capsys):
    call(
        explain.main, monkeypatch, capsys, f"checkpoint={run / 'run' / 'last.pt'}", "device=cpu", "score_threshold=0.9"
    )
    found = json.loads((run / "run" / "explanation_last_val+score_threshold-0.9" / "explanation.json").read_text())
    causes = found["missed_by_cause"]
    assert sum(causes.values()) == found["objects"] - found["found"] > 0
    assert "not traced" not in causes


def audited(run, monkeypatch, capsys, *more):
    folder = run / "_".join(["audit", *more])
    output = call(audit.main, monkeypatch, capsys, *overrides(run / "data"), *more, f"hydra.run.dir={folder}")
    return output, json.loads((folder / "audit.json").read_text())


def test_audit_tells_the_objects_that_no_box_is_for(run, monkeypatch, capsys):
    """Those beyond the number of boxes, those smaller than any box, and what the head beside it assigns."""
    output, plain = audited(run, monkeypatch, capsys)
    objects = [truth for truth in annotated(run) if truth]
    total = sum(map(len, objects))
    assert (plain["rows"][0]["objects"], plain["rows"][0]["none"]) == (total, 0)
    assert plain["auxiliary"]["rows"][0]["objects"] == total
    assert "model.head.auxiliary: " in output
    _, few = audited(run, monkeypatch, capsys, "model.head.num_boxes=1", "model.head.auxiliary=null")
    beyond = sum(len(boxes) - 1 for boxes in objects)
    assert beyond > 0
    assert few["rows"][0]["none"] == few["rows"][0]["crowded_out"] == beyond
    assert "auxiliary" not in few
    assert any("model.head.num_boxes=2" in advice["change"] for advice in few["advice"])
    least = sorted(min(box[2:]) for boxes in objects for box in boxes)[total // 2]
    output, small = audited(run, monkeypatch, capsys, f"model.head.min_size={least}")
    short = sum(min(box[2:]) < least for boxes in objects for box in boxes)
    reason = f"with a side below {least:g} px, which no box has (model.head.min_size)"
    assert small["without"] == {reason: short}
    assert f"{short} {reason}" in output


def annotated(run):
    """The boxes x y w h of each training image."""
    (path,) = (run / "data").glob("*/train.json")
    truth = json.loads(path.read_text())
    return [[a["bbox"] for a in truth["annotations"] if a["image_id"] == i["id"]] for i in truth["images"]]


def test_features_of_another_head_are_taken_over(run, tmp_path, monkeypatch, caplog):
    cfg = composed(
        *overrides(run / "data")[:-2], "model/head=retinanet", "trainer.steps=1", "trainer.eval_every=null",
        f"init_from={run / 'run' / 'last.pt'}",
    )  # fmt: skip
    with caplog.at_level("WARNING", "detkit"):
        trainer, _ = train.build_trainer(cfg, tmp_path)
    stored, own = load_checkpoint(run / "run" / "last.pt").weights, trainer.detector.state_dict()
    shared = [n for n in stored if n.startswith(("backbone.", "neck.")) and n in own]
    assert shared
    assert all(torch.equal(stored[n], own[n]) for n in shared)
    assert "has a FlowHead, which is not used: RetinaHead starts anew" in caplog.text


def assert_a_batch_is_each_image_alone(detector, dtype, atol):
    """Images of other sizes, alone in a frame of the batch's: a network reads beyond an image's border, whoever
    has made the padding there."""
    detector.to(dtype).eval()
    detector.head.selector.score_threshold = 0.0
    draws = torch.Generator().manual_seed(0)
    sizes = ((160, 160), (96, 131), (128, 77), (50, 160))
    pixels = torch.zeros(4, 3, 160, 160, dtype=torch.uint8)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randint(0, 256, (3, h, w), generator=draws, dtype=torch.uint8)
    metas = tuple(ImageMeta(i, "", size, size, key=i) for i, size in enumerate(sizes))
    with torch.no_grad():
        together = detector(Images(pixels, metas))
        for i, found in enumerate(together):
            alone = detector(Images(pixels[i : i + 1], metas[i : i + 1]))[0]
            assert found.boxes.dtype == dtype
            assert len(found) == len(alone) > 0
            assert torch.equal(found.labels, alone.labels)
            torch.testing.assert_close(found.boxes, alone.boxes, rtol=0, atol=atol)
            torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-6)


def test_a_batch_is_each_image_alone_through_the_whole_detector(run):
    trainer = small(run / "whole", run / "data", "trainer.ema_decay=0.9")
    trainer.detector.load_state_dict(load_checkpoint(run / "run" / "last.pt").weights)
    assert_a_batch_is_each_image_alone(trainer.detector, torch.float64, 1e-5)


@pytest.mark.slow
def test_eight_images_are_learnt_by_heart(tmp_path):
    """From random weights, in 400 steps; four steps of 40 boxes at test. A batch is each of its images there too."""
    cfg = composed(
        "experiment=flow/shapes", "debug=overfit", "device=cpu", "callbacks={}", f"data.root={tmp_path}",
        "trainer.steps=400", "trainer.eval_every=400",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, tmp_path)
    trainer.fit()
    assert trainer.metrics["AP50"] >= 0.9
    assert_a_batch_is_each_image_alone(trainer.detector, torch.float64, 1e-5)
