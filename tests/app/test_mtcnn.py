"""MTCNN and tiles through the tools: a run goes on in the same bits, explain names stages, evaluate looks at tiles."""

import json
import shutil

import pytest
import torch

import detkit
from detkit.app import train
from detkit.app.explain import tool as explain
from detkit.app.inspect import data as inspect_data
from detkit.app.use import evaluate, predict
from detkit.data import ShapesDataset
from tests.app.test_configs import composed
from tests.app.tools import call, gone_on, trainer_in


def small(folder, data, *more):
    return trainer_in(
        folder, "experiment=mtcnn/shapes_tiny", f"data.root={data}", "data.train.num_train=8", "data.train.num_val=2",
        "model.samples_per_image=20",
        "model.thresholds=[0.3,0.3,0.05]", "model.max_candidates=50",  # some come through from the start
        *more,
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


@pytest.mark.parametrize(
    ("more", "among"),
    [([], "below threshold (O-Net)"), (["model.min_size=90"], "never proposed (P-Net)")],
    ids=["as trained", "objects below every window"],
)
def test_explain_attributes_all_that_is_missed_to_a_stage(run, monkeypatch, capsys, tmp_path, more, among):
    start = [f"checkpoint={run / 'run' / 'last.pt'}", "device=cpu", "score_threshold=0.9", f"output={tmp_path}"]
    call(explain.main, monkeypatch, capsys, *start, *more)
    found = json.loads((tmp_path / "explanation.json").read_text())
    causes = found["missed_by_cause"]
    assert sum(causes.values()) == found["objects"] - found["found"] == len(found["missed"]) > 0
    rows = [(row["cause"], row["text"]) for row in found["missed"]]
    assert [row for row in rows if not row[0].endswith(("(P-Net)", "(R-Net)", "(O-Net)"))] == []
    assert among in causes
    assert "not traced" not in causes


def test_evaluate_and_predict_look_at_tiles(run, monkeypatch, capsys, tmp_path):
    checkpoint = shutil.copy(run / "run" / "last.pt", tmp_path / "last.pt")
    start = [monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu", "tta=tiles", "tta.tile=64"]
    output = call(evaluate.main, *start, "tta.overlap=0.25", "tta/merge=OverSmaller")
    assert "tiles of 64 px, overlap 0.25, and the whole image made small, merged by OverSmaller" in output
    own = "evaluation_last_val+tta-tiles+tta.merge-OverSmaller+tta.overlap-0.25+tta.tile-64"
    assert (tmp_path / own / "detections.json").exists()
    picture = next(run.glob("data/*/images/*"))
    call(predict.main, *start, f"input={picture}", f"output={tmp_path / 'found'}")
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= 128 for row in rows)
    assert "tta: overlap must be below 1, not 1.0" in call(evaluate.main, *start, "tta.overlap=1.0", code=2)


@pytest.fixture(scope="module")
def marked_run(tmp_path_factory):
    """A run of a few steps that learns landmarks; its score threshold lets some through."""
    folder = tmp_path_factory.mktemp("landmarks")
    small(
        folder / "run", folder / "data", "data.train.landmarks=true", "data.train.size_range=[0.2,0.4]",
        "model.num_landmarks=4", "model.min_size=16", "model.thresholds=[0.3,0.3,0.02]",
    ).fit()  # fmt: skip
    return folder


def test_landmarks_come_out_of_evaluate_predict_and_python(marked_run, monkeypatch, capsys, tmp_path):
    checkpoint = marked_run / "run" / "last.pt"
    start = [monkeypatch, capsys, f"checkpoint={checkpoint}", "device=cpu"]
    output = call(evaluate.main, *start, f"output={tmp_path / 'scores'}")
    assert "NME" in output
    assert "OKS_AP50" in output
    scores = json.loads((tmp_path / "scores" / "evaluation.json").read_text())["metrics"]
    assert set(scores) >= {"AP", "NME", "landmarks_found", "OKS_AP", "OKS_AR"}
    rows = json.loads((tmp_path / "scores" / "detections.json").read_text())
    assert rows
    assert all(len(row["keypoints"]) == 12 and row["keypoints"][2::3] == [1] * 4 for row in rows)
    picture = sorted(marked_run.glob("data/*/images/*"))[0]
    call(predict.main, *start, f"input={picture}", f"output={tmp_path / 'found'}", "score_threshold=0.1")
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    found = detkit.load(checkpoint, device="cpu").predict(picture)
    assert found.landmark_names == ("right_tip", "lower_tip", "left_tip", "upper_tip")
    assert found.landmarks.shape == (len(rows), 4, 2)
    best = max(rows, key=lambda row: row["score"])
    xy = [best["keypoints"][i] for i in range(12) if i % 3 < 2]
    assert found.landmarks[0].flatten().tolist() == xy
    assert found.to_list()[0]["landmarks"] == found.landmarks[0].tolist()
    assert len(found.above(found.scores[0]).landmarks) == 1
    assert (found.draw() != found.image).any()


@pytest.mark.slow
def test_landmarks_are_found_better_than_at_their_average_place(tmp_path):
    """Half of the recipe, from random weights: about five minutes of one core."""
    cfg = composed(
        "experiment=mtcnn/shapes_landmarks", "device=cpu", "threads=1", "callbacks={}", f"data.root={tmp_path}",
        "trainer.steps=400", "trainer.eval_every=400",
    )  # fmt: skip
    trainer, _ = train.build_trainer(cfg, tmp_path)
    scores = trainer.fit().metrics
    assert scores["landmarks_found"] > 0.5
    assert 0 < scores["NME"] < 0.9 * scores["NME_average_place"]


@pytest.mark.parametrize("tta", ["tiles", "flip"])
def test_views_keep_landmarks(marked_run, tta):
    checkpoint, picture = marked_run / "run" / "last.pt", sorted(marked_run.glob("data/*/images/*"))[0]
    found = detkit.load(checkpoint, f"tta={tta}", device="cpu").predict(picture)
    assert len(found) > 0
    middles = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert found.landmarks.shape == (len(found), 4, 2)
    assert abs(found.landmarks.mean(axis=1) - middles).max() < 80, "in px of the image, not of a tile"


def test_the_report_of_a_data_set_counts_landmarks(tmp_path):
    data = ShapesDataset(root=str(tmp_path), num_train=12, num_val=1, image_size=128, landmarks=True)
    numbers = inspect_data.count(data)
    counts = numbers["landmarks"]
    assert counts["right_tip"] > counts["left_tip"] > 0, "triangles and stars have none at the left"
    assert f"landmarks labelled: right_tip {counts['right_tip']}, lower_tip " in inspect_data.describe(numbers, data)
    bare = ShapesDataset(root=str(tmp_path), num_train=12, num_val=1, image_size=128)
    assert "landmarks labelled" not in inspect_data.describe(inspect_data.count(bare), bare)
