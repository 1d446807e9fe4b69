"""Going on from a checkpoint, and leaving on a signal."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine import (
    BEST,
    LAST,
    SGD,
    Callback,
    Checkpoint,
    CheckpointError,
    EvaluationRecord,
    Interrupted,
    Trainer,
    load_checkpoint,
)
from detkit.engine.state import checkpoint as checkpoint_module
from detkit.engine.state.resume import restore_process
from detkit.structures import Batch, Categories
from detkit.utils import dist
from detkit.utils.seed import global_state
from tests.engine.stubs import (
    ActingLoader,
    Recorder,
    StubEvalLoader,
    StubEvaluator,
    digest_of_run,
    make_trainer,
    without_evaluation,
)


def test_a_finished_run_ends_at_once(tmp_path: Path) -> None:
    first = make_trainer(tmp_path).fit()
    before = digest_of_run(tmp_path)
    seen = Recorder()
    loader = ActingLoader(lambda number: pytest.fail("no batch is needed"))
    trainer = make_trainer(tmp_path, train_loader=loader, callbacks={"seen": seen})
    trainer.restore(load_checkpoint(tmp_path / LAST))
    assert trainer.fit() == first
    assert digest_of_run(tmp_path) == before
    assert [name for name, _ in seen.events] == ["start", "end"], "nothing is evaluated or saved again"


def test_thread_count_is_restored_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, steps=2).fit()
    threads = torch.get_num_threads()
    other = 1 if threads > 1 else 2
    try:
        torch.set_num_threads(other)
        trainer = make_trainer(tmp_path, steps=4)
        trainer.restore(load_checkpoint(tmp_path / LAST))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    assert f"taking {threads} CPU threads as before, not {other}: the bits depend on it" in caplog.text


def test_each_process_gets_its_own_random_state_back(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(global_state())
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    for rank in (1, 0, 2):
        monkeypatch.setattr(dist, "rank", lambda rank=rank: rank)
        restore_process({"threads": torch.get_num_threads(), "random": states})
        drawn = torch.rand(4)
        torch.manual_seed(rank)
        assert torch.equal(drawn, torch.rand(4))


def test_another_number_of_processes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_rng_state()
    restore_process({"threads": torch.get_num_threads(), "random": [global_state()] * 2})
    assert torch.equal(torch.get_rng_state(), before)
    assert "1 processes now, 2 before: random states start anew" in caplog.text


def test_other_versions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, steps=2).fit()
    checkpoint = _changed(load_checkpoint(tmp_path / LAST), versions={"torch": "1.0.0"})
    make_trainer(tmp_path, steps=4).restore(checkpoint)
    assert f"versions differ, so the bits may too: torch 1.0.0 before, {torch.__version__} now" in caplog.text


def test_other_rates_are_taken_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, steps=2).fit()
    caplog.clear()
    make_trainer(tmp_path, steps=4).restore(load_checkpoint(tmp_path / LAST))
    assert "going on with (lr" not in caplog.text
    trainer = make_trainer(tmp_path, steps=4, optim=SGD(lr=0.5))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    assert "going on with (lr, weight_decay) [(0.5, 0.0001), (0.5, 0.0)] instead of [(0.05" in caplog.text
    assert trainer.updater.set_learning_rates(1.0) == {"lr": 0.5}, "what was asked for is what is done"


def _changed(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    names = ("step", "detector", "categories", "config", "metrics", "average", "training", "versions", "source")
    return Checkpoint(**{**{name: getattr(checkpoint, name) for name in names}, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ema_decay": None}, "was trained with a moving average (trainer.ema_decay)"),
        (
            {"categories": Categories(("circle",), (3,))},
            "was trained for other classes than the data set has: missing ['square']",
        ),
        ({"detector": torch.nn.Linear(1, 1)}, "holds another model (2 tensors here, 11 there):"),
        ({"optim": SGD(lr=0.05, bias_lr_factor=2)}, "was trained with other parameter groups: loaded state dict"),
        (
            {"optim": lambda detector, batch_size: torch.optim.AdamW(detector.parameters())},
            "was trained with SGD, not with AdamW",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    make_trainer(tmp_path, steps=2).fit()
    with pytest.raises(CheckpointError) as caught:
        make_trainer(tmp_path, **changes).restore(load_checkpoint(tmp_path / LAST))
    assert str(caught.value).startswith(f"{tmp_path / LAST} {words}"), caught.value


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=2).fit()
    words = f"{tmp_path / BEST} has weights alone; a run goes on from last.pt"
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        make_trainer(tmp_path).restore(load_checkpoint(tmp_path / BEST))
    make_trainer(tmp_path, steps=2, ema_decay=None).fit()
    with pytest.raises(CheckpointError, match=r"was trained without a moving average \(trainer\.ema_decay\)$"):
        make_trainer(tmp_path).restore(load_checkpoint(tmp_path / LAST))


def _judged(folder: Path, script: list[float], **changes: Any) -> Trainer:
    """A run that goes on to 12 steps after :func:`_half`."""
    measure = changes.pop("measure", {})
    trainer = make_trainer(folder, evaluator=StubEvaluator(script), **changes)
    trainer.measure |= measure
    trainer.restore(load_checkpoint(folder / LAST))
    return trainer


def _half(folder: Path, **changes: Any) -> None:
    """Four steps and an evaluation."""
    trainer = make_trainer(folder, steps=4, evaluator=StubEvaluator([0.8]), **changes)
    trainer.measure |= {"data.val": "a"}
    trainer.fit()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"measure": {"data.val": "a"}, "monitor": "AP"}, "trainer.monitor"),
        ({"measure": {"data.val": "b"}, "monitor": "val_loss"}, "data.val"),
    ],
)
def test_a_best_value_that_was_measured_otherwise_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], named: str
) -> None:
    _half(tmp_path, monitor="val_loss")
    before = load_checkpoint(tmp_path / LAST).training
    assert before is not None
    words = f"its best value, {before['progress']['best']:.4f} at step 4, was measured by another {named}: the best "
    seen = Recorder()
    trainer = _judged(tmp_path, [0.1, 0.3, 0.2], callbacks={"seen": seen}, **changes)
    assert words in caplog.text
    result = trainer.fit()
    records: list[EvaluationRecord] = seen.of("evaluation")
    assert [record.step for record in records] == [4, 8, 12], "the state at hand is evaluated anew"
    assert records[0].best
    values = [record.result.value(trainer.monitor) for record in records]
    best = (max if trainer.monitor == "AP" else min)(values)
    assert (result.best, result.best_step) == (best, records[values.index(best)].step)
    assert load_checkpoint(tmp_path / BEST).step == result.best_step


def test_a_best_value_that_was_measured_alike_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _half(tmp_path)
    seen = Recorder()
    result = _judged(tmp_path, [0.3, 0.2], measure={"data.val": "a"}, callbacks={"seen": seen}).fit()
    assert "the best starts anew" not in caplog.text
    assert [(record.step, record.best) for record in seen.of("evaluation")] == [(8, False), (12, False)]
    assert (result.best, result.best_step) == (0.8, 4)


def test_a_run_begins_when_its_first_step_is_made(tmp_path: Path) -> None:
    """Or its first evaluation: before that nothing is told or written, so that what fails leaves all as it was."""
    make_trainer(tmp_path, steps=2, **without_evaluation(save_every=1)).fit()
    before = digest_of_run(tmp_path)
    seen = Recorder()

    def fail(number: int) -> None:
        raise RuntimeError("no batch")

    trainer = make_trainer(tmp_path, **without_evaluation(train_loader=ActingLoader(fail), callbacks={"seen": seen}))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    with pytest.raises(RuntimeError, match="no batch"):
        trainer.fit(lambda: pytest.fail("it has not begun"))
    assert seen.events == []
    assert digest_of_run(tmp_path) == before

    begun: list[int] = []
    trainer = make_trainer(tmp_path, **without_evaluation(steps=4, save_every=1, callbacks={"seen": seen}))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    trainer.fit(lambda: begun.append(len(seen.events)))
    assert begun == [0]
    assert [name for name, _ in seen.events] == ["start", "step", "save", "step", "save", "end"]
    assert seen.of("start")[0].step == 2


def test_a_metric_that_there_is_not_is_told_before_anything_is_written(tmp_path: Path) -> None:
    _half(tmp_path)
    before = (tmp_path / LAST).read_bytes()
    for eval_every in (4, 5):  # by the evaluation of the state at hand, or by the first step
        seen = Recorder()
        trainer = _judged(tmp_path, [0.1], monitor="val_loss/boxes", eval_every=eval_every, callbacks={"seen": seen})
        with pytest.raises(ValueError, match=r"no metric 'val_loss/boxes'"):
            trainer.fit(lambda: pytest.fail("it has not begun"))
        assert seen.events == []
        assert (tmp_path / LAST).read_bytes() == before


@pytest.fixture
def straight(tmp_path: Path) -> str:
    (tmp_path / "straight").mkdir()
    make_trainer(tmp_path / "straight").fit()
    return digest_of_run(tmp_path / "straight")


def go_on(run_dir: Path, **changes: Any) -> str:
    trainer = make_trainer(run_dir, **changes)
    trainer.restore(load_checkpoint(run_dir / LAST))
    trainer.fit()
    return digest_of_run(run_dir)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, straight: str, signum: int, code: int) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run, seen = tmp_path / "run", Recorder()
    run.mkdir()
    loader = ActingLoader(lambda number: os.kill(os.getpid(), signum) if number == 4 else None)
    with pytest.raises(Interrupted) as caught:
        make_trainer(run, train_loader=loader, callbacks={"seen": seen}).fit()
    assert (caught.value.code, caught.value.exit_code) == (code, code)
    assert isinstance(caught.value, SystemExit), "uncaught, it is the exit code of the process"
    assert str(caught.value) == f"stopped by {signal.Signals(signum).name}"
    assert load_checkpoint(run / LAST).step == 5
    assert seen.of("exception") == [caught.value]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert go_on(run) == straight


def test_a_signal_cuts_an_evaluation_short(tmp_path: Path, straight: str) -> None:
    class Stopping(StubEvalLoader):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    run, seen = tmp_path / "run", Recorder()
    run.mkdir()
    with pytest.raises(Interrupted):
        make_trainer(run, val_loader=Stopping(), callbacks={"seen": seen}).fit()
    assert not seen.of("evaluation")
    assert load_checkpoint(run / LAST).step == 4
    assert go_on(run) == straight, "the evaluation is made up for"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failing_evaluation_costs_no_step(tmp_path: Path, straight: str, error: BaseException) -> None:
    class Failing(StubEvalLoader):
        def __iter__(self) -> Iterator[Batch]:
            raise error

    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(type(error)):
        make_trainer(run, val_loader=Failing(), save_every=None).fit()
    assert load_checkpoint(run / LAST).step == 4
    assert go_on(run, save_every=None) == straight, "the evaluation is made up for"


def test_a_callback_that_fails_after_an_evaluation_costs_no_step(tmp_path: Path, straight: str) -> None:
    class Full(Callback):
        def on_evaluation_end(self, record: EvaluationRecord) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(OSError, match="No space"):
        make_trainer(run, callbacks={"full": Full()}).fit()
    assert load_checkpoint(run / LAST).step == 4
    assert go_on(run) == straight


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    def twice(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal must not be waited out")

    with pytest.raises(Interrupted) as caught:
        make_trainer(tmp_path, train_loader=ActingLoader(twice)).fit()
    assert caught.value.exit_code == 130
    assert load_checkpoint(tmp_path / LAST).step == 4, "the state before, not one of this moment"


def test_a_second_sigterm_waits(tmp_path: Path) -> None:
    def twice(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        make_trainer(tmp_path, train_loader=ActingLoader(twice)).fit()
    assert load_checkpoint(tmp_path / LAST).step == 5


def test_a_signal_on_a_full_disk_says_what_is_kept(
    tmp_path: Path, straight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM asks for a save that fails: the run still ends at once, and goes on from the save before."""
    run = tmp_path / "run"
    run.mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def act(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(checkpoint_module, "atomic_write", full)

    words = (
        f"{run / LAST} cannot be written at step 5: No space left on device; {run / LAST} is still the one from before"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(words)}$"):
        make_trainer(run, train_loader=ActingLoader(act)).fit()
    monkeypatch.undo()
    assert load_checkpoint(run / LAST).step == 4
    assert go_on(run) == straight
