"""How tools end: by one line that names a path or a key, and with nothing lost or left; a fault of the code is shown."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from benchmarks import tool as benchmark
from detkit.app import train
from detkit.app.audit import tool as audit
from detkit.app.cli import failure
from detkit.app.cli.entry import run_tool
from detkit.app.cli.failure import EXIT_INTERRUPTED, EXIT_USAGE, in_words
from detkit.app.compare import tool as compare
from detkit.app.explain import tool as explain
from detkit.app.inspect import components as list_components
from detkit.app.inspect import data as inspect_data
from detkit.app.inspect import model as inspect_model
from detkit.app.use import evaluate, predict
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from tests.app.tools import call, train_briefly

SMALL = [
    "experiment=quickstart", "device=cpu", "data.root=shapes", "data.train.num_train=4", "data.train.num_val=2",
    "data.train.image_size=64", "data.loader.train.batch_size=2", "data.loader.train.num_workers=0",
    "data.loader.val.num_workers=0", "trainer.steps=1", "callbacks.tensorboard=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return train_briefly(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # a tool sets it


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda main, *arguments, code: call(main, monkeypatch, capsys, *arguments, code=code)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_folder_for_results_is_tried_before_the_work(run, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "a.png").touch()
    for name in ("use.evaluate.evaluate", "explain.tool.examine", "use.predict.Detection"):  # the work
        monkeypatch.setattr(f"detkit.app.{name}", None)
    for main, more in ((evaluate.main, []), (explain.main, []), (predict.main, ["input=a.png"])):
        for output in ("file", "file/below"):
            told = run(main, f"checkpoint={checkpoint}", "device=cpu", f"output={output}", *more, code=1)
            assert f"error: {output}: Not a directory\n" in told
            assert "Traceback" not in told
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", full)
            told = run(main, f"checkpoint={checkpoint}", "device=cpu", "output=new/out", *more, code=1)
        assert "error: new/out: No space left on device\n" in told
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("main", [train.main, audit.main, inspect_model.main, inspect_data.main, predict.main])
def test_a_run_folder_that_cannot_be_made_is_one_line(run, tmp_path, main):
    """Hydra makes it, and would show a traceback."""
    (tmp_path / "file").touch()
    more = ["checkpoint=x.pt", "input=y"] if main is predict.main else SMALL[2:3]
    told = run(main, *more, "hydra.run.dir=file/run", code=1)
    assert told.startswith("error: file/run: Not a directory\n")
    assert len(told.splitlines()) == 2
    assert os.environ.get("HYDRA_FULL_ERROR") is None


def test_a_full_disk_names_the_file(run, checkpoint, monkeypatch):
    monkeypatch.setattr("detkit.utils.files._sync", full)
    for main, name in ((evaluate.main, "detections.json"), (explain.main, "explanation.json")):
        told = run(main, f"checkpoint={checkpoint}", "device=cpu", "output=out", code=1)
        assert f"error: out/{name}: No space left on device\n" in told
        assert "Traceback" not in told


def test_a_list_that_cannot_be_printed_is_one_line(run, monkeypatch):
    monkeypatch.setattr("rich.console.Console._write_buffer", full)
    told = run(list_components.main, code=1)
    assert "No space left on device" in told
    assert "Traceback" not in told


def test_a_fault_of_the_code_shows_where(run, monkeypatch):
    def fault(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "build_trainer", fault)
    with pytest.raises(RuntimeError, match="a bug"):
        run(train.main, *SMALL, code=0)


@pytest.mark.parametrize("main", [train.main, audit.main, inspect_model.main, inspect_data.main])
def test_ctrl_c_while_data_sets_are_opened_leaves_nothing(run, tmp_path, monkeypatch, main):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    where = "detkit.app.assemble.trainer" if main is train.main else main.__module__
    monkeypatch.setattr(where + (".build" if main is inspect_data.main else ".build_dataset"), interrupted)
    settings = SMALL if main is not inspect_data.main else ["data=shapes_tiny", "data.root=shapes"]
    told = run(main, *settings, "hydra.run.dir=run", code=EXIT_INTERRUPTED)
    assert told.strip() == "stopped by Ctrl-C"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("threads=0", "threads: must lie in [1, 1024], not 0"),
        ("threads=99999", "threads: must lie in [1, 1024], not 99999"),
        ("seed=-1", "seed: must lie in [0, 9223372036854775807], not -1"),
        ("process_timeout=0", "process_timeout: must lie in [1, 2592000], not 0"),
        ("process_timeout=1e300", "process_timeout: must lie in [1, 2592000], not 1e+300"),
        ("trainer.steps=0", "trainer: Trainer: steps must be 1 or more, not 0"),
        ("data.loader.train.batch_size=-2", "data.loader.train: TrainLoader: batch_size -2 must be positive"),
        ("data.loader.val.num_workers=-1", "data.loader.val: EvalLoader: num_workers -1 and timeout"),
        ("callbacks.progress.window=0", "callbacks.progress: ProgressBar: window must be 1 or more, not 0"),
        (
            "model.head.roi.selector.score_threshold=2",
            "model.head.roi.selector.score_threshold: must be float from 0 to 1, not 2",
        ),
        ("model.head.rpn.nms_iou=-0.1", "model.head.rpn.nms_iou: must be float from 0 to 1, not -0.1"),
        (
            "model.head.roi.selector.max_detections=0",
            "model.head.roi.selector.max_detections: must be int of 1 or more, not 0",
        ),
        ("model.neck.out_channels=-8", "model.neck.out_channels: must be int of 1 or more, not -8"),
    ],
)
def test_a_value_that_cannot_be_meant_is_told_by_its_key(run, tmp_path, value, told):
    output = run(train.main, *SMALL, value, "hydra.run.dir=run", code=2)
    last = [line for line in output.splitlines() if " INFO " not in line and " WARNING " not in line]
    assert len(last) == 1
    assert last[0].startswith(f"error: {told}")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_called_like_a_number_is_told_to_want_quotes(run, tmp_path):
    output = run(train.main, *SMALL, "data.root=2024", "hydra.run.dir=run", code=2)
    assert 'error: data.root: must be str or null, not 2024; as a text it has quotes, "2024", which a' in output
    assert output.count("must be str") == 1, "not of what points to it"
    run(train.main, *SMALL, 'data.root="2024"', "hydra.run.dir=run", code=0)
    assert (tmp_path / "2024").is_dir()


def test_numbers_of_the_other_command_lines(run, checkpoint):
    assert "threads: must lie in" in run(audit.main, *SMALL, "threads=-1", code=2)
    assert "seed: must lie in" in run(inspect_model.main, *SMALL, "seed=-5", code=2)
    for main, *more in ((evaluate.main,), (explain.main,), (predict.main, "input=.")):
        assert "threads: must lie in [1, 1024], not 0" in run(
            main, f"checkpoint={checkpoint}", *more, "output=out", "threads=0", code=2
        )
    assert not Path("out").exists()
    assert "--batch: must be 1 or more, not 0" in run(benchmark.main, "training", "--batch", "0", code=2)
    assert "--threads: must be 1 or more, not 0" in run(benchmark.main, "divergence", "--threads", "0", code=2)
    for name in ("gpu", "cudo", "cuda:x"):
        assert f"device: {name!r} is not there: it may be auto, cpu, cuda or cuda:N\n" in run(
            benchmark.main, "ops", "--device", name, code=2
        )
    assert "--seed: must be 0 or more, not -1" in run(compare.main, "x", "--seed", "-1", code=2)


def test_ranges():
    for value in (None, 1, 1.5, 2):
        check_range("key", value, 1, 2)
    for value in (0.99, 2.01, float("nan")):
        with pytest.raises(ConfigError, match=rf"key: must lie in \[1, 2\], not {value}"):
            check_range("key", value, 1, 2)


def test_errors_of_the_system_in_words():
    assert in_words(FileNotFoundError("no configs beside detkit")) == "no configs beside detkit"
    assert in_words(PermissionError(errno.EACCES, "Permission denied", "a")) == "a: Permission denied"
    assert in_words(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")) == (
        "a -> b: Invalid cross-device link"
    )
    assert in_words(OSError(errno.ENOSPC, "No space left on device")) == "[Errno 28] No space left on device"


def test_the_result_is_written_before_anything_is_shown(run, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("cannot be shown")

    monkeypatch.setattr(train, "report_training", fail)
    assert "cannot be shown" in run(train.main, *SMALL, "threads=1", "hydra.run.dir=run", code=1)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


def test_relative_paths_of_a_checkpoint_say_from_where_they_count(run, checkpoint, tmp_path):
    """They are those of the working directory in which it was trained."""
    for main in (evaluate.main, explain.main):
        told = run(main, f"checkpoint={checkpoint}", "device=cpu", "data=coco", "data.root=shapes/x", code=2)
        assert f"data.root=shapes/x counts from the working directory, {tmp_path}" in told
        assert "data.root=PATH names another folder" in told


def test_a_thread_that_cannot_write_says_so_in_a_line(run, monkeypatch, capsys):
    """TensorBoard's writer has one."""

    def work(cfg, folder):
        for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug")):
            thread = threading.Thread(target=lambda error=error: (_ for _ in ()).throw(error))
            thread.start()
            thread.join()

    told = run(lambda: run_tool(work, "evaluate"), code=0)
    assert told.startswith("error: [Errno 28] No space left on device\nException in thread")
    assert told.rstrip().endswith("RuntimeError: a bug")


@pytest.mark.parametrize(("rank", "said"), [("0", "error: optim.lr: too high\n"), ("1", "")])
def test_of_several_processes_the_main_one_tells_what_all_read(monkeypatch, capsys, rank, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(failure, "_UNTIL_TOLD", 0.0)
    with pytest.raises(SystemExit) as ended, failure.told_once():
        raise ConfigError("optim.lr: too high")
    assert ended.value.code == EXIT_USAGE
    assert capsys.readouterr().err == said
