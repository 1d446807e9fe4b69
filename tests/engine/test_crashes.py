"""Runs that are killed end in the bits of a run that was not, and a kill during a save leaves a good file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def crashes(task: str, folder: Path, *numbers: int) -> Any:
    """What ``python -m tests.engine.crashes`` prints. An hour is for a busy disk: each save waits for it."""
    command = [sys.executable, "-m", "tests.engine.crashes", task, str(folder), *map(str, numbers)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, env=os.environ, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def check_resumed(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        assert run["codes"] == [-9, -9, 0], run
        assert run["resumed"] == run["straight"], run
        assert run["same_best"], run
        assert run["same_table"], run
    assert len({run["straight"] for run in runs}) == len(runs), "the digest must see the seed"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return crashes("everything", tmp_path_factory.mktemp("crashes"))


def test_killed_twice_and_resumed_is_bit_equal(found: dict[str, Any]) -> None:
    assert len(found["resumed"]) == 3
    check_resumed(found["resumed"])


@pytest.mark.slow
def test_killed_twice_and_resumed_is_bit_equal_for_a_hundred_seeds(tmp_path: Path) -> None:
    check_resumed(crashes("kill_and_resume", tmp_path, 100, 200))


def test_a_kill_during_a_save_leaves_a_good_file(found: dict[str, Any]) -> None:
    results = found["saved"]
    assert len(results) == 11
    renamed = False
    for result in results:
        renamed = renamed or result["at"] == "after replace 1"
        assert result["code"] == 9, result
        assert result["last"] == (9 if renamed else 6), result
        assert result["previous"] in (3, 6), result
        assert result["after"] == ["last.pt", "previous.pt"], "the next save removes what the killed one left"
    assert any(name.startswith(".last.") for result in results for name in result["left"])
    assert len({result["digest"] for result in results}) == 1, "wherever the save was cut, the resumed run is the same"


def test_two_processes_equal_one_with_the_doubled_batch(found: dict[str, Any]) -> None:
    result = found["distributed"]
    assert result["codes"] == [0] * 5
    assert result["difference"] < 1e-6
    alone, together = result["metrics"]
    assert together == pytest.approx(alone, rel=1e-6)
    assert result["postponed"] == list(range(12)), "of a step's two batches the first needs no exchange"
    trained_by_two, alone = result["normed"]
    assert trained_by_two == pytest.approx(alone, rel=1e-6), "each process must evaluate with the same statistics"
    assert result["states"] == 2, "each process has its own random state"
    assert result["stopped"] == [143, 143], "a signal to one process stops both"
    assert result["stopped_at"] == 3
    assert result["broken"] == [8, 7], "a nan in one process stops both, and the other knows that it is not to blame"


def test_a_worker_that_gets_the_signal_too_may_finish_but_not_hang(found: dict[str, Any]) -> None:
    assert found["workers"] == {"busy": 5, "hung": -signal.SIGALRM, "parent asked to stop": 0}
