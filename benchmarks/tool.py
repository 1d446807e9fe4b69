"""``tools/benchmark.py``: detkit beside its peers, in one run on one machine; ratios are what carries over."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import rich
import torch
import torchvision
from hydra import compose, initialize_config_dir
from rich.table import Table
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from benchmarks import cascade as benchmark_cascade
from benchmarks import divergence as benchmark_divergence
from benchmarks import evaluation as benchmark_evaluation
from benchmarks import host as benchmark_host
from benchmarks import ops as benchmark_ops
from benchmarks.timing import time_alternately
from detkit.app.assemble.parts import choose_device
from detkit.app.cli.components import load_components
from detkit.app.cli.failure import told_plainly
from detkit.app.cli.paths import config_dir
from detkit.config.ranges import check_range
from detkit.models import build_detector
from detkit.ops import roi_align
from detkit.structures import Categories, ImageMeta, Images, Target

#: height, width px: a 4:3 photograph at detectors' small size; divisible by 32, so that no padding differs
SIZE = (320, 416)
NUM_CLASSES = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``training``, ``ops``, ``host``, ``evaluation``, ``divergence`` or ``mtcnn``."""
    with told_plainly():
        run(arguments)


def run(arguments: Sequence[str] | None) -> None:
    """Time what ``arguments`` (those of the process, where None) ask for.

    Raises:
        ConfigError: a number that cannot be meant, or a device that is not there.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["evaluation"]:
        return benchmark_evaluation.main(arguments[1:])
    if arguments[:1] == ["mtcnn"]:
        return benchmark_cascade.main(arguments[1:])
    if arguments[:1] == ["host"]:
        return benchmark_host.main(arguments[1:])
    if arguments[:1] == ["divergence"]:
        return benchmark_divergence.main(arguments[1:])
    parser = argparse.ArgumentParser(
        description="Time detkit beside its peers; `evaluation --help` and `mtcnn --help` for those."
    )
    parser.add_argument("what", choices=("training", "ops", "host", "evaluation", "divergence", "mtcnn"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="rounds of one run of each contestant; 10, for ops on a CPU 3")
    parser.add_argument("--batch", type=int, default=4, help="images in a training step")
    parser.add_argument("--batches", type=int, nargs="+", help="ops: images at once; 2 16 on a GPU, 1 on a CPU")
    parser.add_argument("--shrink", type=int, help="ops: divide the sides of images; 1 on a GPU, 4 on a CPU")
    options = parser.parse_args(arguments)
    for name in ("repeats", "batch", "shrink"):
        check_range(f"--{name}", getattr(options, name), 1)
    check_range("--batches", min(options.batches or [1]), 1)
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    repeats = options.repeats or (10 if on_gpu or options.what == "training" else 3)
    if options.what == "training":
        times = benchmark_training(device, options.batch, repeats)
        rich.print(timing_table(times, f"training step, {options.batch} images of {SIZE[1]} x {SIZE[0]} px, float32"))
    else:
        for title, times in benchmark_roi_align(device, repeats).items():
            rich.print(timing_table(times, title))
        batches, shrink = options.batches or ([2, 16] if on_gpu else [1]), options.shrink or (1 if on_gpu else 4)
        benchmark_ops.benchmark_ops(device, repeats, batches, shrink)
    return None


def benchmark_training(device: torch.device, batch: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of Faster R-CNN MobileNetV2-FPN: the same numbers of anchors, proposals and sampled regions."""
    images, targets = made_batch(batch, device)
    ours, theirs = _detkit_model().to(device).train(), _torchvision_model().to(device).train()
    pixels = [p.float() / 255 for p in images.pixels]
    dicts = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    return time_alternately(
        {
            "torchvision": _step(theirs, lambda: torch.stack(list(theirs(pixels, dicts).values())).sum()),
            "detkit": _step(ours, lambda: ours(images, targets).total),
        },
        repeats,
        device,
    )


def benchmark_roi_align(device: torch.device, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of RoIAlign alone, 7x7 bins of 2x2 samples: 256 boxes, 256 channels, a map of 2 x 50 x 84."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 256, 50, 84, generator=generator).to(device)
    corner = torch.rand(256, 2, generator=generator) * torch.tensor([500.0, 300.0])
    boxes = torch.cat([corner, corner + torch.rand(256, 2, generator=generator) * 150 + 16], dim=1).to(device)
    index = torch.randint(0, 2, (256,), generator=generator).to(device)
    rois = torch.cat([index[:, None].float(), boxes], dim=1)

    def contestants(x: Tensor) -> dict[str, Callable[[], Tensor]]:
        return {
            "torchvision": lambda: torchvision.ops.roi_align(x, rois, 7, 1 / 8, 2, True),
            "detkit": lambda: roi_align(x, boxes, index, output_size=(7, 7), scale=1 / 8),
        }

    results = {}
    for layout, name in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels-last")):
        x = features.contiguous(memory_format=layout).requires_grad_()
        both = {k: _with_backward(f, x) for k, f in contestants(x).items()}
        with torch.no_grad():
            results[f"RoIAlign forward, {name}"] = time_alternately(contestants(x), repeats, device)
        results[f"RoIAlign forward and backward, {name}"] = time_alternately(both, repeats, device)
    return results


def timing_table(times: Mapping[str, Sequence[float]], title: str) -> Table:
    """Median, range, and how many times as fast as the first."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "median ms", "range ms", "times as fast"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        median, low, high = (1e3 * v for v in (statistics.median(values), min(values), max(values)))
        table.add_row(name, f"{median:.1f}", f"{low:.1f}-{high:.1f}", f"{1e3 * first / median:.2f}")
    return table


def made_batch(batch: int, device: torch.device) -> tuple[Images, list[Target]]:
    """Random pixels with 14 boxes in each image, as many as a blood-cell picture has."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, *SIZE), generator=generator, dtype=torch.uint8)
    targets = []
    for _ in range(batch):
        corner = torch.rand(14, 2, generator=generator) * torch.tensor([SIZE[1] - 90.0, SIZE[0] - 90.0])
        boxes = torch.cat([corner, corner + 40 + 50 * torch.rand(14, 2, generator=generator)], dim=1)
        labels = torch.randint(0, NUM_CLASSES, (14,), generator=generator)
        targets.append(Target(boxes, labels, torch.zeros(14, dtype=torch.bool)).to(device))
    metas = tuple(ImageMeta(i, f"{i}.png", SIZE, SIZE, key=i) for i in range(batch))
    return Images(pixels, metas).to(device), targets


def _detkit_model() -> nn.Module:
    load_components()
    overrides = [
        "+model=faster_rcnn_fpn", "model/backbone=mobilenetv2", "model.backbone.weights=null",
        "model.neck.out_channels=128", "model.head.rpn.anchors.scales=[4.0]",
        "model.head.rpn.num_proposals=[2000,1000]",
    ]  # fmt: skip
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose(overrides=overrides)
    return build_detector(cfg.model, Categories(tuple("abc"), (1, 2, 3)))


def _torchvision_model() -> nn.Module:
    body = torchvision.models.mobilenet_v2(norm_layer=FrozenBatchNorm2d).features
    backbone = BackboneWithFPN(body, {"3": "0", "6": "1", "13": "2", "18": "3"}, [24, 32, 96, 1280], 128)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    return FasterRCNN(backbone, NUM_CLASSES + 1, rpn_anchor_generator=anchors, min_size=min(SIZE), max_size=max(SIZE))


def _step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _with_backward(forward: Callable[[], Tensor], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        out = forward()
        out.backward(torch.ones_like(out))

    return run


if __name__ == "__main__":
    main()
