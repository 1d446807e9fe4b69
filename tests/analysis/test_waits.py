"""What a GPU's host would wait for in a training step of each detector, and that each kind of wait is seen."""

import pytest
import torch
import torch.nn.functional as F

from detkit.analysis.waits import watched
from detkit.engine.evaluation import to_device
from detkit.engine.precision import Precision
from detkit.engine.update import Updater, read_losses
from detkit.models.flow.path import CosinePath, LinearPath
from detkit.structures import Batch, Categories, Images, Target
from detkit.utils.transfer import constant, forget_constants, row_owners, sent
from tests.models.builders import build_awake, images

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))

#: For a whole step, whatever the batch: the last is for the losses' values, which the trainer reads.
WAITS = {
    "faster_rcnn_fpn": 6,
    "rfcn": 8,
    "tridentnet": 6,
    "faster_rcnn_snip": 16,  # three scales, each with a first and a second stage
    "retinanet": 2,
    "centernet": 2,
    "yolov1": 2,
    "flow": 10,
    "diffusiondet": 6,  # two stages: SimOTA asks in each for the objects that no guess is left for
    "mtcnn": 17,  # three stages
}

X = torch.arange(12.0).view(3, 4)
MASK = torch.tensor([True, False, True])
INDEX = torch.tensor([0, 2])


def fill(index):
    X.clone()[index] = 1.0


ONE_WAIT = {
    "nonzero": lambda: X.nonzero(),
    "a number": lambda: float(X.sum()),
    "a truth": lambda: bool((X > 3).any()),
    "a list": lambda: X.tolist(),
    "to the host": lambda: X.cpu(),
    "to the device": lambda: torch.zeros(2).to(X.device),
    "a mask": lambda: X[MASK],
    "a mask's gradient": lambda: torch.ops.aten.index_put(X, [MASK], X[:2]),
    "an index of the host": lambda: X[torch.tensor([0, 1])],
    "a constant": lambda: torch.tensor([1.0], device=X.device),
    "a new tensor": lambda: X.new_tensor([1.0]),
    "a number by index": lambda: fill(INDEX),
    "unique": lambda: INDEX.unique(),
    "repeat_interleave": lambda: INDEX.repeat_interleave(INDEX),
}
NO_WAIT = {
    "arithmetic": lambda: torch.where(X > 1, X * 2, 0).sum(),
    "made there": lambda: torch.arange(3, device=X.device) + torch.full((), 2.0, device=X.device) + X.new_zeros(3),
    "a number by mask": lambda: fill(MASK),
    "whole numbers": lambda: X[INDEX],
    "one_hot": lambda: F.one_hot(INDEX, 4),
    "the host's own": lambda: (torch.rand(3) > 0.5).nonzero().tolist(),
    "a known size": lambda: row_owners([2, 1], X.device),
    "a type": lambda: X.to(torch.float64).long(),
}


@pytest.mark.parametrize("name", ONE_WAIT)
def test_each_wait_is_seen(name):
    with watched() as found:
        ONE_WAIT[name]()
    assert len(found.waits) == 1, found.waits


@pytest.mark.parametrize("name", NO_WAIT)
def test_what_is_none_is_not(name):
    with watched() as found:
        NO_WAIT[name]()
    assert found.waits == []


def test_numbers_are_sent_without_a_wait_and_constants_once():
    with watched() as found:
        for _ in range(2):
            constant((1.0, 2.0), X.device)
            sent([1, 2], X.device)
    assert found.waits == []
    assert len(found.sent) == 3


def test_tensors_of_host_and_device_do_not_go_together():
    with watched(), pytest.raises(RuntimeError, match="aten::add has tensors of the host and of the device"):
        X + torch.zeros(3, 4)


def made_batch(num):
    """Images of two sizes with one to four objects, every other one with one to be ignored."""
    seen = images(*[(64, 96), (50, 76)] * (num // 2))
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, seen.pixels.shape, generator=g, dtype=torch.uint8)
    targets = []
    for i, (h, w) in enumerate(seen.sizes):
        corner = torch.rand(1 + i % 4, 2, generator=g) * torch.tensor([w / 2, h / 2])
        boxes = torch.cat([corner, corner + 4 + torch.rand(len(corner), 2, generator=g) * (h / 2)], dim=1)
        labels = torch.randint(0, 3, (len(boxes),), generator=g)
        targets.append(Target(boxes, labels, torch.arange(len(boxes)) == (1 if i % 2 else 9)))
    return Batch(Images(pixels, seen.meta), tuple(targets))


def waits_of_steps(name, monkeypatch, change=lambda detector: None, precision: Precision = "fp32"):
    """Of one step each with two and eight images, from their sending on, by a detector after ``change``."""
    monkeypatch.setattr("detkit.matching.groups._PARCEL", {})  # as many boxes at once as on a GPU
    detector = build_awake(name, CATEGORIES).train()
    change(detector)
    updater = Updater(
        detector=detector, optimizer=torch.optim.SGD(detector.parameters(), lr=1e-4, momentum=0.9),
        device=torch.device("cpu"), precision=precision, accumulate=1, clip_norm=None, ema_decay=None,
    )  # fmt: skip
    found = []
    for num in (2, 8):
        forget_constants()  # of other tests
        with watched() as waits:
            batch = to_device(made_batch(num), X.device, channels_last=False)
            losses = updater.backward(batch, is_last=True)
            norm = updater.gradient_norm()
            read_losses([(batch, losses)], norm)
            updater.finish(norm, apply=True)
        found.append(waits)
    return found


def slowly(names, *slow):
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def assert_waits(name, two, eight):
    assert len(two.waits) == WAITS[name], two.waits
    assert len(eight.waits) == WAITS[name], eight.waits
    assert len(two.sent) <= 40, two.sent
    assert len(eight.sent) == len(two.sent), "copies from the host do not grow with the batch"


@pytest.mark.parametrize("name", slowly(WAITS, "tridentnet", "faster_rcnn_snip", "mtcnn"))
def test_a_step_waits_as_often_whatever_the_batch(name, monkeypatch):
    assert_waits(name, *waits_of_steps(name, monkeypatch))


@pytest.mark.parametrize("name", slowly(WAITS, *(WAITS.keys() - {"yolov1", "centernet", "diffusiondet"})))
def test_a_step_in_bf16_waits_no_more(name, monkeypatch):
    assert_waits(name, *waits_of_steps(name, monkeypatch, precision="bf16"))


def test_the_scaler_of_fp16_asks_once_more(monkeypatch):
    """Whether a gradient overflowed, before the optimiser's step."""
    for found in waits_of_steps("yolov1", monkeypatch, precision="fp16"):
        assert [wait.place.split(":")[0] for wait in found.waits].count("engine/update.py") == 2, "losses, and overflow"
        assert len(found.waits) == WAITS["yolov1"] + 1, found.waits


@pytest.mark.parametrize("path", [LinearPath(), CosinePath(eta=1.0)], ids=["lines", "chance"])
def test_reflow_waits_no_more_than_the_plain_flow(path, monkeypatch):
    """Its noises are sent, those of the steps too."""

    def reflow(detector):
        detector.head.reflow_steps, detector.head.path = 4, path

    two, eight = waits_of_steps("flow", monkeypatch, reflow)
    for found in (two, eight):
        assert len(found.waits) == WAITS["flow"], found.waits
    assert len(eight.sent) == len(two.sent)
