"""Planted faults: each ends the run, is named, and can be shown again from its bundle."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detkit.engine import (
    SGD,
    AdamW,
    BadStepError,
    Bundle,
    CheckpointError,
    Constant,
    ExplodingLossError,
    InvalidBatchError,
    NonFiniteError,
    Trainer,
    load_bundle,
    replay,
)
from detkit.engine.bad_steps.diagnosis import LARGE_UPDATE, _learning_rate, update_ratio
from detkit.engine.bad_steps.divergence import describe, save_bundle
from detkit.structures import Batch, Categories, Images, Losses
from tests.engine.stubs import StubDetector, StubTrainLoader, make_trainer, without_evaluation
from tests.engine.test_finite import Overflowing, with_scaler
from tests.models.builders import build_model
from tests.models.test_contracts import batch as random_batch

ABC = Categories(("a", "b", "c"), (1, 4, 9))


def stub_trainer(folder: Path, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    return make_trainer(folder, **without_evaluation(ema_decay=None, **changes))


def failed(trainer: Trainer, kind: type[BadStepError]) -> tuple[BadStepError, Bundle]:
    """The error with which a run ends, and what its bundle says."""
    with pytest.raises(kind) as caught:
        trainer.fit()
    assert caught.value.bundle is not None
    bundle = load_bundle(caught.value.bundle)
    assert bundle.step == caught.value.step
    assert bundle.message == str(caught.value)
    return caught.value, bundle


class Poisoned(StubTrainLoader):
    """Batch 7 is changed."""

    def __init__(self, change: Callable[[Batch], Batch | None]) -> None:
        super().__init__()
        self.change = change

    def batch(self, number: int) -> Batch:
        batch = super().batch(number)
        return (self.change(batch) or batch) if number == 7 else batch


def named(batch: Batch, i: int) -> str:
    meta = batch.images.meta[i]
    return f"image {meta.image_id} ({meta.file})"


@pytest.mark.parametrize(
    ("box", "words"),
    [([5.0, 5, math.nan, 9], "is [5.0, 5.0, nan, 9.0]"), ([1e38, 5, 2e38, 9], "lies outside its image of 16 x 16 px")],
)
def test_bad_boxes(tmp_path: Path, box: list[float], words: str) -> None:
    def spoil(batch: Batch) -> None:
        batch.targets[1].boxes[0] = torch.tensor(box)

    error, bundle = failed(stub_trainer(tmp_path, train_loader=Poisoned(spoil)), BadStepError)
    where = named(StubTrainLoader().batch(7), 1)
    assert error.step == 8
    assert bundle.findings[0].startswith(f"box 0 of {where} {words}")
    assert torch.equal(bundle.batches[0].targets[1].boxes[0].nan_to_num(), torch.tensor(box).nan_to_num())
    assert bundle.batches[0].images.meta == StubTrainLoader().batch(7).images.meta


def test_inf_in_the_pixels(tmp_path: Path) -> None:
    def spoil(batch: Batch) -> Batch:
        pixels = batch.images.pixels.float()
        pixels[0, 2, 3, 4] = math.inf
        return Batch(Images(pixels, batch.images.meta), batch.targets)

    _, bundle = failed(stub_trainer(tmp_path, train_loader=Poisoned(spoil)), NonFiniteError)
    assert bundle.findings[0].startswith(f"the pixels of {named(StubTrainLoader().batch(7), 0)} have 1 of 768 values")
    assert bundle.findings[-1] == "the first layer whose output is not finite: backbone.0"
    assert bundle.seen["output"] == "backbone.0"
    assert [row[0] for row in bundle.history] == [1, 2, 3, 4, 5, 6, 7]
    assert len(describe(bundle)) >= 4


class Faulty(StubDetector):
    """``fault`` acts on it before the forward pass of step 8."""

    def __init__(self, fault: Callable[[Faulty], None]) -> None:
        super().__init__(noisy=False)
        self.fault, self.passes = fault, 0

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.passes += 1
        if self.passes == 8:
            with torch.no_grad():
                self.fault(self)
        return super().forward(images, targets)


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (math.nan, "head.weight has 1 of 20 values not finite"),
        (3e38, "head.weight holds values up to 3e+38"),  # one flipped bit of the exponent
    ],
)
def test_a_corrupted_weight(tmp_path: Path, value: float, finding: str) -> None:
    def corrupt(detector: Faulty) -> None:
        detector.head.weight[4, 1] = value
        detector.head.bias[:] = 1e5

    _, bundle = failed(stub_trainer(tmp_path, detector=Faulty(corrupt), save_every=1), BadStepError)
    assert bundle.findings[0] == finding
    assert bundle.weights is not None
    assert bundle.weights["head.weight"][4, 1] == pytest.approx(value, nan_ok=True)


def test_a_corrupted_optimizer_state_is_told_from_the_weights(tmp_path: Path) -> None:
    trainer = stub_trainer(tmp_path)

    def corrupt(detector: Faulty) -> None:
        trainer.updater.optimizer.state[detector.head.bias]["momentum_buffer"][2] = math.inf

    detector = Faulty(corrupt)
    trainer = stub_trainer(tmp_path, detector=detector)
    error, bundle = failed(trainer, NonFiniteError)
    assert error.step == 9, "the state spoils the weights of the step after"
    assert bundle.findings[0] == "the optimiser's momentum_buffer of head.bias is not finite"
    assert bundle.findings[1] == "head.bias has 1 of 5 values not finite"


@pytest.mark.parametrize(("recipe", "lr"), [(SGD, 0.05 * 100), (AdamW, 1e-3 * 1000)], ids=["SGD", "AdamW"])
def test_a_learning_rate_far_too_high(tmp_path: Path, recipe: Any, lr: float) -> None:
    """On a network without normalisation; Adam, whose steps are bounded, bears more."""
    changes = {"optim": recipe(lr=lr), "clip_norm": None, "steps": 60, "schedule": Constant()}
    trainer = stub_trainer(tmp_path, detector=StubDetector(noisy=False, norm=False), max_loss_ratio=20.0, **changes)
    _, bundle = failed(trainer, BadStepError)
    assert bundle.findings[0].startswith(f"the learning rate {lr:g} is too high: the l")
    assert bundle.lr["lr"] == pytest.approx(lr)


def test_a_high_rate_is_accused_by_its_updates_where_the_loss_has_not_grown_yet(tmp_path: Path) -> None:
    trainer = stub_trainer(tmp_path, optim=AdamW(lr=2.0), schedule=Constant(), steps=3, max_loss_ratio=None)
    trainer.fit()
    (finding,) = _learning_rate(trainer.updater.optimizer, [])
    assert re.match(r"the learning rate 2 is too high: the last update changed half of the weights by \d", finding)


class Cliff(StubDetector):
    """Its loss rises with the square of how far the bias of its head has moved: no weight has changed much then."""

    def __init__(self, steepness: float) -> None:
        super().__init__(noisy=False)
        self.steepness = steepness
        self.start = self.head.bias.detach().clone()

    def forward(self, images: Any, targets: Any = None) -> Any:
        found = super().forward(images, targets)
        assert isinstance(found, Losses)
        return Losses({**found.terms, "cliff": self.steepness * (self.head.bias - self.start).square().sum()})


@pytest.mark.parametrize(("optim", "steepness"), [(SGD(lr=0.1), 1e5), (AdamW(lr=0.008), 1e6)])
def test_a_rate_is_accused_where_a_tenth_of_the_update_would_not_have_made_the_loss_explode(
    tmp_path: Path, optim: Any, steepness: float
) -> None:
    """The loss was usual before, and the update is small beside the weights."""
    trainer = stub_trainer(tmp_path, detector=Cliff(steepness), optim=optim, clip_norm=None, schedule=Constant())
    error, bundle = failed(trainer, ExplodingLossError)
    assert error.step == 2
    ratio = update_ratio(trainer.updater.optimizer)
    assert ratio is not None
    assert ratio < LARGE_UPDATE
    found = re.fullmatch(
        rf"the learning rate {optim.lr:g} is too high: the loss is (\S+) after the last update, and would be (\S+) after a "
        "tenth of it",
        bundle.findings[0],
    )
    assert found is not None
    assert f"the loss explodes: {found[1]} is more" in str(error)
    assert float(found[1]) > 10 * float(found[2])
    assert bundle.weights is not None
    assert torch.equal(bundle.weights["head.bias"], trainer.detector.head.bias.detach()), "the weights are as they were"


class HardBatch(StubDetector):
    """A thousandfold loss on batch 7, whatever the weights are."""

    def forward(self, images: Any, targets: Any = None) -> Any:
        found = super().forward(images, targets)
        assert isinstance(found, Losses)
        is_hard = images.meta[0].image_id == StubTrainLoader().batch(7).images.meta[0].image_id
        return Losses({name: term * (1000 if is_hard else 1) for name, term in found.terms.items()})


@pytest.mark.parametrize("optim", [SGD(lr=0.05), AdamW(lr=1e-3)])
def test_a_batch_that_is_at_fault_itself_is_not_laid_to_the_rate(tmp_path: Path, optim: Any) -> None:
    error, bundle = failed(stub_trainer(tmp_path, detector=HardBatch(), optim=optim), ExplodingLossError)
    assert error.step == 8
    assert bundle.findings == []
    assert describe(bundle)[0] == "no cause was found"


def test_a_usual_learning_rate_is_not_accused(tmp_path: Path) -> None:
    for i, optim in enumerate((SGD(lr=0.05), AdamW(lr=1e-3))):
        (tmp_path / str(i)).mkdir()
        trainer = stub_trainer(tmp_path / str(i), optim=optim)
        assert update_ratio(trainer.updater.optimizer) is None, "no update yet"
        trainer.fit()
        ratio = update_ratio(trainer.updater.optimizer)
        assert ratio is not None
        assert 1e-5 < ratio < 0.1


class Growing(StubDetector):
    """Its loss is 1, and ``height`` in step 8."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.height, self.passes = height, 0

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.passes += 1
        found = super().forward(images, targets)
        assert isinstance(found, Losses)
        total = found.total
        return Losses({"all": total * 0 + (self.height if self.passes == 8 else 1.0)})


