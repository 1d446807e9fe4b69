"""Real sweeps of tiny trainings."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment=quickstart", "device=cpu", "threads=1", "data.train.num_train=12", "data.train.num_val=4",
    "data.train.image_size=96", "data.loader.train.batch_size=2", "trainer.log_every=1", "callbacks.tensorboard=null",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(tool: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)


def run(tool: str, *arguments: str, code: int = 0) -> str:
    process = start(tool, *arguments)
    output = process.communicate(timeout=3600)[0]
    assert process.returncode == code, output
    return output


def test_a_sweep_with_a_job_that_fails(tmp_path: Path) -> None:
    settings = [*SMALL, f"data.root={tmp_path / 'data'}", f"run_root={tmp_path}", "trainer.steps=2"]
    command = ["-m", *settings, "optim.lr=1e-3,1e30", "hydra.launcher.slots=2"]
    output = run("train", *command, code=1)
    assert "[2/2]" in output
    assert "optim.lr=1e+30: failed: exit code 1: error: step 2: the loss" in output
    (sweep,) = (tmp_path / "sweep").iterdir()
    assert f"1 of 2 jobs finished\nnext: python tools/compare.py {sweep}\n" in output
    assert len(json.loads((sweep / "sweep.json").read_text())["jobs"]) == 2
    output = run("compare", str(sweep), "--samples", "100")
    assert "Left out, since they have not come to their end: optim.lr=1e+30." in output


@pytest.mark.parametrize("named", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_the_jobs_find_an_experiment_of_ones_own(tmp_path: Path, named: str) -> None:
    file = tmp_path / "mycfg/experiment/mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndefaults: [/experiment/quickstart, _self_]\ntrainer: {steps: 2}\n")
    own = [named.format(tmp_path / "mycfg"), "experiment=mine", *SMALL[1:]]
    output = run("train", "-m", *own, f"data.root={tmp_path / 'data'}", f"run_root={tmp_path}", "seed=0")
    assert "1 of 1 jobs finished" in output or "failed" not in output
    (result,) = tmp_path.glob("sweep/*/*/result.json")
    assert json.loads(result.read_text())["steps"] == 2


def test_a_list_needs_the_flag(tmp_path: Path) -> None:
    output = run("train", *SMALL, "sweep=neck", f"hydra.run.dir={tmp_path / 'run'}", code=2)
    assert "sweep=neck is a list of jobs: add -m" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_twelve_jobs_killed_twice_end_in_the_table_of_a_sweep_never_killed(tmp_path: Path) -> None:
    common = [
        "-m",
        *SMALL,
        f"data.root={tmp_path / 'data'}",
        "trainer.steps=6",
        "trainer.save_every=1",
        "trainer.eval_every=3",
    ]
    lists = ["model/neck=fpn,single_level", "optim.lr=1e-3,3e-3", "seed=0,1,2", "hydra.launcher.slots=2"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run("train", *common, *lists, f"hydra.sweep.dir={straight}")
    command = [*common, *lists, f"hydra.sweep.dir={killed}"]
    rng = random.Random(0)
    for at_work in (False, True):
        process = start("train", *command)
        goal = finished(killed) + rng.randint(1, 4)
        while finished(killed) < goal or (at_work and not is_at_work(killed)):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        time.sleep(0 if at_work else rng.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    output = run("train", *command)
    assert "jobs are finished already" in output
    assert "12 of 12 jobs finished" in output
    tables = []
    for folder in (straight, killed):
        run("compare", str(folder), "--samples", "100")
        with (folder / "comparison" / "table.csv").open() as file:
            rows = list(csv.DictReader(file))
        tables.append(
            [{k: v for k, v in row.items() if k not in ("images_per_second", "memory_bytes")} for row in rows]
        )
    assert tables[0] == tables[1]
    assert len(tables[0]) == 4
    assert any(float(row["AP_mean"]) > 0 for row in tables[0])
    assert any("going on from" in path.read_text() for path in killed.glob("*/log.txt")), "one was resumed"


def finished(folder: Path) -> int:
    return len(list(folder.glob("*/result.json")))


def is_at_work(folder: Path) -> bool:
    """Whether a job has saved something and is not at its end."""
    return any(not (path.parent / "result.json").exists() for path in folder.glob("*/last.pt"))
