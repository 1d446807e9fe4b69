"""Which run to go on with, and what is written about one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from detkit.app.assemble.identity import config_hash
from detkit.app.run import finding, manifest
from detkit.app.run.folder import RunFolder
from detkit.app.run.measure import measure_of
from detkit.config import ConfigError
from detkit.data import ShapesDataset
from detkit.engine import CheckpointError, load_checkpoint
from detkit.engine.progress import Progress
from detkit.engine.state import checkpoint as checkpoint_module
from detkit.engine.state.checkpoint import load_config, save_checkpoint
from tests.engine.stubs import make_trainer

CONFIG: dict[str, Any] = {
    "seed": 0,
    "optim": {"lr": 0.1},
    "trainer": {"steps": 2},
    "device": "cpu",
    "data": {"root": "a"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    make_trainer(folder, steps=2, config=CONFIG).fit()
    return folder


def write_manifest(folder: Path, data: dict[str, str], resumed: bool = False) -> None:
    RunFolder(folder, resumed).write_down(OmegaConf.create(CONFIG), CONFIG, data)


def changed(**sections: Any) -> dict[str, Any]:
    return {**CONFIG, **sections}


def test_a_changed_configuration_is_refused_key_by_key(run: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        finding.find_run(str(run), run.parent, changed(optim={"lr": 0.2}, trainer={"steps": 9}))
    assert str(caught.value).split("\n  ") == [
        f"resume: {run} was run with another configuration",
        "optim.lr: was 0.1, is 0.2",
        "trainer.steps: was 2, is 9",
        "resume.allow=[optim.lr,trainer.steps] lets it go on all the same",
    ]


def test_what_is_allowed_may_differ_and_is_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = changed(optim={"lr": 0.2}, trainer={"steps": 9})
    assert finding.find_run(str(run), run.parent, other, ["optim", "trainer.steps"]) == run
    assert "going on with another optim.lr: was 0.1, is 0.2" in caplog.text
    with pytest.raises(ConfigError) as caught:
        finding.find_run(str(run), run.parent, other, ["optim"])
    assert "trainer.steps: was 2, is 9" in caplog.text + str(caught.value)
    assert "optim.lr" not in str(caught.value)


def test_device_and_the_place_of_the_data_are_free(run: Path) -> None:
    assert finding.find_run(str(run), run.parent, changed(device="cuda", data={"root": "b"})) == run


@pytest.mark.parametrize(
    ("now", "counts"), [({}, True), ({"val": "b"}, False), ({"trainer": {"monitor": "AP50"}}, False)]
)
def test_an_older_checkpoint_is_judged_by_its_configuration_and_manifest(
    run: Path, now: dict[str, Any], counts: bool
) -> None:
    """It does not say itself by what its best value was measured."""
    write_manifest(run, {"val": "a"})
    checkpoint = load_checkpoint(run / "last.pt")
    assert checkpoint.training is not None
    training = {key: value for key, value in checkpoint.training.items() if key != "measure"}
    save_checkpoint(run / "last.pt", dataclasses.replace(checkpoint, training=training))
    data, config = {"val": now.pop("val", "a")}, changed(**now)
    trainer = make_trainer(run, steps=4, config=config, **now.get("trainer", {}))
    trainer.measure |= measure_of(config, data)
    RunFolder(run, resumed=True).restore(trainer, data, ["data.val"])
    before = checkpoint.training["progress"]
    assert before["best"] is not None
    assert trainer.progress == (Progress(**before) if counts else Progress(step=2, batches_seen=2))


def test_what_a_value_is_measured_by() -> None:
    config = {
        "trainer": {"monitor": "AP", "steps": 4},
        "evaluator": {"_target_": "CocoEvaluator", "frequency_bounds": None, "areas": {"small": [0, 9]}},
        "data": {"root": "here", "val": {"root": "here"}, "loader": {"val": {"batch_size": 8, "num_workers": 2}}},
        "model": {"head": {"loss": 1}}, "transform": {"train": {}, "val": {"size": 64}},
    }  # fmt: skip
    data = {"train": "t", "val": "v"}
    of_score = {
        "trainer.monitor": "AP", "evaluator._target_": "CocoEvaluator", "evaluator.frequency_bounds": None,
        "evaluator.areas.small": [0, 9], "data.val": "v",
    }  # fmt: skip
    assert measure_of(config, data) == of_score
    of_loss = {"model.head.loss": 1, "transform.val.size": 64, "data.loader.val.batch_size": 8}
    config["trainer"]["monitor"] = "val_loss/rpn_cls"
    assert measure_of(config, data) == {**of_score, **of_loss, "trainer.monitor": "val_loss/rpn_cls"}
    config["trainer"]["monitor"], config["evaluator"]["frequency_bounds"] = "APr", [10, 100]
    assert measure_of(config, data)["data.train"] == "t", "how frequent a class is"
    assert measure_of({"trainer": {}}, {}) == {"trainer.monitor": "AP"}


def test_a_step_that_was_evaluated_twice_has_the_last_value(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,split,name,value\n2,val,AP,0.5\n4,val,AP,0.1\n4,val,AP,0.2\n")
    steps, values = RunFolder(tmp_path).numbers()["val", "AP"]
    assert (steps.tolist(), values.tolist()) == ([2, 4], [0.5, 0.2])


def test_auto_takes_the_unfinished_one(run: Path) -> None:
    assert finding.find_run("auto", run.parent, CONFIG) == run
    (run / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="no unfinished run with this configuration"):
        finding.find_run("auto", run.parent, CONFIG)


def test_auto_reads_one_checkpoint_whole(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        other = shutil.copytree(run, run.parent / f"other{i}")
        if i:
            (other / "result.json").write_text("{}")
        else:
            make_trainer(other, steps=3, config=changed(seed=1)).fit()
    read: list[Path] = []
    whole = checkpoint_module.load_checkpoint
    monkeypatch.setattr(checkpoint_module, "load_checkpoint", lambda path: (read.append(path), whole(path))[1])
    assert finding.find_run("auto", run.parent, CONFIG) == run
    assert read == [run / "last.pt"]


def test_the_configuration_alone_is_that_of_the_checkpoint(run: Path) -> None:
    assert load_config(run / "last.pt") == load_checkpoint(run / "last.pt").config == CONFIG
    content = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content.replace(b"device", b"deviCe", 1))
    with pytest.raises(CheckpointError, match=r"last.pt: damaged or no checkpoint: Bad CRC-32"):
        load_config(run / "last.pt")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\x00" * 40])
def test_a_damaged_result_does_not_stop_auto(run: Path, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (run / "result.json").write_bytes(content)
    assert finding.find_run("auto", run.parent, CONFIG) == run
    assert f"{run / 'result.json'}: not " in caplog.text
    assert "taken as unfinished" in caplog.text
    with pytest.raises(ConfigError, match=r"result\.json: not "):
        RunFolder(run).result()


def test_a_damaged_run_beside_it_does_not_stop_auto(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = shutil.copytree(run, run.parent / "broken")
    for path in broken.glob("*.pt"):
        path.write_bytes(b"none")
    assert finding.find_run("auto", run.parent, CONFIG) == run
    assert f"passed over: {broken}" in caplog.text


def test_a_half_written_state_falls_back_and_two_end_it(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(run, steps=4, config=CONFIG).fit()
    last, previous = run / "last.pt", run / "previous.pt"
    last.write_bytes(last.read_bytes()[:500])
    assert finding.find_run(str(run), run.parent, CONFIG) == run
    assert f"going back to {previous} of step" in caplog.text
    previous.write_bytes(b"")
    with pytest.raises(ValueError, match=r"previous.pt: cut off, damaged or no checkpoint"):
        finding.find_run(str(run), run.parent, CONFIG)


def test_untracked_files_are_counted_and_a_few_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"datasets/mine/{i}.jpg" for i in range(60_000)]
    answers = {"rev-parse": "abc", "diff": "", "ls-files": "\n".join(names)}
    monkeypatch.setattr(manifest, "_ask_git", lambda command, *_: answers[command])
    write_manifest(tmp_path, {})
    assert json.loads((tmp_path / "manifest.json").read_text())["git"]["not_in_git"] == {
        "files": 60_000,
        "first": names[:5],
    }
    assert (tmp_path / "manifest.json").stat().st_size < 5000


def test_the_manifest_names_everything(tmp_path: Path) -> None:
    data = ShapesDataset(root=str(tmp_path / "data"), num_train=2, num_val=1, image_size=96)
    hashes = {"train": manifest.data_hash(data)}
    write_manifest(tmp_path, hashes)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["config_hash"] == config_hash(CONFIG)
    assert content["data"] == hashes
    assert {"torch", "numpy", "detkit"} <= content["versions"].keys()
    assert content["command"]
    assert content["threads"] >= 1
    write_manifest(tmp_path, hashes, resumed=True)
    again = json.loads((tmp_path / "manifest.json").read_text())
    assert len(again["resumed"]) == 1
    assert again["time"] == content["time"]


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"train": "aaa", "val": "bbb"}

    def refuse(found: dict[str, str], allow: list[str] | None = None) -> None:
        manifest.refuse_other_data(RunFolder(tmp_path).manifest() or {}, found, allow or [], str(tmp_path))

    write_manifest(tmp_path, data)
    refuse(data)
    with pytest.raises(ConfigError) as caught:
        refuse({"train": "ccc", "val": "bbb"})
    assert str(caught.value).split("\n  ") == [
        f"resume: {tmp_path} was run with other data",
        "data.train: other images or annotations lie there than when the run was begun",
        "resume.allow=[data.train] lets it go on all the same",
    ]
    refuse({"train": "ccc", "val": "bbb"}, ["data.train"])
    assert "going on with other images or annotations in data.train" in caplog.text
    write_manifest(tmp_path, {"train": "ccc", "val": "bbb"}, resumed=True)
    refuse({"train": "ccc", "val": "bbb"})  # allowed once, it has seen these
    (tmp_path / "manifest.json").unlink()
    refuse(data)


def test_the_hash_of_data_follows_annotations_and_files(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_train": 2, "num_val": 1, "image_size": 96}
    data = ShapesDataset(root=str(tmp_path / "a"), **options)
    before = manifest.data_hash(data)
    assert manifest.data_hash(ShapesDataset(root=str(tmp_path / "b"), **options)) == before, "wherever it lies"
    data.truths[0].boxes[0, 0] += 0.5
    assert manifest.data_hash(data) != before
    data.truths[0].boxes[0, 0] -= 0.5
    with Path(data.truths[1].file).open("ab") as file:
        file.write(b"x")
    assert manifest.data_hash(data) != before


def test_a_restart_finds_the_run_of_its_own_torchrun(run: Path, tmp_path: Path) -> None:
    (run / "manifest.json").write_text(json.dumps({"torchrun": "mine"}))
    assert finding.find_restarted(tmp_path / "new", ["another", "mine"]) == run
    assert finding.find_restarted(tmp_path / "new", ["another"]) is None
    (run / "manifest.json").write_text(json.dumps({"torchrun": None, "resumed": [{"torchrun": "mine"}]}))
    assert finding.find_restarted(run, ["mine"]) == run
    assert finding.find_restarted(run, []) is None
    (tmp_path / "beside").mkdir()
    make_trainer(tmp_path / "beside", steps=2, config=CONFIG).fit()
    (tmp_path / "beside" / "manifest.json").write_text('{"torchrun"')
    assert finding.find_restarted(tmp_path / "new", ["mine"]) == run
    assert load_checkpoint(run / "last.pt").step == 2
