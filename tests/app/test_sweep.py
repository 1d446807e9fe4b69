"""Sweeps: what is checked before they start, processes that fail, hang on or are killed, and folders found again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from detkit.app.assemble.identity import config_hash, leaves
from detkit.app.cli.components import load_components
from detkit.app.cli.overrides import normalize_overrides
from detkit.app.cli.paths import config_dir
from detkit.app.cli.sweep_options import sweep_name
from detkit.app.run.folder import RunFolder
from detkit.app.sweep import process, queue
from detkit.app.sweep.batches import Batches
from detkit.app.sweep.board import Board, in_words
from detkit.app.sweep.folder import SweepFolder, read_jobs
from detkit.app.sweep.plan import Job, plan_jobs, without_twins
from detkit.app.sweep.process import JobError
from detkit.config import ConfigError
from detkit.engine.interrupt import Interrupted
from detkit.utils.lock import FolderInUseError, claim

ROOT = Path(__file__).parents[2]
load_components()
OmegaConf.register_new_resolver("or_custom", lambda name: name or "custom", replace=True)


def planned(*lines: list[str], given: tuple[str, ...] = (), experiment: str = "quickstart") -> list[Job]:
    """The jobs of these command lines, on top of an experiment."""
    loader = ConfigLoaderImpl(create_config_search_path(str(config_dir())))
    master = loader.load_configuration(
        "train", [f"experiment={experiment}", *normalize_overrides(given)], run_mode=RunMode.MULTIRUN
    )
    batch = [[f"experiment={experiment}", *normalize_overrides([*given, *line])] for line in lines]
    return plan_jobs(batch, master, loader, Path("somewhere"))


def test_jobs_are_named_by_what_differs_and_placed_by_their_hash() -> None:
    jobs = planned(["model/neck=fpn", "seed=0"], ["model/neck=single_level", "seed=0"], given=("trainer.steps=7",))
    assert [job.label for job in jobs] == ["model/neck=fpn seed=0", "model/neck=single_level seed=0"]
    assert len({job.folder for job in jobs}) == 2
    assert all(job.folder == Path("somewhere") / job.key and len(job.key) == 10 for job in jobs)
    assert jobs[0].steps == 7
    again = planned(["seed=0", "model/neck=fpn"], given=("trainer.steps=7", "device=cpu"))
    assert again[0].key == jobs[0].key, "neither the order nor the device changes what is computed"


def test_every_mistake_names_its_job_before_anything_runs() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(["seed=1"], ["optim.lrr=3", "trainer.steps=many"], ["model/neck=nope"])
    assert caught.value.errors == (
        "job 1 (optim.lrr=3 trainer.steps=many): optim.lrr: no argument 'lrr'; did you mean 'lr'?",
        "job 1 (optim.lrr=3 trainer.steps=many): trainer.steps: must be int, not 'many'",
        caught.value.errors[2],
    )
    assert caught.value.errors[2].startswith(
        "job 2 (model/neck=nope): In 'model/faster_rcnn_fpn': Could not find 'model/neck/nope'; there are "
    )
    assert "fpn_se" in caught.value.errors[2]


def test_misspelt_groups_slots_and_nulls_get_the_nearest_name() -> None:
    """As a sweep's file may have them, which nothing reads before its jobs are composed."""
    with pytest.raises(ConfigError) as caught:
        planned(["model/bakbone=ResNet"], ["loss@model.head.roi.clsloss=Focal"], ["callbacks.csw=null"])
    assert [line.partition("): ")[2] for line in caught.value.errors] == [
        "model/bakbone: no group 'model/bakbone'; did you mean 'model/backbone'?",
        "loss@model.head.roi.clsloss: there is no such slot; did you mean 'loss@model.head.roi.cls_loss'?",
        "callbacks.csw: there is no 'csw' to leave out; did you mean 'csv'?",
    ]


def test_a_mistake_of_several_jobs_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        planned(["seed=1", "trainer.steps=x"], ["seed=2"], ["seed=3", "trainer.steps=x"], given=("optim.lrr=3",))
    assert caught.value.errors == (
        "all 3 jobs: optim.lrr: no argument 'lrr'; did you mean 'lr'?",
        "job 0 (seed=1 trainer.steps=x) and 1 more: trainer.steps: must be int, not 'x'",
    )


def test_twins_run_once() -> None:
    jobs = [Job(label, (), label[0], Path(label), 3) for label in ("a", "b", "a again")]
    assert without_twins(jobs) == jobs[:2]