def test_an_exploding_loss_stops_the_run_and_can_be_let_be(tmp_path: Path) -> None:
    error, bundle = failed(stub_trainer(tmp_path, detector=Growing(101.0)), ExplodingLossError)
    assert str(error) == ("step 8: the loss explodes: 101 is more than 100 times the usual 1 (trainer.max_loss_ratio)")
    assert bundle.terms == [{"all": 101.0}]
    stub_trainer(tmp_path, detector=Growing(99.0)).fit()
    stub_trainer(tmp_path, detector=Growing(101.0), max_loss_ratio=None).fit()
    assert stub_trainer(tmp_path, detector=Growing(21.0), max_loss_ratio=20.0).progress.step == 0
    with pytest.raises(ExplodingLossError):
        stub_trainer(tmp_path, detector=Growing(21.0), max_loss_ratio=20.0).fit()
    with pytest.raises(ValueError, match=r"max_loss_ratio must be above 1, not 0\.5"):
        stub_trainer(tmp_path, max_loss_ratio=0.5)


def test_the_place_of_a_bad_gradient(tmp_path: Path) -> None:
    _, bundle = failed(stub_trainer(tmp_path, detector=Overflowing(lambda n: n >= 5)), NonFiniteError)
    assert bundle.findings == [
        "the first place of the backward pass where the gradient is not finite: the output of head"
    ]
    assert bundle.seen["output"] is None


