"""What follows the step of the training: a margin that grows is at the same step after a resume, to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from detkit.engine import LAST, load_checkpoint
from detkit.losses import ArcFace, ASoftmax, CosFace
from detkit.losses.margins import MarginSoftmax
from detkit.structures import Detections, Images, Losses, Target
from detkit.utils.seed import seed_everything
from detkit.utils.step import training_step, updates_done
from tests.engine.stubs import StubDetector, digest_of_run, make_trainer


class Classifier(StubDetector):
    """The stub detector with a class, which stands for how bright an image is, told by a margin loss."""

    def __init__(self, loss: MarginSoftmax) -> None:
        super().__init__()
        self.loss, self.layer = loss, loss.make_layer(4, 2)
        self.seen: list[tuple[int | None, bool]] = []

    def forward(self, images: Images, targets: Sequence[Target] | None = None) -> Losses | list[Detections]:
        out = super().forward(images, targets)
        if targets is None:
            return out
        self.seen.append((updates_done(), torch.is_grad_enabled()))
        assert isinstance(out, Losses)
        pixels = images.pixels.float() / 255
        labels = (pixels.mean((1, 2, 3)) > 0.5).long()
        value = self.loss(self.layer(self.backbone(pixels).mean((2, 3))), labels).mean()
        return Losses({**out.terms, "kind": value}, out.stats)


LOSSES = {
    "CosFace": lambda: CosFace(warmup_steps=9),
    "ArcFace": lambda: ArcFace(warmup_steps=9),
    "ASoftmax": lambda: ASoftmax(lambda_base=100.0, lambda_gain=0.3, lambda_power=2.0, lambda_min=1.0),
}


def make(run: Path, name: str, **changes: object):
    run.mkdir(exist_ok=True)
    seed_everything(0)
    return make_trainer(run, detector=Classifier(LOSSES[name]()), save_every=5, **changes)


@pytest.mark.parametrize("name", LOSSES)
def test_a_resumed_run_has_the_same_margin_to_the_bit(tmp_path: Path, name: str) -> None:
    make(tmp_path / "straight", name).fit()
    make(tmp_path / "cut", name, steps=5).fit()
    trainer = make(tmp_path / "cut", name)
    trainer.restore(load_checkpoint(tmp_path / "cut" / LAST))
    trainer.fit()
    assert digest_of_run(tmp_path / "cut") == digest_of_run(tmp_path / "straight")
    assert [step for step, learns in trainer.detector.seen if learns] == list(range(5, 12))


def test_training_counts_the_updates_and_an_evaluation_has_none(tmp_path: Path) -> None:
    trainer = make(tmp_path / "run", "CosFace", accumulate=2, ema_decay=None)
    trainer.fit()
    assert [step for step, learns in trainer.detector.seen if learns] == [i for i in range(12) for _ in range(2)]
    assert {step for step, learns in trainer.detector.seen if not learns} == {None}


def test_the_step_ends_with_its_block() -> None:
    assert updates_done() is None
    with contextlib.suppress(KeyError), training_step(8):
        assert updates_done() == 7
        raise KeyError
    assert updates_done() is None
