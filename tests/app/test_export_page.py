"""``docs/export.md``: its program runs without detkit, and its table is the table that is tested."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from detkit.models.export import made_program
from detkit.models.export.trace import traced, write_onnx
from tests.app.documents import ROOT
from tests.models.export import test_forms as forms
from tests.models.export.test_forms import CATEGORIES, ONE_SIZE, TABLE, awake, padded, pixels

PAGE = (ROOT / "docs/export.md").read_text()


def test_the_program_of_the_page_prints_what_the_detector_finds(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    detector, images = awake("yolov1_paper", []), pixels(1, 3, 64, 128)
    graph = traced(made_program(detector, size_divisor=32), (64, 128), fixed=True)
    write_onnx(graph, tmp_path / "model.onnx", {"class_names": json.dumps(CATEGORIES.names)})
    cv2.imwrite(str(tmp_path / "image.png"), images[0].permute(1, 2, 0).numpy()[:, :, ::-1])
    (tmp_path / "program.py").write_text(program)
    said = subprocess.run(
        [sys.executable, "-I", "program.py", "model.onnx", "image.png"], cwd=tmp_path, check=True, capture_output=True, text=True
    )  # fmt: skip
    assert not said.stderr
    with torch.no_grad():
        (found,) = detector(padded(images))
    lines = [line.split() for line in said.stdout.splitlines()]
    assert len(lines) == len(found) > 0
    assert [line[0] for line in lines] == [CATEGORIES.names[label] for label in found.labels]
    np.testing.assert_allclose([float(line[1]) for line in lines], found.scores, atol=1e-4)
    np.testing.assert_allclose([[float(v) for v in line[2:]] for line in lines], found.boxes, atol=0.02)


def test_the_table_of_the_page_is_the_table_that_is_tested():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    rows = rows[rows.index(("detector", "onnx", "torch_export")) + 2 :]  # below the line of dashes
    any_size = ("any size and number", "any size from two cells on, any number")
    assert rows == [(name, *(("one size", "one size") if name in ONE_SIZE else any_size)) for name in TABLE]
    tests = (forms.test_an_onnx_file_agrees_for_images_of_any_size_and_number,
             forms.test_a_program_of_torch_agrees_for_images_of_any_size_and_number)  # fmt: skip
    for test in tests:
        (names,) = (mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")
        assert names == [name for name, *columns in rows if columns == list(any_size)]
