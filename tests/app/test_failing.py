"""One of several processes fails: all end at once, one tells why as if alone, the others in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.app.failing import TIMEOUT

ROOT = Path(__file__).resolve().parents[2]

LOSS = "step 5: the loss is not finite: cls = nan, box = nan; images "
BOX = r"box 0 of image \d+ \(\d+\.png\) is \[[\d., ]+, nan, [\d.]+\]"

#: Fault, process that has it, processes, what that one says, and the first finding of its report; None without one.
CASES = [
    ("exploding loss", 1, 2, r"step 5: the loss explodes: \S+ is more than 100 times the usual", ""),
    ("NaN loss", 1, 2, LOSS, "every layer's output is finite: the loss itself is not"),
    ("infinite gradient", 1, 2, "step 5: the gradient is not finite, though the loss is", ".*gradient is not finite"),
    ("NaN box", 1, 2, rf"step 5: a batch cannot be trained on\n  {BOX}", BOX),
    ("NaN box", 0, 2, rf"step 5: a batch cannot be trained on\n  {BOX}", BOX),
    ("bad image", 1, 2, r"data/7\.jpg: cannot be decoded", None),
    ("failing detector", 1, 2, "an index is out of range", None),
    (
        "half a gradient",
        1,
        2,
        r"step 5: the detector failed on a bad batch \(RuntimeError: no memory",
        "box 0 of image",
    ),
    ("failing on_fit_start", 0, 2, "the disk of the logs is gone", None),
    ("failing on_step_end", 0, 2, "the disk of the logs is gone", None),
    ("failing on_save", 0, 2, "the disk of the logs is gone", None),
    ("failing on_evaluation_end", 0, 2, "the disk of the logs is gone", None),
    ("failing on_fit_end", 0, 2, "the disk of the logs is gone", None),
    ("bad validation image", 1, 2, r"data/101\.jpg: cannot be decoded", None),
    ("failing evaluator", 0, 2, "no scores today", None),
    ("exploding loss", 2, 3, r"step 5: the loss explodes: \S+ is more than 100 times the usual", ""),
]


#: Faults in the midst of an exchange: the others learn of them when the process is gone. Of all else they are told.
UNTOLD = ("failing detector", "half a gradient")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cases = [f"{fault},{culprit},{world}" for fault, culprit, world, *_ in CASES]
    command = [sys.executable, "-m", "tests.app.failing", str(tmp_path_factory.mktemp("failing")), *cases]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("fault", "culprit", "world", "words", "finding"), CASES, ids=[f"{f} in {c} of {w}" for f, c, w, *_ in CASES]
)
def test_one_tells_and_all_end(
    found: dict[str, Any], fault: str, culprit: int, world: int, words: str, finding: str | None
) -> None:
    result = found[f"{fault},{culprit},{world}"]
    assert all(code in (1, 3) for code in result["codes"]), result
    assert result["seconds"] < TIMEOUT / 2, "nobody has waited for the lost one"
    assert re.search(rf"^\w+: {words}", result["words"][culprit], re.MULTILINE), result["words"][culprit]
    in_one_line = words.replace(r"\n  ", "; ")
    for rank in set(range(world)) - {culprit}:
        others = rf"error: process {rank} of {world}: process {culprit} has failed: {in_one_line}.*\n"
        assert re.fullmatch(others, result["words"][rank]), result["words"][rank]
        assert fault in UNTOLD or result["errors"][rank] == "FailedElsewhereError"
    name = f"divergence_step5{f'_rank{culprit}' * (culprit > 0)}.pt"
    assert list(result["reports"]) == ([] if finding is None else [name])
    if finding:
        assert re.match(finding, result["reports"][name][0])
