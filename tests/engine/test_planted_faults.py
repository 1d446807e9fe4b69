"""Faults that go unseen for long in other frameworks, planted one by one: each ends the run and is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.engine import (
    SGD,
    AdamW,
    BadStepError,
    ExplodingLossError,
    InvalidBatchError,
    NonFiniteError,
    load_bundle,
)
from detkit.engine.bad_steps.divergence import LEAST_USUAL
from detkit.engine.schedule import Schedule
from detkit.matching import AnchorGrid
from detkit.structures import Batch, FeatureSpec, Images, Losses
from tests.engine.stubs import StubDetector, StubTrainLoader, make_trainer
from tests.engine.test_divergence import Faulty, Growing, Poisoned, failed, named, stub_trainer
from tests.engine.test_finite import Overflowing, with_scaler


def first_label(label: int) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        batch.targets[1].labels[0] = label

    return spoil


def first_box(*box: float) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        batch.targets[1].boxes[0] = torch.tensor(box)

    return spoil


def pixels_as(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Batch], Batch]:
    return lambda batch: Batch(Images(change(batch.images.pixels), batch.images.meta), batch.targets)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (first_label(-1), "box 0 of {} has the label -1, which is not in 0..1"),
        (first_box(2, 5, 6, 5), "box 0 of {} has no area: [2.0, 5.0, 6.0, 5.0]"),
        (first_box(6, 2, 2, 6), "box 0 of {} has no area: [6.0, 2.0, 2.0, 6.0]"),
        (first_box(2, 2, 1e9, 6), "box 0 of {} lies outside its image of 16 x 16 px: [2.0, 2.0, 1000000000.0, 6.0]"),
        (first_box(-1e9, 2, 4, 6), "box 0 of {} lies outside its image of 16 x 16 px: [-1000000000.0, 2.0, 4.0, 6.0]"),
        (first_box(2, math.nan, 4, 6), "box 0 of {} is [2.0, nan, 4.0, 6.0]"),
        (first_box(2, 2, math.inf, 6), "box 0 of {} is [2.0, 2.0, inf, 6.0]"),
        (pixels_as(lambda p: p.to(torch.uint16)), "the pixels of {} are uint16, not uint8 or float32 in 0..255"),
        (pixels_as(lambda p: p.double()), "the pixels of {} are float64, not uint8 or float32 in 0..255"),
    ],
)  # fmt: skip
def test_a_batch_that_would_be_learnt_without_a_word(tmp_path: Path, spoil: Any, words: str) -> None:
    """The losses of the stub ignore labels and clip boxes: nothing shows in a number."""
    detector = Growing(1.0)
    error, bundle = failed(stub_trainer(tmp_path, detector=detector, train_loader=Poisoned(spoil)), InvalidBatchError)
    assert error.step == 8
    assert detector.passes >= 7
    lines = str(error).splitlines()
    assert lines[0] == "step 8: a batch cannot be trained on"
    where = [named(StubTrainLoader().batch(7), i) for i in (0, 1)]
    assert lines[-1].strip() == words.format(where[1])
    assert bundle.findings[0] == words.format(where[0] if "pixels" in words else where[1])


class Scaled(StubTrainLoader):
    """Every batch has other pixels."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.change = change

    def batch(self, number: int) -> Batch:
        return pixels_as(self.change)(super().batch(number))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.float() / 255, "lie in 0..1, not in 0..255: the detector normalises them itself"),
        (lambda p: (p.float() - 120) / 58, "lie in -2.07..2.33, not in 0..255: "),
        (lambda p: p.float() * 257, "lie in 0..6.55e+04, not in 0..255: "),
    ],
)
def test_pixels_that_were_scaled_already(tmp_path: Path, change: Any, words: str) -> None:
    error, _ = failed(stub_trainer(tmp_path, train_loader=Scaled(change)), InvalidBatchError)
    assert error.step == 1, "no weight has seen them"
    first = named(StubTrainLoader().batch(0), 0)
    assert f"the pixels of {first} lie in" in str(error)
    assert words.split("..")[1][:3] in str(error)
    assert str(error).count("\n") == 2, "a line for each image"