def test_the_hash_follows_what_is_computed() -> None:
    config = {
        "seed": 0,
        "optim": {"lr": 0.1},
        "device": "cpu",
        "data": {"root": "a", "loader": {"train": {"num_workers": 1}}},
    }
    free = {**config, "device": "cuda", "data": {"root": "a", "loader": {"train": {"num_workers": 4}}}}
    assert config_hash(free) == config_hash(config)
    for other in (
        {**config, "seed": 1},
        {**config, "optim": {"lr": 0.2}},
        {**config, "data": {**config["data"], "root": "b"}},
    ):
        assert config_hash(other) != config_hash(config)


def test_every_other_key_of_a_run_enters_the_hash() -> None:
    """Two runs that could differ in a number must never share a folder."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", ["experiment=quickstart"])
    config = dict(leaves(OmegaConf.to_container(cfg, resolve=False)))
    of_loader = ("num_workers", "timeout", "pin_memory")
    free = {f"data.loader.{split}.{key}" for split in ("train", "val") for key in of_loader}
    free |= {"device", "process_timeout", "run_root", "trainer.save_every", "trainer.log_every"}
    free |= {key for key in config if key.startswith(("resume.", "callbacks."))}
    before = config_hash(config)
    without_effect = {key for key in config if config_hash({**config, key: "another"}) == before}
    assert without_effect == free


def test_the_same_command_finds_the_same_folder() -> None:
    name = sweep_name("a/b", "neck", ["seed=0,1", "trainer.steps=3", "sweep=neck"], {"model/neck": "fpn,single_level"})
    assert name.startswith("a-b_neck_")
    same = sweep_name(
        "a/b", "neck", ["++trainer.steps=3", "device=cpu", "run_root=x", "seed=0,1"], {"model/neck": "fpn,single_level"}
    )
    assert same == name
    assert sweep_name("a/b", "neck", ["seed=0,1", "trainer.steps=4"], {"model/neck": "fpn,single_level"}) != name
    assert sweep_name("a/b", "neck", ["seed=0,1", "trainer.steps=3"], {"model/neck": "fpn"}) != name
    assert sweep_name(None, None, [], None).startswith("custom_")


#: Of the study of a recipe's parts, all lists of values for one recipe: one of them is planned by default.
STUDY = ("batch", "colour", "ema", "flips", "frozen", "levels", "mosaic", "precision", "rate_adamw", "rate_sgd")
SWEEPS = sorted(p.stem for p in (config_dir() / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in STUDY else n for n in SWEEPS])
def test_every_sweep_file_is_lists_alone_whose_jobs_validate(name: str) -> None:
    text = OmegaConf.load(config_dir() / "sweep" / f"{name}.yaml")
    assert list(text) == ["hydra"]
    assert list(text.hydra) == ["sweeper"]
    head = (config_dir() / "sweep" / f"{name}.yaml").read_text()
    assert f"sweep={name}" in head
    named = re.search(rf"experiment=(\S+) sweep={name}\b", head)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        params = compose("train", [f"sweep={name}"], return_hydra_config=True).hydra.sweeper.params
    lists = {key: re.split(r",(?![^\[]*\])", str(values)) for key, values in params.items()}  # not inside a list
    longest = max(map(len, lists.values()))
    assert longest > 1
    lines = [[f"{key}={values[i % len(values)]}" for key, values in lists.items()] for i in range(longest)]
    experiment = named[1] if named else "quickstart"
    assert len(planned(*lines, given=("data.root=somewhere",), experiment=experiment)) == longest


@pytest.mark.parametrize("said", [[], ["sweep=null"]])
def test_that_there_is_no_sweep_file_may_be_said(said: list[str]) -> None:
    load_components()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", normalize_overrides(["experiment=quickstart", *said]), return_hydra_config=True)
    cfg.hydra.overrides.task = ["optim.lr=1,2"]
    folder = str(cfg.hydra.sweep.dir)
    assert re.fullmatch(r"runs/sweep/quickstart_\w+", folder), folder


# Processes: each "job" is a small script instead of a training


SCRIPT = """
import fcntl, glob, json, os, signal, sys, time
folder, what = sys.argv[1:]
os.write(1, ("working on " + what + chr(10)).encode())
started = os.path.exists(folder + "/last.pt")
open(folder + "/last.pt", "w").close()
if what == "fail":
    print("error: it broke"); sys.exit(1)
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "hang" and not started:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    open(folder + "/hanging", "w").close()
    time.sleep(60)
