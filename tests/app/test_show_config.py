"""In what two runs differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detkit.app.inspect import config as show_config

CONFIG = """
seed: {seed}
device: {device}
resume: {{path: {device}}}
data: {{root: here, train: {{root: '${{data.root}}'}}}}
model: {{neck: {neck}}}
"""
FPN = "{_target_: FPN, out_channels: 256, extra: p6}"
SINGLE = "{_target_: SingleLevel, out_channels: 128}"


def make_run(folder: Path, seed: int = 0, device: str = "cpu", neck: str = FPN, **manifest: object) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed, device=device, neck=neck))
    (folder / "manifest.json").write_text(
        json.dumps({"time": str(folder), "command": [str(folder)], "versions": {"torch": "2.14"}, **manifest})
    )
    return folder


def told(capsys: pytest.CaptureFixture[str], *runs: Path) -> str:
    show_config.main([str(run) for run in runs])
    return capsys.readouterr().out


def test_only_what_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_run(tmp_path / "a")
    other = make_run(tmp_path / "b", seed=1, device="cuda", neck=SINGLE, versions={"torch": "2.13"})
    output = told(capsys, one, other)
    assert "what is computed" in output
    assert (
        output.index("what is computed")
        < output.index("seed")
        < output.index("what changes no result")
        < output.index("device")
    )
    assert "model.neck._target_" in output
    assert "model.neck.out_channels" in output
    assert "extra" not in output, "an argument of one class alone"
    assert "versions.torch" in output
    assert "data.root" not in output
    assert "time" not in output
    assert "command" not in output
    assert "resume" not in output, "how a run was started, not what it is"


def test_the_same_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, make_run(tmp_path / "a"), make_run(tmp_path / "b")).strip() == "the same is computed"


def test_interpolations_count_by_what_they_lead_to(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    text = (other / "config.yaml").read_text().replace("${data.root}", "here")
    (other / "config.yaml").write_text(text)
    found = [show_config.plain(show_config.OmegaConf.create(show_config.read_config(run))) for run in (one, other)]
    assert show_config.differences(*found) == []


def test_one_run_is_shown_and_nothing_else_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "out_channels: 256" in told(capsys, make_run(tmp_path / "a"))
    with pytest.raises(SystemExit) as caught:
        show_config.main([str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert "nowhere: no run folder, checkpoint or configuration is there" in capsys.readouterr().err
