"""Training steps beside torchvision's, their convolutions and products, and compiled ones; the batch they take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import NUM_CLASSES, SIZE, heavy_calls, num_classes_of, recipe_detector, replay, torchvision_peer
from benchmarks.shares import Share, shares_of
from benchmarks.timing import Clock, time_alternately
from detkit.engine.precision import Precision, autocast
from detkit.models import Detector
from detkit.models.compiled import compile_networks
from detkit.structures import ImageMeta, Images, Target


def benchmark_training(
    device: torch.device,
    batch: int,
    repeats: int,
    clock: Clock,
    name: str = "faster_rcnn",
    *,
    compiled: bool = False,
    bf16: bool = False,
    channels_last: bool = False,
    size: tuple[int, int] = SIZE,
) -> dict[str, list[float]]:
    """Seconds of a step of the recipe ``name``: of torchvision's like, as it stands, as asked, and of its heavy calls.

    Those are its convolutions and products, by themselves. The same numbers of anchors, proposals and sampled regions;
    torchvision's in float32 and as it is laid out, whatever is asked. ``size`` (h, w) of the images, px.
    """
    images, targets = made_images(batch, size, 14, device, num_classes_of(name))
    ours, theirs = recipe_detector(name).to(device).train(), torchvision_peer(name, size)
    contestants: dict[str, Callable[[], object]] = {}
    if theirs is not None:
        pixels = unpadded(images)
        dicts = [{"boxes": t.boxes, "labels": t.labels + (name != "retinanet")} for t in targets]
        peer = theirs.to(device).train()
        contestants["torchvision"] = training_step(peer, lambda: torch.stack(list(peer(pixels, dicts).values())).sum())
    contestants["detkit"] = training_step(ours, _total(ours, images, targets, "fp32"))
    if bf16:
        contestants["detkit, bf16"] = training_step(ours, _total(ours, images, targets, "bf16"))
    if channels_last:
        laid: Any = copy.deepcopy(ours)
        laid = laid.to(memory_format=torch.channels_last)
        of_layout = replace(images, pixels=images.pixels.contiguous(memory_format=torch.channels_last))
        for precision in ("fp32", "bf16") if bf16 else ("fp32",):
            words = "detkit, channels last" + (", bf16" if precision == "bf16" else "")
            contestants[words] = training_step(laid, _total(laid, of_layout, targets, precision))
    if compiled:
        other = copy.deepcopy(ours)
        compile_networks(other, device)
        contestants["detkit, compiled"] = training_step(other, _total(other, images, targets, "fp32"))
    calls = heavy_calls(contestants["detkit"])
    contestants["its convolutions and products"] = lambda: replay(calls)
    return time_alternately(contestants, repeats, device, clock)


def profile_training(
    device: torch.device, batch: int, repeats: int, name: str = "faster_rcnn", size: tuple[int, int] = SIZE
) -> list[Share]:
    """Where the time of the recipe's step goes, float32."""
    images, targets = made_images(batch, size, 14, device, num_classes_of(name))
    ours = recipe_detector(name).to(device).train()
    return shares_of(training_step(ours, _total(ours, images, targets, "fp32")), repeats, device)


def _total(detector: Detector, images: Images, targets: Sequence[Target], precision: Precision) -> Callable[[], Tensor]:
    def total() -> Tensor:
        with autocast(images.pixels.device, precision):
            return detector(images, targets).total

    return total


def made_batch(batch: int, device: torch.device, num_classes: int = NUM_CLASSES) -> tuple[Images, list[Target]]:
    """Random pixels with 14 boxes in each image, as many as a blood-cell picture has."""
    return made_images(batch, SIZE, 14, device, num_classes)


def made_images(
    batch: int, size: tuple[int, int], num_boxes: int, device: torch.device, num_classes: int = NUM_CLASSES
) -> tuple[Images, list[Target]]:
    """Random pixels of ``size`` (h, w) px, padded to strides of 32, with ``num_boxes`` boxes of 40 to 90 px in each."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    pixels = functional.pad(pixels, (0, -size[1] % 32, 0, -size[0] % 32))
    targets = []
    for _ in range(batch):
        corner = torch.rand(num_boxes, 2, generator=generator) * torch.tensor([size[1] - 90.0, size[0] - 90.0])
        boxes = torch.cat([corner, corner + 40 + 50 * torch.rand(num_boxes, 2, generator=generator)], dim=1)
        labels = torch.randint(0, num_classes, (num_boxes,), generator=generator)
        targets.append(Target(boxes, labels, torch.zeros(num_boxes, dtype=torch.bool)).to(device))
    metas = tuple(ImageMeta(i, f"{i}.png", size, size, key=i) for i in range(batch))
    return Images(pixels, metas).to(device), targets


def unpadded(images: Images) -> list[Tensor]:
    """(3, h, w) float32 in 0..1 of each image, as torchvision's models take them."""
    return [p[:, :h, :w].float() / 255 for p, (h, w) in zip(images.pixels, images.sizes, strict=True)]


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """``loss``, its gradients, and an update of ``model``."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
