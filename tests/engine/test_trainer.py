"""What a run does when, what stops it, and what it says then."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
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
    Constant,
    EvaluationRecord,
    FitResult,
    FitStart,
    Interrupted,
    MetricsCsv,
    MultiStep,
    NonFiniteError,
    ProgressBar,
    StepRecord,
    TensorBoardWriter,
    Trainer,
    load_checkpoint,
)
from detkit.structures import Batch, Categories, Images, Losses, Target
from tests.engine.stubs import (
    StubDetector,
    StubEvalLoader,
    StubEvaluator,
    StubTrainLoader,
    digest,
    digest_of_run,
    make_trainer,
)


class Recorder(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_fit_start(self, start: FitStart) -> None:
        self.events.append(("start", start))

    def on_step_end(self, record: StepRecord) -> None:
        self.events.append(("step", record))

    def on_evaluation_end(self, record: EvaluationRecord) -> None:
        self.events.append(("evaluation", record))

    def on_save(self, path: Path, step: int) -> None:
        self.events.append(("save", (path.name, step)))

    def on_exception(self, error: BaseException) -> None:
        self.events.append(("exception", error))

    def on_fit_end(self, result: FitResult) -> None:
        self.events.append(("end", result))

    def of(self, event: str) -> list[Any]:
        return [what for name, what in self.events if name == event]


class ActingLoader(StubTrainLoader):
    """Calls ``act(number)`` before it hands out a batch."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self.act = act

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(super().iterate(start), start):
            self.act(number)
            yield batch


def without_evaluation(**changes: Any) -> dict[str, Any]:
    return {"eval_every": None, "val_loader": None, "evaluator": None, **changes}


# ---------------------------------------------------------------------- what happens when


def test_events_and_their_order(tmp_path: Path) -> None:
    seen = Recorder()
    evaluator = StubEvaluator([0.5, 0.2, 0.7])
    result = make_trainer(tmp_path, callbacks={"seen": seen}, evaluator=evaluator).fit()
    kinds = [name if name in ("step", "evaluation", "start", "end") else what for name, what in seen.events]
    steps = ["step"] * 3
    expected = [
        "start",
        *steps,
        ("last.pt", 3),
        *["step", ("best.pt", 4), "evaluation", ("last.pt", 4)],
        *["step", "step", ("last.pt", 6)],
        *["step", "step", "evaluation", ("last.pt", 8)],
        *["step", ("last.pt", 9)],
        *[*steps, ("best.pt", 12), "evaluation", ("last.pt", 12)],
        "end",
    ]
    assert kinds == expected
    assert seen.of("start") == [FitStart(0, 12, tmp_path, seen.of("start")[0].categories)]
    assert [record.best for record in seen.of("evaluation")] == [True, False, True]
    assert result == seen.of("end")[0]
    assert (result.step, result.best, result.best_step, result.stopped_early) == (12, 0.7, 12, False)
    assert result.metrics["AP"] == 0.7


def test_step_records(tmp_path: Path) -> None:
    seen = Recorder()
    optim = SGD(lr=0.05, bias_lr_factor=2)
    make_trainer(tmp_path, callbacks={"seen": seen}, accumulate=2, optim=optim).fit()
    records: list[StepRecord] = seen.of("step")
    assert [r.step for r in records] == list(range(1, 13))
    assert [r.step for r in records if r.logged] == [1, 2, 4, 6, 8, 10, 12]
    for i, record in enumerate(records):
        assert set(record.terms) == {"cls", "box"}
        assert record.loss == pytest.approx(record.terms["cls"] + record.terms["box"])
        assert 2 <= record.stats["num_objects"] <= 4
        assert record.num_images == 4
        rate = 0.05 * Constant(warmup_steps=5, warmup_factor=0.1).factor(i, 12)
        assert record.lr == pytest.approx({"lr": rate, "lr/x2": 2 * rate})
        assert record.grad_norm > 0
        assert record.applied
        assert min(record.data_seconds, record.compute_seconds) > 0
    assert records[0].scalars()["loss/cls"] == records[0].terms["cls"]


