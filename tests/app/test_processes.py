"""Several processes under torchrun: one of them dies, all start anew, and the run ends like that of a single process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detkit.app import processes
from detkit.config import ConfigError
from detkit.utils import dist

ROOT = Path(__file__).resolve().parents[2]

#: Kills process 1 in its fourth step, once.
PLUGIN = """
import os, signal
from detkit.config import SCHEDULES
from detkit.engine.schedule import Constant

@SCHEDULES
class Deadly(Constant):
    "A constant rate until death."

    def factor(self, step, num_steps):
        if step == 3 and os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().factor(step, num_steps)
"""

SETTINGS = [
    "experiment=quickstart", "device=cpu", "threads=1", "data.train.num_train=12", "data.train.num_val=5",
    "data.train.image_size=96", "data.loader.train.batch_size=4", "model.backbone.norm=frozen_bn",
    "schedule=Deadly", "schedule.warmup_steps=0", "optim.lr=1e-3", "trainer.steps=6", "trainer.save_every=1",
    "trainer.eval_every=3", "trainer.log_every=1", "trainer.accumulate=2", "callbacks.tensorboard=null",
]  # fmt: skip


def run(tmp_path: Path, name: str, *launcher: str) -> str:
    (tmp_path / "deadly.py").write_text(PLUGIN)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "DETKIT_PLUGINS": "deadly", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(ROOT / "tools" / "train.py"), *SETTINGS, f"data.root={tmp_path / 'data'}"]
    command.append(f"run_root={tmp_path / name}")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [
            float(row["value"]) for row in csv.DictReader(file) if row["split"] == "train" and row["name"] == "loss"
        ]


def test_a_dead_process_is_told_and_the_restart_ends_like_one_process(tmp_path: Path) -> None:
    run(tmp_path, "one", sys.executable)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    output = run(tmp_path, "two", *torchrun)
    assert "process 0 of 2: another process of this run is gone" in output
    assert "torchrun --max-restarts=3 would start all of them again" in output
    (one,), (two,) = ([p for p in (tmp_path / n / "quickstart").iterdir() if p.is_dir()] for n in ("one", "two"))
    assert (two / "log_rank1.txt").exists()
    manifest = json.loads((two / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert len(manifest["resumed"]) == 1
    assert "going on from" in (two / "log.txt").read_text()
    states = [torch.load(folder / "last.pt", weights_only=True) for folder in (one, two)]
    for name, value in states[0]["detector"].items():
        torch.testing.assert_close(states[1]["detector"][name], value, rtol=1e-4, atol=1e-5)
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert len(losses(one)) == 6


def test_alone_nothing_of_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with processes.process_group("auto", 10.0):
        assert not dist.is_initialized()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert processes.launcher_mark() is None
    assert not processes.is_restart()
    norm = torch.nn.BatchNorm2d(3)
    assert processes.with_sync_bn(norm, torch.device("cpu")) is norm


def test_sync_bn_needs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    with pytest.raises(ConfigError, match="sync_bn: works on GPUs only, and the device is cpu"):
        processes.with_sync_bn(net, torch.device("cpu"))
    assert isinstance(processes.with_sync_bn(net, torch.device("cuda"))[0], torch.nn.SyncBatchNorm)  # type: ignore[index]