def test_fp16_overflow_is_told_from_other_faults(tmp_path: Path) -> None:
    """fp16 on the CPU, as the trainer allows it on CUDA alone: activations above 65504 are infinite there."""

    def enlarge(detector: Faulty) -> None:
        detector.backbone[3].weight *= 2e5

    trainer = stub_trainer(tmp_path, detector=Faulty(enlarge), max_loss_ratio=None)
    trainer.updater._precision = trainer.watch._precision = "fp16"
    _, bundle = failed(with_scaler(trainer), NonFiniteError)
    assert bundle.findings[0].startswith("fp16 overflows: in float32 the same step has a finite gradient and the loss ")
    assert bundle.findings[1] == "the first layer whose output is not finite: backbone.3"
    assert bundle.scale == 1024


def flat(batch: Batch) -> None:
    batch.targets[1].boxes[0, 2] = batch.targets[1].boxes[0, 0]


def unknown_class(batch: Batch) -> None:
    batch.targets[0].labels[0] = 2


@pytest.mark.parametrize(
    ("change", "image", "words"),
    [(flat, 1, "has no area: ["), (unknown_class, 0, "has the label 2, which is not in 0..1")],
)
def test_what_a_detector_would_learn_without_a_word(
    tmp_path: Path, change: Callable[[Batch], None], image: int, words: str
) -> None:
    """An empty box matches no anchor, and label K means background to a softmax."""
    error, bundle = failed(stub_trainer(tmp_path, train_loader=Poisoned(change)), InvalidBatchError)
    words = f"box 0 of {named(StubTrainLoader().batch(7), image)} {words}"
    assert str(error).startswith("step 8: a batch cannot be trained on\n  " + words)
    assert bundle.findings[0].startswith(words)
    assert len(bundle.terms) == 0


