"""The tools as a user starts them: train, stop, resume, evaluate, predict, and what they say to mistakes.

What a signal or a new interpreter has a part in runs in a process of its own, all else inside the test's.
"""

import csv
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detkit.cli import TOOLS
from detkit.utils.commands import tool_name

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment=quickstart", "device=cpu", "threads=1", "data.train.num_train=12", "data.train.num_val=4",
    "data.train.image_size=96", "data.loader.train.batch_size=2", "data.loader.train.num_workers=0",
    "trainer.log_every=1",
]  # fmt: skip


def start(tool, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
    )  # fmt: skip


def finish(process):
    """What a started tool printed, once it has come to its end."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def run(tool, *arguments, code=0):
    """As :func:`start`, but inside this process, and to its end, which must be by ``code``; what it printed."""
    said, ended = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", [f"{tool}.py", *map(str, arguments)])
        patch.setenv("COLUMNS", "120")
        try:
            importlib.import_module(TOOLS[tool_name(tool)].module).main()
        except SystemExit as stop:
            ended = stop.code or 0
    assert ended == code, said.getvalue()
    return said.getvalue()


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def settings(where):
    return [*SMALL, f"data.root={where / 'shapes'}", f"run_root={where}"]


@pytest.fixture(scope="module")
def trained(settings, where):
    """The output and the folder of a run of six steps."""
    brief = ("trainer.steps=6", "trainer.eval_every=3", "trainer.save_every=2")
    return finish(start("train", *settings, *brief, f"hydra.run.dir={where / 'one'}")), where / "one"


def test_training_leaves_a_table_a_picture_and_the_folder(trained):
    output, folder = trained
    assert "AP50" in output
    assert str(folder) in output.replace("\n", "")
    for name in (
        "best.pt",
        "last.pt",
        "config.yaml",
        "manifest.json",
        "evaluation.json",
        "detections.png",
        "metrics.csv",
        "log.txt",
    ):
        assert (folder / name).is_file(), name
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert {row["step"] for row in rows} >= {"1", "6"}
    assert cv2.imread(str(folder / "detections.png")).shape[1] > 900


def test_evaluate_gives_the_numbers_of_training(trained):
    _, folder = trained
    output = run("evaluate", f"checkpoint={folder / 'best.pt'}", "device=cpu")
    assert "AP75" in output
    results = folder / "evaluation_best_val"
    mine = json.loads((results / "evaluation.json").read_text())["metrics"]
    assert mine == json.loads((folder / "evaluation.json").read_text())["metrics"]
    assert isinstance(json.loads((results / "detections.json").read_text()), list)


def test_evaluate_takes_overrides_on_top_of_the_stored_configuration(trained, tmp_path):
    _, folder = trained
    run(
        "evaluate",
        f"checkpoint={folder / 'best.pt'}",
        "split=train",
        f"output={tmp_path / 'out'}",
        "data.loader.val.batch_size=1",
        "model.head.roi.selector.max_detections=3",
    )
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    per_image = np.bincount([row["image_id"] for row in found])
    assert per_image.max() <= 3
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["num_images"] == 12
    # another class for a part: the stored one's arguments are not its own
    other = ["model.head.roi.selector={_target_:SoftSelector,max_detections:3}", f"output={tmp_path / 'soft'}"]
    told = run("evaluate", f"checkpoint={folder / 'best.pt'}", *other)
    lost = "score_threshold, nms_iou, max_detections, min_size, class_agnostic"
    said = f"model.head.roi.selector is SoftSelector now; left out what the checkpoint has for Selector: {lost}"
    assert said in " ".join(told.split())
    soft = json.loads((tmp_path / "soft" / "detections.json").read_text())
    assert max(np.bincount([row["image_id"] for row in soft])) == 3


def test_evaluations_with_overrides_have_folders_of_their_own(trained):
    """None of them writes over another, or over the plain one; what changes no number makes no new folder."""
    _, folder = trained
    start = "evaluate", f"checkpoint={folder / 'best.pt'}", "device=cpu"
    run(*start, "data.loader.val.num_workers=1")
    key = "model.head.roi.selector.max_detections"
    most = {"evaluation_best_val": 101}
    for limit in (2, 1):
        run(*start, "data.loader.val.batch_size=1", f"{key}={limit}")
        most[f"evaluation_best_val+data.loader.val.batch_size-1+{key}-{limit}"] = limit + 1
    for name, below in most.items():
        found = json.loads((folder / name / "detections.json").read_text())
        assert 0 < np.bincount([row["image_id"] for row in found]).max() < below, name
    assert not list(folder.glob("evaluation_best_val*num_workers*"))


def test_evaluate_on_several_views(trained, tmp_path):
    """By a preset and by values alone; beside the plain evaluation, which stays as it was."""
    _, folder = trained
    checkpoint = f"checkpoint={folder / 'best.pt'}"
    own = "evaluation_best_val+tta-multiscale_flip+tta.merge-WBF+tta.merge.iou_threshold-0.6"
    output = run("evaluate", checkpoint, "tta=multiscale_flip", "tta/merge=WBF", "tta.merge.iou_threshold=0.6")
    assert "6 views of each image (scales 0.75, 1, 1.25, each mirrored too), merged by WBF" in " ".join(output.split())
    found = json.loads((folder / own / "detections.json").read_text())
    assert min(row["score"] for row in found) < 0.04, "a sixth of what one view alone found, at 0.05 and more"
    output = run("evaluate", checkpoint, "tta.scales=[0.5,1]", "tta.max_detections=2", f"output={tmp_path / 'out'}")
    assert "2 views of each image (scales 0.5, 1), merged by NMS" in " ".join(output.split())
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert np.bincount([row["image_id"] for row in found]).max() <= 2


def test_predict_on_several_views(trained, where, tmp_path):
    _, folder = trained
    image = min(next((where / "shapes").glob("*/images")).iterdir())
    arguments = ["tta=flip", "tta.score_threshold=0.5", f"input={image}", f"output={tmp_path}", "score_threshold=0"]
    output = run("predict", f"checkpoint={folder / 'best.pt'}", *arguments)
    assert "2 views of each image (scales 1, each mirrored too), merged by NMS" in " ".join(output.split())
    assert all(row["score"] > 0.5 for row in json.loads((tmp_path / "detections.json").read_text()))


def test_predict_on_a_folder_and_a_video(trained, where, tmp_path):
    _, folder = trained
    images = next((where / "shapes").glob("*/images"))
    output = run(
        "predict",
        f"checkpoint={folder / 'best.pt'}",
        f"input={images}",
        f"output={tmp_path / 'out'}",
        "score_threshold=0.0",
    )
    assert "in 16 images" in output
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {row["category_id"] for row in rows} <= set(range(1, 7))
    assert len(list((tmp_path / "out").glob("*.png"))) == 16
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (96, 64))
    for i in range(5):
        writer.write(np.full((64, 96, 3), 40 * i, np.uint8))
    writer.release()
    run("predict", f"checkpoint={folder / 'best.pt'}", f"input={tmp_path / 'film.mp4'}", f"output={tmp_path / 'film'}")
    assert cv2.VideoCapture(str(tmp_path / "film" / "detections.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 5


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_and_resumed_ends_in_the_same_bits(settings, where, workers):
    """SIGKILL in the middle; the continuation ends like a run that was never killed, mid-epoch and with workers."""
    common = [
        *settings,
        "trainer.steps=9",
        "trainer.eval_every=5",
        "trainer.save_every=1",
        f"data.loader.train.num_workers={workers}",
    ]
    straight, killed = where / f"straight{workers}", where / f"killed{workers}"
    run("train", *common, f"hydra.run.dir={straight}")
    process = start("train", *common, f"hydra.run.dir={killed}")
    deadline = time.time() + 120
    while not (killed / "previous.pt").is_file():  # after the second step
        assert time.time() < deadline
        assert process.poll() is None, "it finished before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(killed / "previous.pt", weights_only=True)["step"] < 8
    run("train", *common, f"resume={killed}")
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (straight, killed))
    assert a["step"] == b["step"] == 9
    for name, value in a["detector"].items():
        assert torch.equal(value, b["detector"][name]), name
    assert a["metrics"] == b["metrics"]


def test_auto_resume_finds_the_unfinished_run(settings, where):
    common = [*settings, "seed=5", "trainer.steps=4", "trainer.save_every=1", f"run_root={where / 'auto'}"]
    process = start("train", *common)
    deadline = time.time() + 120
    while not list((where / "auto").rglob("last.pt")):
        assert time.time() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143, "the shell's code for SIGTERM"
    output = run("train", *common, "resume=auto")
    folders = [p for p in (where / "auto" / "quickstart").iterdir() if p.is_dir()]
    assert len(folders) == 1, "it went on in the same folder"
    assert "going on from" in output
    assert "no unfinished run" in run("train", *common, "resume=auto", code=2)


def test_resume_refuses_another_configuration(trained, settings):
    _, folder = trained
    output = run(
        "train", *settings, "trainer.steps=6", "trainer.eval_every=3", "optim.lr=0.5", f"resume={folder}", code=2
    )
    assert "was run with another configuration" in output
    assert "optim.lr: was 0.001, is 0.5" in output


def test_mistakes_are_told_without_a_traceback_and_leave_nothing(settings, tmp_path):
    output = run("train", *settings, "optim.lrr=1", "modell.x=2", f"hydra.run.dir={tmp_path / 'run'}", code=2)
    assert "optim.lrr: no argument 'lrr'; did you mean 'lr'?" in output
    assert "modell: no key 'modell'; did you mean 'model'?" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_missing_data_is_named(tmp_path):
    output = run(
        "train",
        "experiment=faster_rcnn/bccd_mobilenetv2_fpn",
        f"data.root={tmp_path / 'nowhere'}",
        "model.backbone.weights=null",
        f"hydra.run.dir={tmp_path / 'run'}",
        code=2,
    )
    assert str(tmp_path / "nowhere" / "train.json") in output.replace("\n", "")
    output = run("train", "experiment=faster_rcnn/bccd_mobilenetv2_fpn", f"hydra.run.dir={tmp_path / 'run'}", code=2)
    assert "data.root: needs a value" in output


def test_checkpoints_that_do_not_fit(trained, tmp_path):
    _, folder = trained
    assert "there is no such file" in run("evaluate", "checkpoint=nowhere.pt", code=1)
    output = run("evaluate", f"checkpoint={folder / 'best.pt'}", "model.neck.out_channels=32", code=1)
    assert "neck.lateral.0.weight" in output
    categories = tmp_path / "data"
    (categories / "images").mkdir(parents=True)
    cv2.imwrite(str(categories / "images" / "a.png"), np.zeros((8, 8, 3), np.uint8))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    for split in ("train", "val"):
        (categories / f"{split}.json").write_text(json.dumps(coco))
    output = run("evaluate", f"checkpoint={folder / 'best.pt'}", "data=coco", f"data.root={categories}", code=2)
    assert "other classes than the model" in output
    assert "'dog'" in output


def test_help_and_composed_configuration():
    assert "model/neck: FPN, ImagePyramid, SingleLevel, Upsample, fpn, fpn_cbam," in run("train", "--help")
    assert "_target_: TwoStageHead" in run("train", "experiment=quickstart", "--cfg", "job")
    assert "checkpoint" in run("evaluate", "--help")
    assert "score_threshold" in run("predict", "--help")
    assert "loss@SLOT=NAME" in run("list_components")
    assert "out_channels" in run("list_components", "FPN")


def test_a_failed_tool_leaves_the_current_folder_alone(tmp_path, monkeypatch):
    (tmp_path / "log.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert "there is no such file" in run("evaluate", "checkpoint=nowhere.pt", code=1)
    assert (tmp_path / "log.txt").read_text() == "mine"
    output = run("evaluate", code=2)
    assert "checkpoint: needs a value" in output
    assert "Traceback" not in output
