"""What a training step costs against the number of classes: time and memory, of the class layer and of all the rest."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import rich
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.models import recipe_detector
from benchmarks.ops import WIDTH
from benchmarks.processes import in_a_process_of_its_own
from benchmarks.timing import time_alternately
from benchmarks.training import SIZE, made_batch, training_step
from detkit.app.assemble.parts import choose_device
from detkit.app.run.costs import peak_memory
from detkit.config.ranges import check_range
from detkit.models.heads.roi import RoIHead, sample_classes
from detkit.utils.progress import track

#: How the heads differ that are timed.
_SHARED = "model.head.roi.network.class_agnostic=true"
_COSINE = "loss@model.head.roi.cls_loss=NormalizedSoftmax"
HEADS = {
    "softmax": (_SHARED,),
    "cosine": (_SHARED, _COSINE),
    "cosine, a tenth drawn": (_SHARED, _COSINE, "model.head.roi.class_share=0.1"),
    "softmax, a box for each class": (),
}

HEADINGS = ("head", "classes", "step ms", "class layer ms", "all else ms", "peak MiB")


class StepCost(NamedTuple):
    """Seconds of a ``step`` and of the class layer in it, medians, and the most bytes that the process has held."""

    step: float
    class_layer: float
    memory: int


def main(arguments: Sequence[str]) -> None:
    """``tools/benchmark.py vocabulary``."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py vocabulary",
        description="Time a training step of Faster R-CNN against its number of classes.",
    )
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[80, 1200, 5000, 20000], help="(default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=1, help="images in a step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each head (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    for name in ("batch", "repeats", "threads"):
        check_range(f"--{name}", getattr(options, name), 1)
    check_range("--classes", min(options.classes), 1)
    choose_device(options.device)
    benchmark_vocabulary(options.classes, options.batch, options.repeats, options.threads, options.device)


def benchmark_vocabulary(classes: Sequence[int], batch: int, repeats: int, threads: int, device: str) -> None:
    """Print a table of every head with each number of classes; what is interrupted, as far as it came."""
    table = Table(
        title=f"training step, {batch} image(s) of {SIZE[1]} x {SIZE[0]} px, {threads} thread(s), {device}: "
        f"{'seconds' if device != 'cpu' else 'processor time'}, medians of {repeats}",
        title_justify="left",
    )
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    cases = [(head, count) for head in HEADS for count in classes]
    try:
        for head, count in track(cases, len(cases), "timing heads"):
            cost = in_a_process_of_its_own(measure, head, count, batch, repeats, threads, device)
            table.add_row(head, f"{count:,}", *_cells(cost), end_section=count == classes[-1])
    finally:
        Console(width=max(rich.get_console().width, WIDTH)).print(table)


def _cells(cost: StepCost | None) -> list[str]:
    if cost is None:
        return ["killed: not enough memory?", "", "", ""]
    times = (cost.step, cost.class_layer, cost.step - cost.class_layer)
    return [*(f"{1e3 * seconds:.0f}" for seconds in times), f"{cost.memory / 2**20:,.0f}"]


def measure(head: str, num_classes: int, batch: int, repeats: int, threads: int, device: str) -> StepCost:
    """Take training steps of ``head``, in turn with the same work of its class layer alone.

    On a CPU the times are those that the processor was busy, which others at work on the machine change little.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    where = torch.device(device)
    images, targets = made_batch(batch, where, num_classes)
    model = recipe_detector("faster_rcnn", num_classes, HEADS[head]).to(where).train()
    roi = next(part for part in model.modules() if isinstance(part, RoIHead))
    whole = training_step(model, lambda: model(images, targets).total)
    layer = class_layer_alone(roi, _features(roi.network.get_submodule("cls_score"), whole))
    clock = time.process_time if where.type == "cpu" else time.perf_counter
    times = time_alternately({"step": whole, "class layer": layer}, repeats, where, clock)
    step, alone = (statistics.median(times[name]) for name in ("step", "class layer"))
    return StepCost(step, alone, peak_memory(where))


def _features(layer: nn.Module, step: Callable[[], None]) -> Tensor:
    """(R, C): what the class ``layer`` is given in one ``step``."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    step()
    handle.remove()
    return seen[0]


def class_layer_alone(roi: RoIHead, features: Tensor) -> Callable[[], None]:
    """Logits of ``features`` (R, C), their loss, gradients of weights and features, and an update of the weights."""
    layer, num_classes = roi.network.get_submodule("cls_score"), roi.num_classes
    x = features.requires_grad_()
    labels = torch.full((len(x),), num_classes, device=x.device)
    positives = labels[: len(x) // 4]  # the sampler's share
    positives.random_(0, num_classes, generator=torch.Generator(x.device).manual_seed(0))

    def loss() -> Tensor:
        if roi.class_share is None:
            return roi.cls_loss(layer(x), labels).sum()
        classes = sample_classes(labels, num_classes, roi.class_share, [0])
        of_drawn, among = roi.among(labels, classes)
        return of_drawn(layer(x, classes), among).sum()

    return training_step(layer, loss)
