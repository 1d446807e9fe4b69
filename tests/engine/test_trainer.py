"""What a run does when, and what it refuses."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine import (
    BEST,
    LAST,
    SGD,
    Callback,
    Constant,
    FitStart,
    MetricsCsv,
    MultiStep,
    ProgressBar,
    StepRecord,
    TensorBoardWriter,
    load_checkpoint,
)
from detkit.evaluation import Evaluation
from detkit.evaluation.summary import coco_metrics
from detkit.structures import Batch, Images, Losses, Ratio, Target
from tests.engine.stubs import (
    ActingLoader,
    Recorder,
    StubDetector,
    StubEvaluator,
    StubTrainLoader,
    digest,
    digest_of_run,
    make_trainer,
    without_evaluation,
)

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
        *["step", ("last.pt", 4), ("best.pt", 4), "evaluation", ("last.pt", 4)],
        *["step", "step", ("last.pt", 6)],
        *["step", "step", ("last.pt", 8), "evaluation", ("last.pt", 8)],
        *["step", ("last.pt", 9)],
        *[*steps, ("last.pt", 12), ("best.pt", 12), "evaluation", ("last.pt", 12)],
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


class Counting(StubDetector):
    """Of what is in the second, fourth, ... batch it finds half; in the others there is nothing."""

    calls = 0

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Any:
        out = super().forward(images, targets)
        assert isinstance(out, Losses)
        self.calls += 1
        whole = 4 if self.calls % 2 == 0 else 0
        return Losses(out.terms, {"accuracy": Ratio(torch.tensor(whole // 2), torch.tensor(whole))})


@pytest.mark.parametrize(("accumulate", "expected"), [(2, [{"accuracy": 0.5}] * 2), (1, [{}, {"accuracy": 0.5}])])
def test_a_ratio_is_one_of_sums_over_the_batches_of_a_step(
    tmp_path: Path, accumulate: int, expected: list[dict[str, float]]
) -> None:
    seen = Recorder()
    options = without_evaluation(steps=2, callbacks={"seen": seen}, accumulate=accumulate, detector=Counting())
    make_trainer(tmp_path, **options).fit()
    assert [record.stats for record in seen.of("step")] == expected


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


@pytest.mark.parametrize("error", ["NME", "NME_average_place"])
def test_the_best_error_of_landmarks_is_the_least(tmp_path: Path, error: str) -> None:
    class OfLandmarks(StubEvaluator):
        def compute(self, *, allow_missing: bool = False) -> Evaluation:
            found = super().compute(allow_missing=allow_missing)
            return replace(found, metrics={error: found.metrics["AP"]})

    result = make_trainer(tmp_path, monitor=error, evaluator=OfLandmarks([0.3, 0.1, 0.2])).fit()
    assert (result.best, result.best_step) == (0.1, 8)
    assert load_checkpoint(tmp_path / BEST).step == 8


@pytest.mark.parametrize("undefined", [math.nan, -1.0])
def test_an_undefined_score_is_never_the_best(tmp_path: Path, undefined: float) -> None:
    evaluator = StubEvaluator([undefined, 0.1, undefined])
    result = make_trainer(tmp_path, evaluator=evaluator).fit()
    assert (result.best, result.best_step) == (0.1, 8)
    assert load_checkpoint(tmp_path / BEST).step == 8


def test_an_undefined_score_is_no_sign_that_nothing_is_gained(tmp_path: Path) -> None:
    """Neither patience nor the table of numbers nor the log takes -1 for a score."""
    seen = Recorder()
    evaluator = StubEvaluator([-1.0, -1.0, 0.5, -1.0, 0.4, 0.3])
    callbacks = {"csv": MetricsCsv(), "seen": seen}
    trainer = make_trainer(tmp_path, steps=40, eval_every=2, patience=2, evaluator=evaluator, callbacks=callbacks)
    result = trainer.fit()
    assert (result.step, result.best, result.best_step, result.stopped_early) == (12, 0.5, 6, True)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines() if ",val,AP," in line]
    assert [row[3] for row in rows] == ["nan", "nan", "0.5", "nan", "0.4", "0.3"]
    words = [record.in_words("AP") for record in seen.of("evaluation")]
    assert words[0].startswith("AP not defined, AP50 ")
    assert words[2].startswith("AP 0.5000, AP50 ")


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
    words = (
        "trainer.monitor: no metric 'mAP'; there are AP, AP50, val_loss/cls, val_loss/box, val_loss, stat/num_objects"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        make_trainer(tmp_path, monitor="mAP").fit()


@pytest.mark.parametrize(
    ("monitor", "near"), [("mAP", "AP"), ("ap50", "AP50"), ("AR1000", "AR100"), ("loss", "val_loss")]
)
def test_a_score_that_the_evaluator_does_not_have_is_refused_at_the_start(
    tmp_path: Path, monitor: str, near: str
) -> None:
    evaluator = StubEvaluator()
    evaluator.metric_names = tuple(metric.name for metric in coco_metrics((1, 10, 100)))
    words = f"trainer.monitor: no metric {monitor!r}; did you mean {near!r}?"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        make_trainer(tmp_path, monitor=monitor, evaluator=evaluator)
    make_trainer(tmp_path, monitor=near, evaluator=evaluator)


def test_a_term_that_the_detector_does_not_have_is_refused_after_a_step(tmp_path: Path) -> None:
    words = "trainer.monitor: no metric 'val_loss/boxes'; did you mean 'val_loss/box'?"
    trainer = make_trainer(tmp_path, monitor="val_loss/boxes", eval_every=12)
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        trainer.fit()
    assert trainer.progress.step == 1


def test_the_loader_is_closed_however_the_run_ends(tmp_path: Path) -> None:
    closed = []

    class Closing(StubTrainLoader):
        def iterate(self, start: int = 0) -> Iterator[Batch]:
            try:
                yield from super().iterate(start)
            finally:
                closed.append(start)

    make_trainer(tmp_path, train_loader=Closing()).fit()
    assert closed == [0]
    trainer = make_trainer(tmp_path, train_loader=Closing())
    trainer.updater.backward = lambda batch, is_last: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.fit()
    assert closed == [0, 0], "its workers must not live on with the traceback"
    assert caught.tb is not None


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
        (
            {"eval_every": None, "patience": 3},
            "patience=3 counts evaluations, and with eval_every=null there is one alone, at the end: set eval_every too, "
            "or patience=null",
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


@pytest.mark.parametrize("event", ["on_fit_start", "on_step_end", "on_evaluation_end", "on_save"])
def test_a_failing_callback_stops_the_run_and_all_hear_of_it(tmp_path: Path, event: str) -> None:
    def fail(*what: Any) -> None:
        raise RuntimeError("no more")

    failing, seen = Callback(), Recorder()
    setattr(failing, event, fail)
    with pytest.raises(RuntimeError, match=r"^no more$"):
        make_trainer(tmp_path, callbacks={"failing": failing, "seen": seen}).fit()
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