def test_time_is_split_into_waiting_and_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def wait(number: int) -> None:
        clock[0] += 3.0

    seen = Recorder()
    options = without_evaluation(steps=2, callbacks={"seen": seen}, accumulate=2, train_loader=ActingLoader(wait))
    trainer = make_trainer(tmp_path, **options)
    backward = trainer.updater.backward

    def slow(batch: Batch, is_last: bool) -> Losses:
        clock[0] += 1.0
        return backward(batch, is_last)

    trainer.updater.backward = slow  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit()
    for record in seen.of("step"):
        assert (record.data_seconds, record.compute_seconds) == (6.0, 2.0)
        assert record.images_per_second == 4 / 8
        assert record.scalars()["time/data_share"] == 0.75


def test_callbacks_change_no_bit(tmp_path: Path) -> None:
    digests = set()
    for name, callbacks in {
        "none": {},
        "all": {"bar": ProgressBar(), "csv": MetricsCsv(), "tensorboard": TensorBoardWriter(), "seen": Recorder()},
    }.items():
        (tmp_path / name).mkdir()
        make_trainer(tmp_path / name, callbacks=callbacks).fit()
        digests.add(digest_of_run(tmp_path / name))
    assert len(digests) == 1


@pytest.mark.parametrize("changes", [{"eval_every": None}, {"val_loss": False}, {"save_every": None}])
def test_evaluations_and_saves_change_no_weight(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = make_trainer(tmp_path)
    reference.fit()
    changed = make_trainer(tmp_path, **changes)
    changed.fit()
    assert digest(changed.detector.state_dict()) == digest(reference.detector.state_dict())


def test_the_schedule_sets_every_rate(tmp_path: Path) -> None:
    seen = Recorder()
    schedule = MultiStep(milestones=(0.5,), gamma=0.1)
    make_trainer(tmp_path, callbacks={"seen": seen}, schedule=schedule).fit()
    assert [r.lr["lr"] for r in seen.of("step")] == pytest.approx([0.05] * 6 + [0.005] * 6)


def test_two_half_batches_equal_the_whole(tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        torch.manual_seed(0)
        detector = StubDetector(noisy=False, norm=False)
        loader = StubTrainLoader(num_images=12, batch_size=batch_size)
        options = without_evaluation(detector=detector, train_loader=loader, accumulate=accumulate, clip_norm=0.5)
        make_trainer(tmp_path, **options).fit()
        weights.append(detector.state_dict())
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(weights[2][name], whole, rtol=1e-5, atol=1e-7)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    def moved(clip_norm: float | None) -> tuple[float, float]:
        optim = SGD(lr=1.0, momentum=0.0, weight_decay=0.0)
        seen = Recorder()
        trainer = make_trainer(
            tmp_path,
            **without_evaluation(steps=1, optim=optim, clip_norm=clip_norm, schedule=Constant(), callbacks={"s": seen}),
        )
        before = [p.detach().clone() for p in trainer.detector.parameters()]
        trainer.fit()
        pairs = zip(trainer.detector.parameters(), before, strict=True)
        change = torch.stack([(p.detach() - b).norm() for p, b in pairs]).norm()
        return float(change), seen.of("step")[0].grad_norm

    free, norm = moved(None)
    assert free == pytest.approx(norm, rel=1e-4)
    clipped, same_norm = moved(norm / 4)
    assert same_norm == norm, "the norm is logged as it was before clipping"
    assert clipped == pytest.approx(norm / 4, rel=1e-4)


def test_bf16_trains_and_differs_from_fp32_a_little(tmp_path: Path) -> None:
    results = {}
    for precision in ("fp32", "bf16"):
        seen = Recorder()
        make_trainer(tmp_path, precision=precision, callbacks={"seen": seen}).fit()
        results[precision] = [r.loss for r in seen.of("step")]
    assert results["bf16"] != results["fp32"]
    assert results["bf16"] == pytest.approx(results["fp32"], rel=0.05)


def test_channels_last_reaches_weights_pixels_and_average(tmp_path: Path) -> None:
    formats = []

    class Looking(StubDetector):
        def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
            formats.append(images.pixels.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images, targets)

    trainer = make_trainer(tmp_path, detector=Looking(), channels_last=True)
    trainer.fit()
    assert all(formats)
    assert trainer.updater.average is not None
    for detector in (trainer.detector, trainer.updater.average.detector):
        assert detector.get_parameter("backbone.0.weight").is_contiguous(memory_format=torch.channels_last)
    restored = make_trainer(tmp_path, channels_last=True)
    restored.restore(load_checkpoint(tmp_path / LAST))
    assert digest(restored.detector.state_dict()) == digest(trainer.detector.state_dict())


# ---------------------------------------------------------------------- best, patience, monitor


def test_the_best_is_by_losses_where_a_loss_is_monitored(tmp_path: Path) -> None:
    seen = Recorder()
    trainer = make_trainer(tmp_path, monitor="val_loss", evaluator=None, callbacks={"seen": seen}, eval_every=2)
    result = trainer.fit()
    losses = [record.result.metrics["val_loss"] for record in seen.of("evaluation")]
    assert result.best == min(losses)
    assert result.best_step == 2 * (losses.index(min(losses)) + 1)
    assert load_checkpoint(tmp_path / BEST).metrics["val_loss"] == min(losses)


@pytest.mark.parametrize("undefined", [math.nan, -1.0])
def test_an_undefined_score_is_never_the_best(tmp_path: Path, undefined: float) -> None:
    evaluator = StubEvaluator([undefined, 0.1, undefined])
    result = make_trainer(tmp_path, evaluator=evaluator).fit()
    assert (result.best, result.best_step) == (0.1, 8)
    assert load_checkpoint(tmp_path / BEST).step == 8


def test_patience_ends_the_run(tmp_path: Path) -> None:
    evaluator = StubEvaluator([0.3, 0.5, 0.4, 0.5, 0.9])
    result = make_trainer(tmp_path, steps=40, eval_every=2, patience=2, evaluator=evaluator).fit()
    assert result.stopped_early
    assert (result.step, result.best, result.best_step) == (8, 0.5, 4)
    assert load_checkpoint(tmp_path / LAST).step == 8


def test_patience_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    scores = [0.3, 0.5, 0.4, 0.5, 0.9]
    make_trainer(tmp_path, steps=6, eval_every=2, patience=2, evaluator=StubEvaluator(scores[:3])).fit()
    trainer = make_trainer(tmp_path, steps=40, eval_every=2, patience=2, evaluator=StubEvaluator(scores[3:]))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    result = trainer.fit()
    assert (result.step, result.best, result.best_step, result.stopped_early) == (8, 0.5, 4, True)


def test_an_unknown_monitor_is_told_with_what_there_is(tmp_path: Path) -> None:
    words = "trainer.monitor: no metric 'mAP'; there are AP, AP50, val_loss/cls, val_loss/box, val_loss"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        make_trainer(tmp_path, monitor="mAP").fit()


# ---------------------------------------------------------------------- resume


def test_a_finished_run_ends_at_once(tmp_path: Path) -> None:
    first = make_trainer(tmp_path).fit()
    before = digest_of_run(tmp_path)
    trainer = make_trainer(tmp_path, train_loader=ActingLoader(lambda number: pytest.fail("no batch is needed")))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    assert trainer.fit() == first
    assert digest_of_run(tmp_path) == before


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


def test_other_versions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, steps=2).fit()
    checkpoint = _changed(load_checkpoint(tmp_path / LAST), versions={"torch": "1.0.0"})
    make_trainer(tmp_path, steps=4).restore(checkpoint)
    assert f"versions differ, so the bits may too: torch 1.0.0 before, {torch.__version__} now" in caplog.text


def test_other_rates_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path, steps=2).fit()
    caplog.clear()
    make_trainer(tmp_path, steps=4).restore(load_checkpoint(tmp_path / LAST))
    assert "going on with its" not in caplog.text
    make_trainer(tmp_path, steps=4, optim=SGD(lr=0.5)).restore(load_checkpoint(tmp_path / LAST))
    assert "going on with its (lr, weight_decay) [(0.05, 0.0001), (0.05, 0.0)], not with [(0.5" in caplog.text


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


