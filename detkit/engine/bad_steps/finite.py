"""Steps that must not be taken: what went wrong, in words that name it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from detkit.structures import Batch, Losses
from detkit.utils.tensors import count_not_finite, not_finite

_MOST_NAMED = 5

#: Pixels are 0..255; resampling with overshoot may leave that a little.
_PIXEL_RANGE = (-16.0, 271.0)

#: Float pixels that all lie below are black, or were normalised already: to 0..1, or to mean 0 and deviation 1.
BLACK = 4.0


class BadStepError(ValueError):
    """A step that the run ends with. No weight, optimiser state or average has taken it in.

    Attributes:
        step: the update that failed, from 1.
        batches: the batches of the step, on their device.
        bundle: the file that holds all of it, see :mod:`detkit.engine.bad_steps.divergence`; None where there is none.
    """

    def __init__(self, message: str, *, step: int, batches: Sequence[Batch]) -> None:
        super().__init__(message)
        self.step = step
        self.batches = tuple(batches)
        self.bundle: Path | None = None


class NonFiniteError(BadStepError):
    """A loss or a gradient is not finite."""


class NonFiniteGradientError(NonFiniteError):
    """A gradient is not finite though the loss of this process is.

    Processes exchange their gradients: all have this error, and any of them may be the one to blame.
    """


class ExplodingLossError(BadStepError):
    """A loss is finite, but far above those before it."""


class InvalidBatchError(BadStepError):
    """A batch holds what no detector can be trained on."""


def loss_error(step: int, parts: Sequence[tuple[Batch, Losses]], detector: nn.Module) -> NonFiniteError:
    """The error for a loss that is not finite, on one or more of the step's batches."""
    batches = [batch for batch, _ in parts]
    terms = [{name: term.item() for name, term in losses.terms.items()} for _, losses in parts]
    bad = [i for i, values in enumerate(terms) if not is_finite(sum(values.values()))]
    lines = []
    for i in bad:
        named = ", ".join(f"{name} = {value}" for name, value in terms[i].items() if not is_finite(value))
        lines.append(f"step {step}: the loss is not finite: {named or 'the sum of its terms'}; {_images(batches[i])}")
    lines += culprits(detector, [batches[i] for i in bad])
    return NonFiniteError("\n  ".join(lines), step=step, batches=batches)


def gradient_error(step: int, batches: Sequence[Batch], detector: nn.Module, in_a_row: int) -> NonFiniteGradientError:
    """The error for a gradient that is not finite although the loss is, in that many steps one after another."""
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    where = f"in {_first(bad)} ({len(bad)} of {len(gradients)} parameters)" if bad else "its norm overflows"
    times = f" {in_a_row} times in a row" if in_a_row > 1 else ""
    images = "; ".join(_images(batch) for batch in batches)
    lines = [f"step {step}: the gradient is not finite{times}, though the loss is: {where}; {images}"]
    return NonFiniteGradientError("\n  ".join([*lines, *culprits(detector, batches)]), step=step, batches=batches)


def is_finite(value: float) -> bool:
    """Whether ``value`` is a number, and not infinite."""
    return abs(value) < float("inf")


def culprits(detector: nn.Module, batches: Sequence[Batch], num_classes: int | None = None) -> list[str]:
    """One line for each weight that is not finite, and each image and box that no detector can be trained on.

    Labels are looked at where ``num_classes`` is given. Buffers count only where nothing else is to blame: a forward
    pass on bad values spoils running statistics too.
    """
    inputs = [line for batch in batches for line in bad_inputs(batch, num_classes)]
    return not_finite(detector.named_parameters()) + inputs or not_finite(detector.named_buffers())


def bad_inputs(batch: Batch, num_classes: int | None = None) -> Iterator[str]:
    """One line for each image and box of ``batch`` that no detector can be trained on."""
    for pixels, meta, target in zip(batch.images.pixels, batch.images.meta, batch.targets, strict=True):
        name = f"image {meta.image_id} ({meta.file})"
        if problem := _pixel_problem(pixels):
            yield f"the pixels of {name} {problem}"
        for i, (box, label) in enumerate(zip(target.boxes.tolist(), target.labels.tolist(), strict=True)):
            if problem := _problem(box, label, meta.size, num_classes):
                yield f"box {i} of {name} {problem}"