@pytest.mark.parametrize("change", [lambda p: p.float(), lambda p: p * 0, lambda p: p.float() * 0, lambda p: p // 64])
def test_dark_and_black_pictures_are_none(tmp_path: Path, change: Any) -> None:
    stub_trainer(tmp_path, train_loader=Scaled(change), steps=2).fit()


class Rates(Schedule):
    """The factor 1, and another one in step 5."""

    def __init__(self, value: float) -> None:
        self.value = value

    def factor(self, step: int, num_steps: int) -> float:
        return self.value if step == 4 else 1.0


@pytest.mark.parametrize(("factor", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-1e5, "-5000")])
def test_a_schedule_that_gives_no_rate(tmp_path: Path, factor: float, shown: str) -> None:
    """It acts for one step alone; the next one fails, when the rate is a good one again."""
    options = {"detector": StubDetector(noisy=False, norm=False), "schedule": Rates(factor), "max_loss_ratio": 20.0}
    error, bundle = failed(stub_trainer(tmp_path, **options), BadStepError)
    assert error.step == 6
    assert bundle.findings[0] == f"the learning rate is {shown}: it must be finite and not negative"


def test_too_much_weight_decay(tmp_path: Path) -> None:
    options = {"optim": AdamW(lr=1e-3, weight_decay=1e5), "steps": 40}
    trainer = stub_trainer(tmp_path, detector=StubDetector(noisy=False, norm=False), **options)
    _, bundle = failed(trainer, BadStepError)
    assert bundle.findings[0].startswith(
        "the weight decay 100000 is too high: at the learning rate 0.00046 it takes 46 of "
    )


def test_a_row_of_infinite_weights(tmp_path: Path) -> None:
    def corrupt(detector: Faulty) -> None:
        detector.head.weight[2] = math.inf

    _, bundle = failed(stub_trainer(tmp_path, detector=Faulty(corrupt)), NonFiniteError)
    assert bundle.findings[:2] == [
        "head.weight has 4 of 20 values not finite", "the first layer whose output is not finite: head"
    ]  # fmt: skip


def test_a_negative_second_moment_of_adam(tmp_path: Path) -> None:
    """Its root is nan, and with it the weight in the next step; the state itself stays finite."""

    def corrupt(detector: Faulty) -> None:
        trainer.updater.optimizer.state[detector.head.bias]["exp_avg_sq"][2] = -1.0

    detector = Faulty(corrupt)
    trainer = stub_trainer(tmp_path, detector=detector, optim=AdamW(lr=1e-3))
    error, bundle = failed(trainer, NonFiniteError)
    assert error.step == 9
    assert bundle.findings[0] == "the optimiser's exp_avg_sq of head.bias is negative, though it is a mean of squares"
    assert bundle.findings[1] == "head.bias has 1 of 5 values not finite"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_lost_running_statistics_end_the_run_with_the_next_evaluation(tmp_path: Path, value: float) -> None:
    """Training never reads them: it would go on, and every evaluation find nothing."""

    def corrupt(detector: Faulty) -> None:
        norm = detector.backbone[1]
        assert norm.running_var is not None
        norm.running_var[1] = value

    words = r"^the detector cannot be evaluated: backbone\.1\.running_var has 1 of 4 values not finite$"
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, detector=Faulty(corrupt), ema_decay=None, eval_every=9).fit()


class HalfLoss(StubDetector):
    """Squares what its head gives, in whatever precision it is."""

    def __init__(self) -> None:
        super().__init__(noisy=False)

    def forward(self, images: Images, targets: Any = None) -> Any:
        out = self.head(self.backbone(images.pixels.float() / 255).mean(dim=(2, 3)))
        return Losses({"far": (out * 1000).square().mean().float()})


def test_fp16_overflow_in_the_loss_alone(tmp_path: Path) -> None:
    trainer = stub_trainer(tmp_path, detector=HalfLoss(), max_loss_ratio=None)
    trainer.updater._precision = trainer.watch._precision = "fp16"
    _, bundle = failed(with_scaler(trainer), NonFiniteError)
    assert bundle.findings[0].startswith("fp16 overflows: in float32 the same step has a finite gradient and the loss ")
    assert bundle.findings[1] == "every layer's output is finite: the loss itself is not"


def test_a_picture_of_one_colour_is_mentioned_where_nothing_else_is_wrong(tmp_path: Path) -> None:
    def black(batch: Batch) -> None:
        batch.images.pixels[1] = 0

    trainer = stub_trainer(tmp_path, detector=Overflowing(lambda n: n >= 7), train_loader=Poisoned(black))
    _, bundle = failed(trainer, NonFiniteError)
    assert bundle.findings[0] == f"{named(StubTrainLoader().batch(7), 1)} is of one colour"


class Following(StubDetector):
    """Its losses are those of a list."""

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = list(losses)

    def forward(self, images: Any, targets: Any = None) -> Any:
        found = super().forward(images, targets)
        assert isinstance(found, Losses)
        return Losses({"all": found.total * 0 + self.losses.pop(0)})


