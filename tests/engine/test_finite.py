"""Losses and gradients that are not finite: what stops the run, and what it says then."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine import (
    LAST,
    BadStepError,
    Callback,
    CheckpointError,
    NonFiniteError,
    StepRecord,
    Trainer,
    load_checkpoint,
)
from detkit.structures import Batch, Images, Losses, Target
from tests.engine.stubs import (
    Recorder,
    StubDetector,
    StubTrainLoader,
    digest,
    make_trainer,
    without_evaluation,
)


def poison_loader(change: Callable[[Batch], Batch | None]) -> StubTrainLoader:
    class Poisoned(StubTrainLoader):
        def batch(self, number: int) -> Batch:
            batch = super().batch(number)
            return (change(batch) or batch) if number == 5 else batch

    return Poisoned()


def failing(trainer: Trainer) -> tuple[str, bool]:
    """The message of a run that must fail, and whether weights, optimiser and average are those of the last save."""
    with pytest.raises(BadStepError) as caught:
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
    second = StubTrainLoader().batch(5).images.meta[1].image_id
    box = StubTrainLoader().batch(5).targets[1].boxes[0].tolist()
    assert message == (
        "step 6: a batch cannot be trained on\n"
        f"  box 0 of image {second} ({second}.png) is [{box[0]}, {box[1]}, nan, {box[3]}]"
    )
    assert untouched


def with_an_infinite_pixel(batch: Batch) -> Batch:
    pixels = batch.images.pixels.float()
    pixels[0, 2, 3, 4] = math.inf
    return Batch(Images(pixels, batch.images.meta), batch.targets)


def test_inf_in_the_pixels_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, train_loader=poison_loader(with_an_infinite_pixel), save_every=1)
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
    loader = poison_loader(with_an_infinite_pixel)
    trainer = make_trainer(tmp_path, train_loader=loader, accumulate=2, save_every=1)
    message, untouched = failing(trainer)
    metas = StubTrainLoader().batch(5).images.meta
    names = ", ".join(f"{meta.image_id} ({meta.file})" for meta in metas)
    assert message.startswith(f"step 3: the loss is not finite: cls = nan, box = nan; images {names}\n")
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
