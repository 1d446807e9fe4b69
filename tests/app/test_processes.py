"""Several processes under torchrun: one of them dies, all start anew, and the run ends like that of a single process."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from detkit.app.assemble.trainer import with_sync_bn
from detkit.app.run import processes
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


@pytest.mark.slow
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


def test_processes_agree_on_a_name_whatever_the_dead_have_left() -> None:
    """torchrun keeps its store over restarts, and each machine counts restarts for itself."""
    store = torch.distributed.HashStore()
    names = []
    for _ in range(2):  # at the second time all words of the first are still there
        store.set("ask/1", "word of a dead process")
        with ThreadPoolExecutor(3) as pool:
            found = {pool.submit(processes.meet, store, rank, 3, 20.0) for rank in range(3)}
            names.append({each.result() for each in found})
    assert [len(each) for each in names] == [1, 1]
    assert names[0] != names[1]


def test_who_does_not_come_is_named() -> None:
    words = "process 0 of 4: processes 1, 2, 3 did not come within 0.1 s (process_timeout)"
    with pytest.raises(dist.LostProcessError, match=f"^{re.escape(words)}$"):
        processes.meet(torch.distributed.HashStore(), 0, 4, 0.1)
    words = "process 2 of 4: process 0 did not come within 0.1 s (process_timeout)"
    with pytest.raises(dist.LostProcessError, match=f"^{re.escape(words)}$"):
        processes.meet(torch.distributed.HashStore(), 2, 4, 0.1)


def test_a_torchrun_is_known_by_when_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    mark = processes.launcher_mark()
    assert mark == processes.launcher_mark()
    assert mark is not None
    assert mark.startswith(f"none of process {os.getppid()} on ")
    monkeypatch.setattr(os, "getppid", os.getpid)  # a torchrun with the same number must have another mark
    assert processes.launcher_mark() != mark.replace(f"process {os.getppid()} ", f"process {os.getpid()} ")


def test_alone_nothing_of_it_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in dist._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with processes.process_group("auto", 10.0):
        assert not dist.is_initialized()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert processes.launcher_mark() is None
    norm = torch.nn.BatchNorm2d(3)
    assert with_sync_bn(norm, torch.device("cpu")) is norm


def test_sync_bn_needs_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    with pytest.raises(ConfigError, match="sync_bn: works on GPUs only, and the device is cpu"):
        with_sync_bn(net, torch.device("cpu"))
    assert isinstance(with_sync_bn(net, torch.device("cuda"))[0], torch.nn.SyncBatchNorm)  # type: ignore[index]