with open(folder + "/times.json", "w") as f:
    json.dump([time.time(), dict(os.environ)], f)
latest = time.time() + 60
while what == "meet" and len(glob.glob(folder + "/../*meet/times.json")) < 2:
    if time.time() > latest:
        sys.exit("met nobody")
    time.sleep(0.01)
with open(folder + "/result.json", "w") as f:
    json.dump({"best": 0.5, "monitor": "AP", "best_step": 1}, f)
"""


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def command(self: process.JobProcess) -> list[str]:
        return [sys.executable, "-c", SCRIPT, str(self.job.folder), self.job.label]

    monkeypatch.setattr(process.JobProcess, "_command", command)
    return lambda *what: [Job(w, (), f"{i}{w}", tmp_path / f"{i}{w}", 3) for i, w in enumerate(what)]


def test_a_failed_job_is_told_and_does_not_stop_the_others(jobs, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = queue.run_jobs(jobs("fail", "die", "fine"), slots=1)
    failed, died, fine = outcomes.values()
    assert isinstance(failed, JobError)
    assert "exit code 1: error: it broke (all of it: " in str(failed)
    assert "killed by SIGKILL: working on die" in str(died)
    assert fine["best"] == 0.5
    shown = capsys.readouterr().out
    assert "[1/3] fail: failed: exit code 1" in shown
    assert "[3/3] fine: AP 0.5000" in shown


def test_a_failed_job_is_told_by_what_it_said_this_time(jobs) -> None:
    for what, words in (
        ("die", "killed by SIGKILL: working on die (all"),
        ("fail", "exit code 1: error: it broke (all"),
    ):
        (job,) = jobs(what)
        job.folder.mkdir()
        (job.folder / process.OUTPUT).write_text("error: the disk is full\n")
        assert words in str(queue.run_jobs([job], slots=1)[job.key])
        assert (job.folder / process.OUTPUT).read_text().startswith("error: the disk is full\nworking on "), (
            "all is kept"
        )


def test_finished_jobs_are_not_run_again(jobs, capsys: pytest.CaptureFixture[str]) -> None:
    todo = jobs("fine", "fine")
    queue.run_jobs(todo[:1], slots=1)
    before = (todo[0].folder / "times.json").read_text()
    outcomes = queue.run_jobs(todo, slots=1)
    assert len(outcomes) == 2
    assert (todo[0].folder / "times.json").read_text() == before
    assert "1 of 2 jobs are finished already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["jürgen", "数据", "a b", 'the "best"', "Tom's", "a\\b", "a=1,2", "[x]"])
def test_a_job_is_given_its_folder_as_it_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[list[str]] = []
    monkeypatch.setattr(process.subprocess, "Popen", lambda command, **_: typed.append(command))
    folder = tmp_path / name
    folder.mkdir()
    (folder / "last.pt").touch()
    process.JobProcess(Job("only", (), "key", folder, 3), {})
    parser = OverridesParser.create()
    given = {o.key_or_group: o.value() for o in map(parser.parse_override, normalize_overrides(typed[0][3:]))}
    assert {key: OmegaConf.create([value])[0] for key, value in given.items()} == {
        "hydra.run.dir": str(folder), "resume.path": str(folder),
    }  # fmt: skip


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"steps": 3}', '{"monitor": "AP", "best": "0.5"}'])
def test_a_job_whose_result_is_damaged_is_run_again(jobs, content: str) -> None:
    (job,) = jobs("fine")
    job.folder.mkdir()
    (job.folder / "result.json").write_text(content)
    assert queue.run_jobs([job], slots=1)[job.key]["best"] == 0.5  # pyright: ignore[reportIndexIssue]


def test_slots_run_side_by_side_each_with_its_share(jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    todo = jobs("meet", "meet", "fine")  # the first two come to their end only if they run at the same time
    queue.run_jobs(todo, slots=2)
    times, environments = zip(*(json.loads((job.folder / "times.json").read_text()) for job in todo), strict=True)
    ends = [(job.folder / "result.json").stat().st_mtime for job in todo[:2]]
    assert times[2] > min(ends), "the third waits for a slot"
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"4"}
    assert {e[process.JOB_VARIABLE] for e in environments} == {"1"}


def test_gpus_are_dealt_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert queue.environments(1, num_gpus=4) == [{}]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in queue.environments(3, num_gpus=2)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in queue.environments(3, num_gpus=2)] == ["2", "5", "2"]
    assert all("CUDA_VISIBLE_DEVICES" not in e for e in queue.environments(2, num_gpus=0))


def test_a_signal_stops_what_runs_and_the_next_start_goes_on(jobs, capsys: pytest.CaptureFixture[str]) -> None:
    todo = jobs("hang", "fine")

    def interrupt() -> None:
        while not (todo[0].folder / "hanging").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        queue.run_jobs(todo, slots=1)
    thread.join()
    assert caught.value.exit_code == 143
    assert not todo[1].folder.exists(), "nothing new is started"
    assert "the same command goes on with it" in capsys.readouterr().out
    outcomes = queue.run_jobs(todo, slots=1)
    assert [outcome["best"] for outcome in outcomes.values()] == [0.5, 0.5]
    assert "going on with hang" in capsys.readouterr().out


HOLD = """
import sys, time
from detkit.utils.lock import claim
with claim(sys.argv[1]):
    print("claimed", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True, parents=True)
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "claimed\n"
    return other


