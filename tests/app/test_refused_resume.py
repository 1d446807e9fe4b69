"""A run that is not allowed to go on, and one whose last lines fail: what is in its folder stays or is whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from detkit.app import train
from detkit.app.audit import tool as audit
from detkit.app.calibrate import tool as calibrate
from detkit.app.explain import tool as explain
from detkit.app.labels import tool as labels
from detkit.app.run import report
from detkit.app.use import evaluate, predict
from detkit.engine.state.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.app.tools import call

SMALL = [
    "experiment=quickstart", "device=cpu", "threads=1", "data.train.num_train=4", "data.train.num_val=2",
    "data.train.image_size=64", "data.loader.train.batch_size=2", "data.loader.train.num_workers=0", "trainer.steps=1",
    "callbacks.tensorboard=null",
]  # fmt: skip

#: Written while a run is at work, whatever becomes of it.
_NOTES = (".lock",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["train.py", *SMALL, f"data.root={folder / 'data'}", f"hydra.run.dir={folder / 'run'}"]
        )
        train.main()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in _NOTES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (["optim=SGD", "resume.allow=[optim]"], 1, "was trained with AdamW, not with SGD"),
        (["trainer.ema_decay=0.5", "resume.allow=[trainer]"], 1, "was trained without a moving average"),
        (["model.head.roi.network.hidden=[8]", "resume.allow=[model]"], 1, "holds another model"),
        (["data.train.num_train=6", "resume.allow=[data.train.num_train]"], 2, "was run with other data"),
        (["optim.lr=0.5"], 2, "was run with another configuration"),
        (["trainer.monitor=mAP", "resume.allow=[trainer]"], 2, "no metric 'mAP'; did you mean 'AP'?"),
        # what the first step tells, and what an evaluation does
        (
            ["trainer.monitor=val_loss/rpn_clss", "trainer.val_loss=true", "trainer.steps=2", "resume.allow=[trainer]"],
            1,
            "'val_loss/rpn_cls'?",
        ),
        (
            ["trainer.monitor=val_loss/rpn_clss", "trainer.val_loss=true", "resume.allow=[trainer]"],
            1,
            "no metric 'val_loss/rpn_clss'",
        ),
    ],
)
def test_a_refused_resume_leaves_the_run_as_it_was(
    finished: Path, tmp_path: Path, monkeypatch, capsys, changes: list[str], code: int, words: str
) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run")
    before = contents(run)
    data = tmp_path / "data" if "num_train" in changes[0] else finished / "data"
    arguments = [*SMALL, f"data.root={data}", f"run_root={tmp_path / 'new'}", *changes, f"resume={run}"]
    assert words in call(train.main, monkeypatch, capsys, *arguments, code=code)
    assert contents(run) == before
    assert not list((tmp_path / "new").rglob("*.*")), "no second folder stays behind"


def test_a_result_is_gone_once_the_run_has_trained_further(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A kill before its end must not leave a file that tells of its end."""
    run = shutil.copytree(finished / "run", tmp_path / "run")

    def fail(path: Path, *what: object, **options: object) -> None:
        assert not (run / "result.json").exists()
        raise CheckpointError("the disk is full")

    monkeypatch.setattr("detkit.engine.trainer.save_checkpoint", fail)
    arguments = [*SMALL, f"data.root={finished / 'data'}", "trainer.steps=2", "resume.allow=[trainer.steps]"]
    assert "the disk is full" in call(train.main, monkeypatch, capsys, *arguments, f"resume={run}", code=1)
    assert not (run / "result.json").exists()
    assert "steps: 2" in (run / "config.yaml").read_text()