class InfLoader:
    """A batch for a real detector with one infinite pixel."""

    def iterate(self, start: int = 0) -> Any:
        images, targets = random_batch(seed=start)
        pixels = images.pixels.float()
        pixels[1, 2, 3, 4] = math.inf
        yield Batch(Images(pixels, images.meta), tuple(targets))


def test_replay_goes_the_same_way_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    overrides = ["model/backbone=resnet18_narrow", "model.neck.out_channels=32", "model.head.roi.network.hidden=[64]"]
    detector = build_model("faster_rcnn_fpn", ABC, overrides)
    options = {"detector": detector, "optim": SGD(lr=1e-3), "train_loader": InfLoader(), "categories": ABC}
    trainer = make_trainer(tmp_path, **without_evaluation(ema_decay=None, **options))
    error, bundle = failed(trainer, NonFiniteError)
    assert "the pixels of image 1 (1.png) have 1 of 18432 values not finite" in str(error)
    assert bundle.seen["output"] == "backbone.conv1"
    with torch.no_grad():
        for p in detector.parameters():
            p.zero_()
    seen = replay(bundle, detector)
    assert repr(dataclasses.asdict(seen)) == repr(dict(bundle.seen))
    assert repr(seen.terms) == repr(bundle.terms[0])


def test_an_error_without_a_cause_in_the_batch_stays_what_it_is(tmp_path: Path) -> None:
    class Broken(StubDetector):
        def forward(self, images: Any, targets: Any = None) -> Any:
            raise RuntimeError("out of memory, say")

    with pytest.raises(RuntimeError, match=r"^out of memory, say$"):
        stub_trainer(tmp_path, detector=Broken()).fit()
    assert not list(tmp_path.glob("divergence*"))


def test_bundles_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt: there is no such file$"):
        load_bundle(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("no archive")
    with pytest.raises(CheckpointError, match=r"text\.pt: damaged or no bundle: "):
        load_bundle(tmp_path / "text.pt")
    trainer = stub_trainer(tmp_path, detector=Growing(math.nan))
    trainer.save()
    with pytest.raises(CheckpointError, match=r"last\.pt: not a divergence report; a failing run writes one as "):
        load_bundle(tmp_path / "last.pt")
    error, bundle = failed(trainer, NonFiniteError)
    assert error.bundle is not None
    state = torch.load(error.bundle, weights_only=True)
    torch.save(state | {"format": 99, "versions": {"detkit": "9.1"}}, tmp_path / "other.pt")
    with pytest.raises(
        CheckpointError, match=r"format 99, written by detkit 9\.1; this is detkit .*reads formats 1 to 3$"
    ):
        load_bundle(tmp_path / "other.pt")
    save_bundle(tmp_path / "no_weights.pt", dataclasses.replace(bundle, weights=None))
    with pytest.raises(ValueError, match="the bundle has no weights"):
        replay(load_bundle(tmp_path / "no_weights.pt"), nn.Identity())


def test_a_report_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detkit.engine.bad_steps.divergence.atomic_write", full)
    with pytest.raises(NonFiniteError) as caught:
        stub_trainer(tmp_path, detector=Growing(math.nan)).fit()
    assert caught.value.bundle is None
    assert "no divergence report: " in caplog.text
    assert "No space left on device" in caplog.text
