"""The command that each tool names at its end is one that runs, and leads on."""

import importlib
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from detkit.app import convert, train
from detkit.app.audit import tool as audit
from detkit.app.explain import tool as explain
from detkit.app.inspect import data as inspect_data
from detkit.app.run.next_command import tell_audit, tell_next, tell_prediction_with
from detkit.app.use import evaluate
from detkit.cli import TOOLS
from detkit.utils.commands import tool_name
from tests.app.tools import call
from tests.data.test_configs import write

SMALL = ["data.train.num_train=6", "data.train.num_val=2", "data.train.image_size=96"]
BRIEFLY = [
    "device=cpu", "threads=1", "callbacks={}", "trainer.steps=1", "trainer.eval_every=1",
    "data.loader.train.batch_size=2", "data.loader.train.num_workers=0", "data.loader.val.num_workers=0",
]  # fmt: skip


def next_of(output: str) -> tuple[str, list[str]]:
    """The tool and the words of the line that begins with "next:", which is there once."""
    (line,) = [line for line in output.splitlines() if line.startswith("next: ")]
    _, python, file, *words = shlex.split(line)
    assert python == "python"
    return file.removeprefix("tools/").removesuffix(".py"), words


def test_from_data_to_a_detector_and_its_errors(tmp_path, monkeypatch, capsys):
    """Each line as it stands leads to the next tool, with the paths of this one."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "my data, v=2"
    words, tool = ["data=shapes", f"data.root={root}", *SMALL, "split=val"], "inspect_data"
    seen = []
    while tool not in seen:
        seen.append(tool)
        output = call(importlib.import_module(TOOLS[tool_name(tool)].module).main, monkeypatch, capsys, *words)
        tool, words = next_of(output)
        words += BRIEFLY if seen == ["inspect_data"] else []
    assert seen == ["inspect_data", "audit", "train", "predict", "explain"]
    assert tool == "audit"
    assert {"experiment=quickstart", "data=shapes", *SMALL, "trainer.steps=1"} <= set(words)
    (picture,) = tmp_path.glob("runs/predict/*/*.png")
    assert picture.is_file()


def test_configurations_of_the_users_own_lead_on(tmp_path, monkeypatch, capsys):
    """In a folder that --config-dir names, and in one that hydra.searchpath does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart, _self_]\noptim: {lr: 0.002}\n"
    )
    (tmp_path / "own" / "data").mkdir()
    (tmp_path / "own" / "data" / "ours.yaml").write_text("defaults: [shapes, _self_]\ntrain: {image_size: 64}\n")
    where, data = ["--config-dir", "own"], ["data=ours", f"data.root={tmp_path / 'set'}", *SMALL]
    tool, words = next_of(call(inspect_data.main, monkeypatch, capsys, *where, *data))
    assert (tool, words[:2]) == ("audit", where)
    tool, words = next_of(call(audit.main, monkeypatch, capsys, *where, "experiment=mine", *data, *BRIEFLY))
    assert (tool, words) == ("train", [*where, "experiment=mine", *data, *BRIEFLY])
    tool, words = next_of(call(train.main, monkeypatch, capsys, *words))
    checkpoint = words[0]
    tool, words = next_of(call(evaluate.main, monkeypatch, capsys, checkpoint, *where, *data, "threads=1"))
    assert (tool, words) == ("explain", [checkpoint, *where, *data])
    tool, words = next_of(call(explain.main, monkeypatch, capsys, *words, "threads=1"))
    assert (tool, words) == ("audit", [*where, "experiment=mine", *data, *BRIEFLY])
    elsewhere = "hydra.searchpath=[file://own]"
    tool, words = next_of(call(inspect_data.main, monkeypatch, capsys, elsewhere, *data))
    assert (tool, words[:1]) == ("audit", [elsewhere])


def test_paths_of_the_users_own_lead_on(tmp_path, monkeypatch, capsys):
    write("coco", tmp_path / "set")
    root = f"data.root={tmp_path / 'set'}"
    monkeypatch.chdir(tmp_path)
    output = call(convert.main, monkeypatch, capsys, "data=coco", root, "to=voc", 'output="a, new one"')
    tool, words = next_of(output)
    assert (tool, words) == ("inspect_data", ["data=voc", 'data.root="a, new one"'])
    tool, words = next_of(call(inspect_data.main, monkeypatch, capsys, *words))
    assert (tool, words[:2]) == ("audit", ["experiment=faster_rcnn/bccd_mobilenetv2_fpn", "data=voc"])


def test_the_command_is_the_one_that_was_typed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/usr/bin/detkit train"])
    monkeypatch.setenv("COLUMNS", "40")
    tell_next("predict", "checkpoint=runs/a/best.pt", "input=my photo [1].jpg")
    assert capsys.readouterr().out == "next: detkit predict checkpoint=runs/a/best.pt 'input=my photo [1].jpg'\n"


def test_a_picture_is_of_the_size_that_a_file_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    truths = [SimpleNamespace(file="a.png", size=(48, 64)), SimpleNamespace(file="b.png", size=(64, 48))]
    for size, picture in ((None, "a.png"), ((64, 48), "b.png"), ((9, 9), "photo.jpg")):
        tell_prediction_with(Path("m.onnx"), cast(Any, SimpleNamespace(truths=truths)), size)
        assert f"input={picture}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["tools/train.py", "-m", "experiment=quickstart", "++data.root=x y", "hydra.run.dir=a", "++resume.path=b", "+loss@a.b=L1"],
         "next: python tools/audit.py experiment=quickstart 'data.root=x y' +loss@a.b=L1"),
        (["tools/train.py", "experiment=mine", "--config-dir", "own ones", "hydra.searchpath=[file://a]"],
         "next: python tools/audit.py --config-dir 'own ones' 'hydra.searchpath=[file://a]' experiment=mine"),
        (["ipykernel_launcher.py", "-f", "a.json"], "next: python tools/evaluate.py checkpoint={}/best.pt"),
    ],
)  # fmt: skip
def test_after_an_explanation_what_the_training_was_started_with(typed, line, tmp_path, monkeypatch, capsys):
    (tmp_path / "manifest.json").write_text(json.dumps({"command": typed}))
    monkeypatch.setattr("detkit.app.run.next_command.said", lambda but=(): ["split=val"])
    tell_audit(str(tmp_path / "best.pt"))
    assert capsys.readouterr().out.strip() == line.format(tmp_path)


def test_what_ends_with_an_error_says_nothing(monkeypatch, capsys):
    assert "next:" not in call(evaluate.main, monkeypatch, capsys, "checkpoint=nowhere.pt", code=1)
