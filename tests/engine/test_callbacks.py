"""What callbacks write."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detkit.config import ConfigError
from detkit.engine import (
    EvaluationRecord,
    EvaluationResult,
    FitResult,
    FitStart,
    MetricsCsv,
    ProgressBar,
    StepRecord,
    TensorBoardWriter,
)
from detkit.engine.callbacks.metrics_csv import read_metrics
from detkit.engine.evaluation import Example
from detkit.structures import Detections, ImageMeta, Target
from detkit.utils.progress import track
from tests.engine.stubs import CATEGORIES


def step(number: int, logged: bool = True, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "loss": 1.0 / number,
        "terms": {"cls": 0.25 / number, "box": 0.75 / number},
        "stats": {"num_pos": 4.0},
        "lr": {"lr": 0.02, "lr/x0.1": 0.002},
        "grad_norm": 3.0,
        "applied": True,
        "num_images": 8,
        "data_seconds": 0.5,
        "compute_seconds": 1.5,
    }
    return StepRecord(step=number, logged=logged, **{**values, **changes})


def evaluation(number: int, best: bool = True) -> EvaluationRecord:
    image = np.full((20, 30, 3), 90, np.uint8)
    found = Detections(torch.tensor([[2.0, 2, 9, 9], [1, 1, 5, 5]]), torch.tensor([0.75, 0.25]), torch.tensor([1, 0]))
    target = Target(torch.tensor([[2.0, 2, 9, 9], [0, 0, 3, 3]]), torch.tensor([1, 0]), torch.tensor([False, True]))
    examples = tuple(Example(image, ImageMeta(i, f"{i}.png", (20, 30), (20, 30)), found, target) for i in (4, 5, 6))
    return EvaluationRecord(number, EvaluationResult(None, {"val_loss": 0.1 * number}, examples, 3, 1.0), best)


def start(run_dir: Path, number: int = 0) -> FitStart:
    return FitStart(number, 100, run_dir, CATEGORIES)


END = FitResult(100, {}, None, None, False)


# ---------------------------------------------------------------------- MetricsCsv


def test_the_table_is_tidy(tmp_path: Path) -> None:
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path))
    table.on_step_end(step(1))
    table.on_step_end(step(2, logged=False))
    table.on_evaluation_end(evaluation(3))
    table.on_fit_end(END)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,split,name,value",
        "1,train,loss,1.0",
        "1,train,loss/cls,0.25",
        "1,train,loss/box,0.75",
        "1,train,stat/num_pos,4.0",
        "1,train,lr,0.02",
        "1,train,lr/x0.1,0.002",
        "1,train,grad_norm,3.0",
        "1,train,time/images_per_second,4.0",
        "1,train,time/data_share,0.25",
        "3,val,val_loss,0.30000000000000004",
    ]


def test_a_resumed_table_loses_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path))
    for number in (9, 10, 11, 100):
        table.on_step_end(step(number))
        table.on_evaluation_end(evaluation(number))
    table.on_exception(RuntimeError())
    with open(path, "a") as file:
        file.write("10,train,loss,0.")  # what a kill has left
    before = path.read_text().splitlines()
    resumed = MetricsCsv()
    resumed.on_fit_start(start(tmp_path, 10))
    assert path.read_text().splitlines() == [row for row in before[:-1] if row.split(",")[0] in ("step", "9", "10")]
    resumed.on_step_end(step(11))
    resumed.on_fit_end(END)
    assert path.read_text().splitlines()[-1] == "11,train,time/data_share,0.25"


@pytest.mark.parametrize(
    "line",
    [
        b"9,train", b"9,train,loss", b"9,train,loss,abc", b"9,train,loss,", b"9,train,,0.5", b"nine,train,loss,0.5",
        b"-9,train,loss,0.5", b"9.5,train,loss,0.5", b"9,test,loss,0.5", b"9,train,loss,0.5,0.5", b"",
        b"9,train,l\xffss,0.5", b"\xff\xfe\x00", b"\x00" * 4096, b'9,train,"loss,0.5', "\u00b2,train,loss,0.5".encode(),
        b"9" * 5000 + b",train,loss,0.5", b"9,train," + b"x" * 200_000 + b",0.5",
    ],
)  # fmt: skip
def test_a_run_goes_on_whatever_a_line_of_its_table_holds(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.csv"
    rows = b"8,train,loss,1\n8,val,AP/a,0.10\n"
    path.write_bytes(b"step,split,name,value\n" + line + b"\n" + rows + line)
    assert read_metrics(path) == [(8, "train", "loss", "1"), (8, "val", "AP/a", "0.10")]
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path, 10))
    table.on_fit_end(END)
    assert path.read_bytes() == b"step,split,name,value\n" + rows, "digits stay as they were"


def test_a_run_goes_on_though_its_table_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.csv"
    for content in (b"\xff\xfe\x00\x00", b"\x00" * 40, b"a photo\n"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=re.escape(f"{path}: not the table of logged numbers")):
            read_metrics(path)
        table = MetricsCsv()
        table.on_fit_start(start(tmp_path, 10))
        table.on_fit_end(END)
        assert f"{path}: not the table of logged numbers that a run writes; begun anew" in caplog.text
        assert path.read_text() == "step,split,name,value\n"
        caplog.clear()
    for content in ("", "step,split,name,value\n"):
        path.write_text(content)
        assert read_metrics(path) == []


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path))
    table.on_step_end(step(1))
    assert "1,train,loss,1.0\n" in (tmp_path / "metrics.csv").read_text()
    table.on_fit_end(END)


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it does not take the place of what the run stops with."""
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(table._file, "flush", lambda: (full.write("x"), full.flush()))
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'metrics.csv'}'"):
            table.on_step_end(step(1))
        monkeypatch.setattr(table._file, "close", lambda: (full.write("x"), full.flush()))
        table.on_exception(ValueError())
        with contextlib.suppress(OSError):
            full.close()