# ---------------------------------------------------------------------- signals


@pytest.fixture
def straight(tmp_path: Path) -> str:
    (tmp_path / "straight").mkdir()
    make_trainer(tmp_path / "straight").fit()
    return digest_of_run(tmp_path / "straight")


def go_on(run_dir: Path) -> str:
    trainer = make_trainer(run_dir)
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


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"accumulate": 0}, "accumulate must be 1 or more, not 0"),
        ({"eval_every": -1}, "eval_every must be 1 or more, not -1"),
        ({"patience": 0}, "patience must be 1 or more, not 0"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, not 0.0"),
        ({"ema_decay": 1.0}, "ema_decay must be in [0, 1), not 1.0"),
        ({"precision": "fp16"}, "precision 'fp16' needs a CUDA device; on 'cpu' it is one of 'fp32', 'bf16'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, not 'fp8'"),
        ({"run_dir": "/no/such/folder"}, "run_dir /no/such/folder is not a folder"),
        (
            {"config": {"root": Path("x")}},
            "config must be plain values, or no checkpoint could be read again: "
            "Object of type PosixPath is not JSON serializable",
        ),
        (
            {"val_loader": None},
            "eval_every=4 needs validation images, and there are none; set eval_every=null",
        ),
        (
            {"val_loader": None, "eval_every": None, "patience": 3},
            "patience=3 needs validation images, and there are none; set patience=null",
        ),
        ({"monitor": "val_loss/cls", "val_loss": False}, "monitor='val_loss/cls' needs val_loss=true"),
        (
            {"evaluator": None},
            "monitor='AP' needs an evaluator; without one it is 'val_loss' or a term of it",
        ),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    options = {"run_dir": tmp_path, **changes}
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        make_trainer(**options)


def test_a_plain_torch_optimizer_serves(tmp_path: Path) -> None:
    detector = StubDetector()
    optimizer = torch.optim.Adagrad(detector.parameters(), lr=0.01)
    make_trainer(tmp_path, detector=detector, optimizer=optimizer, schedule=Constant()).fit()
    assert optimizer.param_groups[0]["lr"] == 0.01


# ---------------------------------------------------------------------- what is not finite


def poison_loader(change: Callable[[Batch], None]) -> StubTrainLoader:
    class Poisoned(StubTrainLoader):
        def batch(self, number: int) -> Batch:
            batch = super().batch(number)
            if number == 5:
                change(batch)
            return batch

    return Poisoned()


def failing(trainer: Trainer) -> tuple[str, bool]:
    """The message of a run that must fail, and whether weights, optimiser and average are those of the last save."""
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    kept = load_checkpoint(trainer.run_dir / LAST)
    assert kept.step == trainer.progress.step, "the test needs a save right before the failure"
    average = trainer.updater.average
    assert average is not None
    assert kept.training is not None
    parameters = dict(trainer.detector.named_parameters())
    untouched = (
        digest({name: kept.detector[name] for name in parameters}) == digest(parameters)
        and digest(trainer.updater.state()["optimizer"]["state"]) == digest(kept.training["optimizer"]["state"])
        and digest(average.state_dict()) == digest(kept.average)
    )
    return str(caught.value), untouched


def test_nan_in_a_target_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(batch: Batch) -> None:
        batch.targets[1].boxes[0, 2] = math.nan

    trainer = make_trainer(tmp_path, train_loader=poison_loader(spoil), save_every=1)
    message, untouched = failing(trainer)
    first, second = (meta.image_id for meta in StubTrainLoader().batch(5).images.meta)
    box = StubTrainLoader().batch(5).targets[1].boxes[0].tolist()
    assert message == (
        f"step 6: the loss is not finite: box = nan; images {first} ({first}.png), {second} ({second}.png)\n"
        f"  box 0 of image {second} ({second}.png) is [{box[0]}, {box[1]}, nan, {box[3]}]"
    )
    assert untouched


def test_inf_in_the_pixels_is_named(tmp_path: Path) -> None:
    class Floats(StubTrainLoader):
        def batch(self, number: int) -> Batch:
            batch = super().batch(number)
            pixels = batch.images.pixels.float()
            if number == 5:
                pixels[0, 2, 3, 4] = math.inf
            return Batch(Images(pixels, batch.images.meta), batch.targets)

    trainer = make_trainer(tmp_path, train_loader=Floats(), save_every=1)
    message, untouched = failing(trainer)
    image = StubTrainLoader().batch(5).images.meta[0].image_id
    lines = message.splitlines()
    assert lines[0].startswith("step 6: the loss is not finite: cls = nan, box = nan; images ")
    assert lines[1:] == [f"  the pixels of image {image} ({image}.png) have 1 of 768 values not finite"]
    assert untouched


def test_nan_in_a_weight_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_every=1, steps=2)
    with torch.no_grad():
        trainer.detector.get_parameter("head.weight")[1, 2] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("step 1: the loss is not finite: box = nan; images ")
    assert lines[1:] == ["  head.weight has 1 of 20 values not finite"]
    assert caught.value.step == 1
    assert len(caught.value.batches) == 1


