"""Several processes find in a validation set what one finds, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.sharded import CASES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict]]:
    command = [sys.executable, "-m", "tests.engine.sharded", str(tmp_path_factory.mktemp("sharded"))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_process_gets_the_numbers_of_a_single_one(found: list[list[dict]]) -> None:
    alone = {}
    for (model, num_images, _, world), results in zip(CASES, found, strict=True):
        assert len(results) == world
        if world == 1:
            alone[model] = results[0]
            assert results[0]["metrics"]["AP"] > 0.02, "or nothing would be compared"
            assert results[0]["metrics"]["val_loss"] > 0
            assert results[0]["num_images"] == num_images
        for result in results:
            assert result == alone[model], (model, world)