def test_another_monitor_starts_the_best_anew(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run")
    was = json.loads((run / "result.json").read_text())
    before = load_checkpoint(run / "last.pt")
    assert before.training is not None
    changes = ["trainer.monitor=val_loss", "trainer.val_loss=true", "trainer.steps=2", "trainer.eval_every=1"]
    arguments = [*SMALL, f"data.root={finished / 'data'}", *changes, "resume.allow=[trainer]", f"resume={run}"]
    for old in (False, True):
        if old:  # by a detkit that kept no measure
            training = {key: value for key, value in before.training.items() if key != "measure"}
            save_checkpoint(run / "last.pt", dataclasses.replace(before, training=training))
        told = call(train.main, monkeypatch, capsys, *arguments)
        assert f"its best value, {was['best']:.4f} at step 1, was measured by another trainer.monitor: the best" in told
        result = json.loads((run / "result.json").read_text())
        assert result["monitor"] == "val_loss"
        metrics = load_checkpoint(run / "best.pt").metrics
        assert result["best"] == metrics["val_loss"] != was["best"]


@pytest.mark.parametrize("left", ["last.pt", "previous.pt", "best.pt", "result.json"])
def test_a_new_run_does_not_take_the_folder_of_another(
    finished: Path, tmp_path: Path, monkeypatch, capsys, left: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "run" / ("last.pt" if left == "previous.pt" else left), run / left)
    before = contents(run)
    arguments = [*SMALL, f"data.root={finished / 'data'}", f"hydra.run.dir={run}"]
    told = call(train.main, monkeypatch, capsys, *arguments, code=2)
    assert f"hydra.run.dir: {run} holds a run ({left}), which nothing is written over" in told
    assert (f"resume={run} goes on with it" in told) == (left in ("last.pt", "previous.pt"))
    assert contents(run) == before


def test_a_folder_in_which_nothing_was_saved_may_be_begun_anew(
    finished: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "manifest.json", "log.txt"):
        shutil.copy(finished / "run" / name, run / name)
    call(train.main, monkeypatch, capsys, *SMALL, f"data.root={finished / 'data'}", f"hydra.run.dir={run}")
    assert (run / "result.json").is_file()


@pytest.mark.parametrize(
    ("tool", "more"),
    [
        (evaluate, ()), (explain, ()), (labels, ("split=val",)), (calibrate, ("target.recall=0.8",)),
        (predict, ("input=photo.png",)),
    ],
)  # fmt: skip
def test_no_tool_takes_the_folder_of_a_run_for_its_output(
    finished: Path, tmp_path: Path, monkeypatch, capsys, tool: ModuleType, more: tuple[str, ...]
) -> None:
    run = finished / "run"
    before = contents(run)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", np.zeros((48, 64, 3), np.uint8))
    told = call(
        tool.main, monkeypatch, capsys, f"checkpoint={run / 'best.pt'}", "device=cpu", f"output={run}", *more, code=2
    )
    assert f"output: {run} is the folder of a run, whose files are its own: choose another folder" in told
    assert contents(run) == before


def test_audit_does_not_take_it_either(finished: Path, monkeypatch, capsys) -> None:
    run = finished / "run"
    before = contents(run)
    given = [word for word in SMALL if not word.startswith(("device", "trainer", "callbacks"))]
    arguments = [*given, f"data.root={finished / 'data'}", f"hydra.run.dir={run}"]
    assert f"hydra.run.dir: {run} is the folder of a run" in call(audit.main, monkeypatch, capsys, *arguments, code=2)
    assert contents(run) == before


def test_damaged_checkpoints_leave_the_run_as_it_was(finished: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run")
    for path in run.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-500])
    before = contents(run)
    arguments = [*SMALL, f"data.root={finished / 'data'}", f"run_root={tmp_path / 'new'}", f"resume={run}"]
    assert "damaged" in call(train.main, monkeypatch, capsys, *arguments, code=1)
    assert contents(run) == before


def test_the_result_is_written_before_anything_is_shown(finished: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*what: object, **options: object) -> None:
        raise RuntimeError("cannot be shown")

    run = tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["train.py", *SMALL, f"data.root={finished / 'data'}", f"hydra.run.dir={run}"])
    monkeypatch.setattr(report.rich, "print", fail)
    with pytest.raises((SystemExit, RuntimeError)):
        train.main()
    assert json.loads((run / "result.json").read_text())["steps"] == 1
    assert (run / "evaluation.json").is_file()