def test_a_fresh_run_in_an_old_folder_starts_a_fresh_table(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,split,name,value\n5,train,loss,1.0\n")
    table = MetricsCsv()
    table.on_fit_start(start(tmp_path))
    table.on_fit_end(END)
    assert (tmp_path / "metrics.csv").read_text() == "step,split,name,value\n"


# ---------------------------------------------------------------------- TensorBoardWriter


def written(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path) -> None:
    writer = TensorBoardWriter(num_images=2, min_score=0.5)
    writer.on_fit_start(start(tmp_path))
    writer.on_step_end(step(1))
    writer.on_step_end(step(2, logged=False))
    writer.on_step_end(step(4))
    for number in (4, 8):
        writer.on_evaluation_end(evaluation(number))
    writer.on_fit_end(END)
    events = written(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss/cls")] == [(1, 0.25), (4, 0.0625)]
    assert {"train/lr", "train/lr/x0.1", "train/grad_norm", "val/val_loss"} <= set(events.Tags()["scalars"])
    assert sorted(events.Tags()["images"]) == [f"image {i}/{what}" for i in (4, 5) for what in ("detections", "truth")]
    assert [e.step for e in events.Images("image 4/detections")] == [4, 8]
    assert [e.step for e in events.Images("image 4/truth")] == [4], "what there is to find does not change"
    picture = events.Images("image 4/detections")[0]
    assert picture.width >= 30


def test_tensorboard_names_its_folder_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TensorBoardWriter()
    writer.on_fit_start(start(tmp_path))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._writer, "add_scalar", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'tensorboard'}'"):
        writer.on_step_end(step(1))
    close = writer._writer.close
    monkeypatch.setattr(writer._writer, "close", full)
    writer.on_exception(ValueError())
    close()


def test_only_sure_detections_and_wanted_truth_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def draw(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, names: Any, scores: Any = None, **_: Any) -> Any:
        drawn.append((boxes.tolist(), labels.tolist(), names, None if scores is None else scores.tolist()))
        return image

    monkeypatch.setattr("detkit.engine.callbacks.tensorboard.draw_boxes", draw)
    writer = TensorBoardWriter(num_images=1, min_score=0.5)
    writer.on_fit_start(start(tmp_path))
    writer.on_evaluation_end(evaluation(4))
    writer.on_fit_end(END)
    names = ("circle", "square")
    assert drawn == [([[2, 2, 9, 9]], [1], names, [0.75]), ([[2, 2, 9, 9]], [1], names, None)]


def test_a_resumed_tensorboard_hides_what_came_after(tmp_path: Path) -> None:
    for begin, numbers in ((0, (1, 2, 3, 4)), (2, (3, 4))):
        writer = TensorBoardWriter()
        writer.on_fit_start(start(tmp_path, begin))
        for number in numbers:
            writer.on_step_end(step(number, loss=float(begin)))
        writer.on_exception(RuntimeError()) if begin == 0 else writer.on_fit_end(END)
    assert [(e.step, e.value) for e in written(tmp_path).Scalars("train/loss")] == [(1, 0), (2, 0), (3, 2), (4, 2)]


def test_a_tensorboard_begun_anew_hides_the_run_that_saved_nothing(tmp_path: Path) -> None:
    for loss, numbers in ((1.0, (1, 2, 3)), (2.0, (1, 2))):
        writer = TensorBoardWriter()
        writer.on_fit_start(start(tmp_path))
        for number in numbers:
            writer.on_step_end(step(number, loss=loss))
        writer.on_exception(RuntimeError())
    assert [(e.step, e.value) for e in written(tmp_path).Scalars("train/loss")] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_images": 9}, "num_images must be from 0 to 8, not 9"),
        ({"min_score": 1.5}, "min_score must be in [0, 1], not 1.5"),
    ],
)
def test_tensorboard_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        TensorBoardWriter(**options)