def is_invalid(batch: Batch, num_classes: int) -> bool:
    """Whether a box of ``batch`` is not finite, has no area, lies far away or has an unknown label, or the pixels are
    of a wrong type: some losses would take each of these without a word.

    Cheap, for every step; pixels that are not finite show in the loss, and :func:`has_odd_pixels` looks at the rest.
    """
    boxes = torch.cat([target.boxes for target in batch.targets])
    labels = torch.cat([target.labels for target in batch.targets])
    far = 2 * max(batch.images.padded_size)
    good_boxes = (boxes[:, 2:] > boxes[:, :2]).all() & (boxes.abs() <= far).all()
    good_labels = ((labels >= 0) & (labels < num_classes)).all()
    return not bool(good_boxes & good_labels) or batch.images.pixels.dtype not in (torch.uint8, torch.float32)


def has_odd_pixels(batch: Batch) -> bool:
    """Whether every image of ``batch`` has finite pixels in another range than 0..255: scaled before, say."""
    pixels = batch.images.pixels
    return pixels.is_floating_point() and all(image.isfinite().all() and _pixel_problem(image) for image in pixels)


def leaves_range(batch: Batch) -> bool:
    """Whether float pixels of ``batch`` are finite and far outside 0..255. On a device, where it would wait: no."""
    pixels = batch.images.pixels
    if pixels.device.type != "cpu" or pixels.dtype != torch.float32:
        return False
    low, high = (float(v) for v in pixels.aminmax())
    return is_finite(low) and is_finite(high) and (low < _PIXEL_RANGE[0] or high > _PIXEL_RANGE[1])


def refuse_bad_weights(detector: nn.Module, what: str) -> None:
    """Refuse a detector that would find nothing, without a word, since its weights or running statistics are lost.

    Raises:
        ValueError: one is not finite; the message names it and begins with ``what``.
    """
    refuse_bad_tensors(dict([*detector.named_parameters(), *detector.named_buffers()]), what)


def refuse_bad_tensors(tensors: Mapping[str, Tensor], what: str) -> None:
    """The same of ``tensors`` by name."""
    if bad := not_finite(tensors.items()):
        raise ValueError(f"{what}: {', '.join(bad)}")


def _pixel_problem(pixels: Tensor) -> str:
    """What is wrong with the pixels of an image; empty when nothing is."""
    if pixels.dtype == torch.uint8:
        return ""
    if pixels.dtype != torch.float32:
        return f"are {str(pixels.dtype).removeprefix('torch.')}, not uint8 or float32 in 0..255"
    if not pixels.isfinite().all():
        return f"have {count_not_finite(pixels)}"
    low, high = (float(v) for v in pixels.aminmax())
    if low < _PIXEL_RANGE[0] or high > _PIXEL_RANGE[1] or (high < BLACK and low != high):
        return f"lie in {low:.3g}..{high:.3g}, not in 0..255: the detector normalises them itself"
    return ""


def _problem(box: Sequence[float], label: int, size: tuple[int, int], num_classes: int | None) -> str:
    """What keeps a box from being learnt; empty when nothing does."""
    (x1, y1, x2, y2), (h, w) = box, size
    if not all(map(is_finite, box)):
        return f"is {box}"
    if not (x2 > x1 and y2 > y1):
        return f"has no area: {box}"
    if x2 <= 0 or y2 <= 0 or x1 >= w or y1 >= h or max(-x1, -y1, x2 - w, y2 - h) > max(h, w):
        return f"lies outside its image of {w} x {h} px: {box}"
    if num_classes is not None and not 0 <= label < num_classes:
        return f"has the label {label}, which is not in 0..{num_classes - 1}"
    return ""


def _images(batch: Batch) -> str:
    return "images " + ", ".join(f"{meta.image_id} ({meta.file})" for meta in batch.images.meta)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