def test_a_folder_has_one_owner_until_that_ends_however_it_ends(tmp_path: Path) -> None:
    other = holder(tmp_path, 60)
    with pytest.raises(FolderInUseError, match=rf"{tmp_path} is in use by process {other.pid} on "), claim(tmp_path):
        pass
    other.kill()
    other.wait()
    with claim(tmp_path):
        pass


def test_two_sweeps_into_one_folder(tmp_path: Path) -> None:
    other = holder(tmp_path, 60)
    with pytest.raises(FolderInUseError, match="is in use by process"):
        SweepFolder(tmp_path)
    other.kill()
    other.wait()
    folder = SweepFolder(tmp_path)
    folder.add([Job("a b", (), "key", tmp_path / "key", 3)])
    assert read_jobs(tmp_path) == {tmp_path / "key": "a b"}
    folder.close()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"jobs": [1]}', b"\xff\xfe"])
def test_a_damaged_list_of_jobs_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"sweep\.json: not the list of jobs that a sweep writes"):
        read_jobs(tmp_path)


def test_a_job_whose_last_process_is_still_saving_waits_for_it(jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = jobs("fine")
    other = holder(todo[0].folder, 1.0)
    assert queue.run_jobs(todo, slots=1)["0fine"]["best"] == 0.5
    other.wait()
    stuck = jobs("stuck")
    monkeypatch.setattr(queue, "_LAST_STEP_SECONDS", 0.5)
    other = holder(stuck[0].folder, 60)
    assert "is in use by process" in str(queue.run_jobs(stuck, slots=1)["0stuck"])
    other.kill()
    other.wait()


ORPHAN = """
import sys
from detkit.app.sweep.process import stop_with_the_sweep
import time
stop_with_the_sweep()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_job_stops_when_its_sweep_is_gone() -> None:
    environment = {**os.environ, process.JOB_VARIABLE: "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.stdin.close()  # what the end of the parent, even by SIGKILL, does
    assert child.wait(timeout=20) == -signal.SIGTERM


def test_slots_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Batches(OmegaConf.create(), None, 0)  # type: ignore[arg-type]
    assert caught.value.code == 2
    assert "hydra.launcher.slots: must be 1 or more, not 0" in capsys.readouterr().err


def test_how_far_a_run_is(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).steps_done() == 0
    rows = "".join(f"{step},train,loss,0.5\n" for step in range(1, 800))
    (tmp_path / "metrics.csv").write_text("step,split,name,value\n" + rows + "800,tra")
    assert RunFolder(tmp_path).steps_done() == 799


@pytest.mark.parametrize(("finished", "left"), [(True, "about 10 s to go"), (False, "about 16 min to go")])
def test_a_job_that_fails_at_once_does_not_shorten_the_time_to_go(
    finished: bool, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two jobs of 100 steps one has ended and the other made its first step, in 10 s."""
    now = 0.0
    monkeypatch.setattr("detkit.app.sweep.board.time.monotonic", lambda: now)
    jobs = [Job(name, (), name, tmp_path / name, 100) for name in ("first", "second")]
    board = Board(jobs, 0)
    for job in jobs:
        job.folder.mkdir()
        board.started(job, resumed=False)
    board.ended(jobs[0], "over", finished)
    (jobs[1].folder / "metrics.csv").write_text("step,split,name,value\n1,train,loss,0.5\n")
    now = 10.0
    assert board._summary({"second": jobs[1]}).endswith(left)


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (3.4, 89, 600, 11100)] == ["3 s", "89 s", "10 min", "3 h 5 min"]