def test_nan_in_a_buffer_is_named_where_nothing_else_is_to_blame(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=2)
    trainer.detector.register_buffer("scale", torch.tensor([1.0, math.nan]))
    head = trainer.detector.head
    trainer.detector.head = torch.nn.Sequential(head, Scaled(trainer.detector))
    with pytest.raises(NonFiniteError, match=r"\n  scale has 1 of 2 values not finite$"):
        trainer.fit()


class Scaled(torch.nn.Module):
    """Multiplies by a buffer of another module."""

    def __init__(self, owner: torch.nn.Module) -> None:
        super().__init__()
        self.owner = [owner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.owner[0].get_buffer("scale").sum()


def test_with_accumulation_the_batch_that_is_bad_is_named(tmp_path: Path) -> None:
    def spoil(batch: Batch) -> None:
        batch.targets[0].boxes[0] = math.inf

    trainer = make_trainer(tmp_path, train_loader=poison_loader(spoil), accumulate=2, save_every=1)
    message, untouched = failing(trainer)
    metas = StubTrainLoader().batch(5).images.meta
    names = ", ".join(f"{meta.image_id} ({meta.file})" for meta in metas)
    assert message.startswith(f"step 3: the loss is not finite: box = inf; images {names}\n")
    assert untouched


class Overflow(torch.autograd.Function):
    """Hands the value on and makes its gradient infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * math.inf


class Overflowing(StubDetector):
    """The gradient of its head is infinite in the forward passes that ``when`` names."""

    def __init__(self, when: Callable[[int], bool]) -> None:
        super().__init__()
        self.when, self.passes = when, 0

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
        found = super().forward(images, targets)
        if targets is None or not self.training:
            return found
        assert isinstance(found, Losses)
        bad = self.when(self.passes)
        self.passes += 1
        return Losses({**found.terms, "box": Overflow.apply(found.terms["box"])}) if bad else found


def test_an_infinite_gradient_stops_the_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, detector=Overflowing(lambda n: n == 5), save_every=1)
    message, untouched = failing(trainer)
    assert re.fullmatch(
        r"step 6: the gradient is not finite, though the loss is: in backbone\.0\.weight, backbone\.0\.bias, "
        r"backbone\.1\.weight, backbone\.1\.bias, backbone\.3\.weight and 3 more \(8 of 8 parameters\); "
        r"images \d \(\d\.png\), \d \(\d\.png\)",
        message,
    )
    assert untouched


def with_scaler(trainer: Trainer, init_scale: float = 1024.0) -> Trainer:
    """``trainer`` as if in fp16 on CUDA; the scaler's own work is the same on the CPU."""
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return trainer


def test_under_a_scaler_an_infinite_gradient_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = Recorder()
    torch.manual_seed(0)
    detector = Overflowing(lambda n: n in (4, 5))
    weights: list[str] = []
    options = {"save_every": 1, "callbacks": {"seen": seen}, "steps": 8, "detector": detector}
    trainer = with_scaler(make_trainer(tmp_path, **without_evaluation(**options)))

    class Weights(Callback):
        def on_step_end(self, record: StepRecord) -> None:
            state = trainer.updater.state()["optimizer"]["state"]
            average = trainer.updater.average
            assert average is not None
            weights.append(digest([dict(detector.named_parameters()), state, average.state_dict()]))

    trainer.callbacks["weights"] = Weights()
    trainer.fit()
    assert [r.applied for r in seen.of("step")] == [True] * 4 + [False] * 2 + [True] * 2
    assert weights[3] == weights[4] == weights[5] != weights[6]
    assert "step 5: update skipped, the gradient overflowed at scale 1024" in caplog.text
    assert "step 6: update skipped, the gradient overflowed at scale 512" in caplog.text
    assert trainer.updater.scaler is not None
    assert trainer.updater.scaler.get_scale() == 256


def test_ten_skipped_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Overflowing(lambda n: n != 9)
    options = without_evaluation(steps=40, detector=detector, save_every=7)
    with pytest.raises(NonFiniteError, match=r"^step 20: the gradient is not finite 10 times in a row, though the"):
        with_scaler(make_trainer(tmp_path, **options)).fit()

    again = Overflowing(lambda n: True)  # the count survives a resume: the save was after step 14, the fourth in a row
    trainer = with_scaler(make_trainer(tmp_path, **without_evaluation(steps=40, detector=again)))
    trainer.restore(load_checkpoint(tmp_path / LAST))
    with pytest.raises(NonFiniteError, match=r"^step 20: "):
        trainer.fit()


def test_a_scaler_changes_no_weight_and_its_scale_is_resumed(tmp_path: Path) -> None:
    digests = []
    for scaled in (False, True):
        options = without_evaluation(clip_norm=None)
        trainer = make_trainer(tmp_path, **options)
        trainer = with_scaler(trainer) if scaled else trainer
        trainer.fit()
        digests.append(digest(trainer.detector.state_dict()))
    assert digests[0] == digests[1], "a power of two is taken out again without rounding"
    checkpoint = load_checkpoint(tmp_path / LAST)
    trainer = with_scaler(make_trainer(tmp_path, **without_evaluation()), init_scale=8.0)
    trainer.restore(checkpoint)
    assert trainer.updater.scaler is not None
    assert trainer.updater.scaler.get_scale() == 1024
    with pytest.raises(CheckpointError, match=r"was trained with a gradient scaler \(trainer\.precision=fp16\)$"):
        make_trainer(tmp_path, **without_evaluation()).restore(checkpoint)


def test_a_failing_callback_stops_the_run_and_all_hear_of_it(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_step_end(self, record: StepRecord) -> None:
            raise RuntimeError("no more")

    seen = Recorder()
    with pytest.raises(RuntimeError, match=r"^no more$"):
        make_trainer(tmp_path, callbacks={"failing": Failing(), "seen": seen}).fit()
    assert [str(error) for error in seen.of("exception")] == ["no more"]
    assert not seen.of("end")


def test_the_evaluation_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "detkit"):
        make_trainer(tmp_path, evaluator=StubEvaluator([0.25, 0.2, 0.1])).fit()
    assert re.search(
        r"step 4: AP 0\.2500, AP50 \d\.\d{4}, val_loss/cls \d\.\d{4}, val_loss \d\.\d{4}, the best so far "
        r"\(5 images in \d+\.\d s\)",
        caplog.text,
    )
    assert "step 8: AP 0.2000" in caplog.text


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu_every_precision_trains_and_resumes(tmp_path: Path, precision: str) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = {"precision": precision, "device": "cuda", "schedule": Constant()}
    for folder, steps in ((straight, 12), (stopped, 6)):
        folder.mkdir()
        make_trainer(folder, **options, steps=steps).fit()
    trainer = make_trainer(stopped, **options, steps=12)
    trainer.restore(load_checkpoint(stopped / LAST))
    trainer.fit()
    weights = [load_checkpoint(folder / LAST).detector for folder in (straight, stopped)]
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-3, atol=1e-4)