# ---------------------------------------------------------------------- ProgressBar


def console(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> rich.console.Console:
    made = rich.console.Console(force_terminal=is_terminal, width=200, record=True, force_interactive=is_terminal)
    monkeypatch.setattr("rich.get_console", lambda: made)
    return made


def test_without_a_terminal_there_are_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    console(monkeypatch, is_terminal=False)
    bar = ProgressBar()
    with caplog.at_level(logging.INFO, "detkit"):
        bar.on_fit_start(start(Path()))
        bar.on_step_end(step(19, logged=False, data_seconds=2.0, compute_seconds=2.0))
        bar.on_step_end(step(20))
        bar.on_fit_end(END)
    assert caplog.messages == [
        "step 20/100, loss 0.0500, lr 2.00e-02, 2.7 img/s, 42% waiting for data, 0:04:00 left"
        " | cls 0.0125, box 0.0375, grad_norm 3"
    ]


def test_rates_are_of_the_last_steps(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    console(monkeypatch, is_terminal=False)
    bar = ProgressBar(window=2)
    with caplog.at_level(logging.INFO, "detkit"):
        bar.on_fit_start(start(Path()))
        for number, seconds in ((1, 50.0), (2, 1.0), (3, 1.0)):
            bar.on_step_end(step(number, data_seconds=0.0, compute_seconds=seconds))
    assert "8.0 img/s, 0% waiting for data, 0:01:37 left" in caplog.messages[-1]
    with pytest.raises(ValueError, match=r"^window must be 1 or more, not 0$"):
        ProgressBar(window=0)


def test_on_a_terminal_there_is_a_bar_and_lines_go_to_the_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = console(monkeypatch, is_terminal=True)
    bar = ProgressBar()
    with caplog.at_level(logging.DEBUG, "detkit"):
        bar.on_fit_start(start(Path(), 10))
        bar.on_step_end(step(20))
        assert list(track([1, 2], 2, "evaluating")) == [1, 2], "an evaluation has a bar within the bar"
        bar.on_exception(RuntimeError())
    shown = terminal.export_text()
    assert "20/100" in shown
    assert "loss 0.0500" in shown
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert not terminal._live_stack, "the bar must be gone, or it would draw over the traceback"
