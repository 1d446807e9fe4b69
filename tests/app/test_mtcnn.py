"""MTCNN and tiles through the tools: a run goes on in the same bits, explain names stages, evaluate looks at tiles."""

import json
import shutil

import pytest
import torch

from detkit.app.explain import tool as explain
from detkit.app.use import evaluate, predict
from tests.app.tools import call, gone_on, trainer_in


def small(folder, data):
    return trainer_in(
        folder, "experiment=mtcnn/shapes_tiny", f"data.root={data}", "data.train.num_train=8", "data.train.num_val=2",
        "model.samples_per_image=20",
        "model.thresholds=[0.3,0.3,0.05]", "model.max_candidates=50",  # some come through from the start
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtcnn")
    small(folder / "run", folder / "data").fit()
    return folder


def test_a_run_goes_on_in_the_same_bits(run):
    half, one, two = gone_on(run / "run", small(run / "again", run / "data"))
    one, two = one.weights, two.weights
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], half.weights[name]) for name in one)


def test_explain_attributes_what_is_missed_to_a_stage(run, monkeypatch, capsys):
    call(
        explain.main, monkeypatch, capsys, f"checkpoint={run / 'run' / 'last.pt'}", "device=cpu", "score_threshold=0.9"
    )
    found = json.loads((run / "run" / "explanation_last_val" / "explanation.json").read_text())
    causes = found["missed_by_cause"]
    assert sum(causes.values()) == found["objects"] - found["found"] > 0
    assert any(cause.endswith(("(P-Net)", "(R-Net)", "(O-Net)")) for cause in causes)
    assert "not traced" not in causes


def test_evaluate_and_predict_look_at_tiles(run, monkeypatch, capsys, tmp_path):
    checkpoint = shutil.copy(run / "run" / "last.pt", tmp_path / "last.pt")
    start = [monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", "tta=tiles", "tta.tile=64"]
    output = call(evaluate.main, *start, "tta.overlap=0.25", "tta/merge=OverSmaller")
    assert "tiles of 64 px, overlap 0.25, and the whole image made small, merged by OverSmaller" in output
    assert (tmp_path / "evaluation_last_val_tta" / "detections.json").exists()
    picture = next(run.glob("data/*/images/*"))
    call(predict.main, *start, f"input={picture}", f"output={tmp_path / 'found'}")
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= 128 for row in rows)
    assert "tta: overlap must be below 1, not 1.0" in call(evaluate.main, *start, "tta.overlap=1.0", code=2)