def test_easy_batches_and_negative_losses_are_no_explosion(tmp_path: Path) -> None:
    """A first batch without objects, a loss of nothing, and a likelihood, which may fall below 0."""
    for losses in ([0.0, 1.5, 0.9], [1e-4, 40.0, 1.0], [-0.1, -0.2, -0.3, 0.5]):
        stub_trainer(tmp_path, detector=Following(*losses), steps=len(losses)).fit()
    with pytest.raises(
        ExplodingLossError, match=r"^step 2: the loss explodes: 101 is more than 100 times the usual 0\.5"
    ):
        stub_trainer(tmp_path, detector=Following(0.5, 100 * LEAST_USUAL + 1), steps=2).fit()
    report = load_bundle(tmp_path / "divergence_step2.pt")
    assert report.findings[-1] == "the detector fails with IndexError: pop from empty list", "it hides no other error"


def test_a_rate_of_zero_is_none_of_these(tmp_path: Path) -> None:
    stub_trainer(tmp_path, optim=SGD(lr=0.05), schedule=Rates(0.0)).fit()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda p: p.float() * 1e6, "e+08, not in 0..255: "), (lambda p: p.float() - 500, "lie in -5")],
)
def test_pixels_that_are_scaled_in_mid_run(tmp_path: Path, change: Any, words: str) -> None:
    loader = Poisoned(pixels_as(change))
    error, _ = failed(stub_trainer(tmp_path, train_loader=loader, max_loss_ratio=None), InvalidBatchError)
    assert error.step == 8
    assert words in str(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p * 0, "no pixel of the batch is above 0 of 255"),
        (lambda p: p.float() / 255, "no pixel of the batch is above 1 of 255"),
        (lambda p: p // 128, "no pixel of the batch is above 1 of 255"),
        (lambda p: (p > 1e9).float() - 2.1, "no pixel of the batch is above -2.1 of 255"),
    ],
)
def test_black_batches_and_pixels_divided_in_mid_run_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, words: str
) -> None:
    class FromSeven(StubTrainLoader):
        def batch(self, number: int) -> Batch:
            batch = super().batch(number)
            return batch if number < 7 else pixels_as(change)(batch)

    stub_trainer(tmp_path, train_loader=FromSeven(), steps=12, max_loss_ratio=None).fit()
    (line,) = warned(caplog)
    first = StubTrainLoader().batch(7).images.meta[0]
    assert line.startswith(
        f"step 8: {words}: black images, or divided by 255 before; images {first.image_id} ({first.file}), "
    )


def test_dark_images_are_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def night(pixels: torch.Tensor) -> torch.Tensor:
        dark = pixels // 128
        dark[1, :, 3, 5] = 90  # one lamp, where no sample is taken
        return dark

    stub_trainer(tmp_path, train_loader=Scaled(night), steps=10).fit()
    assert warned(caplog) == []


def test_a_box_in_shares_of_the_image_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Relative(StubTrainLoader):
        def batch(self, number: int) -> Batch:
            batch = super().batch(number)
            if number >= 7:
                first_box(0.25, 0.3, 0.5, 0.75)(batch)
            return batch

    stub_trainer(tmp_path, train_loader=Relative(), steps=12).fit()
    (line,) = warned(caplog)
    where = named(StubTrainLoader().batch(7), 1)
    assert line == (
        f"step 8: box 0 of {where} lies within the first pixel: [0.25, 0.3, 0.5, 0.75] px of 16 x 16; is it in shares of "
        "the image (0..1)? Told once"
    )


@pytest.mark.parametrize("box", [(0, 0.3, 0.5, 0.7), (0, 0, 0.9, 0.9), (0.5, 0.5, 2, 2), (15.2, 15.2, 16, 16)])
def test_what_a_border_leaves_of_a_box_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, box: tuple[float, ...]
) -> None:
    stub_trainer(tmp_path, train_loader=Poisoned(first_box(*box)), steps=10).fit()
    assert warned(caplog) == []


class Anchored(StubDetector):
    """With anchors of ``scales``, on maps of stride 2 and 4."""

    def __init__(self, *scales: float) -> None:
        super().__init__()
        self.anchors = AnchorGrid(in_spec=FeatureSpec((4, 4), (2.0, 4.0)), scales=scales)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ((100.0,), "step 1: every anchor (200..400 px) is larger than the image of 16 px: "),
        ((0.05,), "step 1: every anchor (0.1..0.2 px) is over 8 times smaller than nine of ten objects (4 px): "),
        ((2.0,), ""),
        ((0.5, 4.0), ""),
    ],
)
def test_anchors_of_another_order_of_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scales: tuple[float, ...], words: str
) -> None:
    stub_trainer(tmp_path, detector=Anchored(*scales), steps=3).fit()
    assert warned(caplog) == ([words + "AnchorGrid's scales count strides of the level, not px"] if words else [])
