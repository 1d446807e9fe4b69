"""Several processes find what one finds, to the last bit, and learn what one learns, nearly so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.sharded import CASES, MODELS, SLOW_MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return told(tmp_path_factory.mktemp("sharded"))


def told(folder: Path, *models: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.engine.sharded", str(folder), *models]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_process_gets_the_numbers_of_a_single_one(found: dict[str, Any]) -> None:
    alone = {}
    for (model, num_images, _, world), results in zip(CASES, found["evaluations"], strict=True):
        assert len(results) == world
        assert [result.pop("computed") for result in results] == [1] + [0] * (world - 1)
        if world == 1:
            alone[model] = results[0]
            assert results[0]["metrics"]["AP"] > 0.02, "or nothing would be compared"
            assert results[0]["metrics"]["val_loss"] > 0
            assert results[0]["num_images"] == num_images
        for result in results:
            assert result == alone[model], (model, world)


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_learn_what_one_does_though_one_has_no_boxes(found: dict[str, Any], model: str) -> None:
    check_learnt_alike(found["training"][model])


@pytest.mark.slow
def test_larger_models_learn_it_too(tmp_path: Path) -> None:
    for result in told(tmp_path, *SLOW_MODELS)["training"].values():
        check_learnt_alike(result)


def check_learnt_alike(result: dict[str, Any]) -> None:
    alone, shared = result["losses"]
    for one, other in zip(alone, shared, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert result["moved"] > 1e-4
    assert max(result["apart"]) < 1e-4 * result["moved"]
