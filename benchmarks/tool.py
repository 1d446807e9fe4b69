"""``tools/benchmark.py``: detkit beside its peers, in one run on one machine; ratios are what carries over."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import rich
import torch
import torchvision
from torch import Tensor

from benchmarks import cascade as benchmark_cascade
from benchmarks import divergence as benchmark_divergence
from benchmarks import evaluation as benchmark_evaluation
from benchmarks import host as benchmark_host
from benchmarks import inference as benchmark_inference
from benchmarks import labels as benchmark_labels
from benchmarks import loading as benchmark_loading
from benchmarks import ops as benchmark_ops
from benchmarks import scaling as benchmark_scaling
from benchmarks import vocabulary as benchmark_vocabulary
from benchmarks.models import RECIPES
from benchmarks.options import add_size, size_of
from benchmarks.shares import shares_table
from benchmarks.shown import timing_table
from benchmarks.timing import clock_for, time_alternately
from benchmarks.training import benchmark_training, profile_training
from detkit.app.assemble.parts import choose_device
from detkit.app.cli.failure import told_plainly
from detkit.config.ranges import check_range
from detkit.ops import roi_align
from detkit.utils.memory import keep_freed_memory

#: Those with options of their own.
_OWN_OPTIONS = {
    "evaluation": benchmark_evaluation.main,
    "mtcnn": benchmark_cascade.main,
    "divergence": benchmark_divergence.main,
    "vocabulary": benchmark_vocabulary.main,
    "labels": benchmark_labels.main,
    "host": benchmark_host.main,
    "inference": benchmark_inference.main,
    "loading": benchmark_loading.main,
    "scaling": benchmark_scaling.main,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``training``, ``ops``, or what has options of its own."""
    with told_plainly():
        run(arguments)


def run(arguments: Sequence[str] | None) -> None:
    """Time what ``arguments`` (those of the process, where None) ask for.

    Raises:
        ConfigError: a number that cannot be meant, or a device that is not there.
    """
    keep_freed_memory()  # as all of detkit's commands do; both sides of a contest gain by it
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in _OWN_OPTIONS:
        return _OWN_OPTIONS[arguments[0]](arguments[1:])
    parser = argparse.ArgumentParser(
        description=f"Time detkit beside its peers; {', '.join(_OWN_OPTIONS)} have a --help of their own."
    )
    parser.add_argument("what", choices=("training", "ops", *_OWN_OPTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="rounds of one run of each contestant; 10, for ops on a CPU 3")
    parser.add_argument("--batch", type=int, default=4, help="images in a training step")
    add_size(parser)
    parser.add_argument("--models", nargs="+", choices=RECIPES, default=["faster_rcnn"], help="training: of which")
    parser.add_argument("--compile", action="store_true", help="training: compiled as well, which takes minutes first")
    parser.add_argument("--bf16", action="store_true", help="training: detkit's in bf16 as well")
    parser.add_argument("--channels-last", action="store_true", help="training: detkit's in that order as well")
    parser.add_argument("--profile", action="store_true", help="training: by kind of operation instead, detkit's alone")
    parser.add_argument("--threads", type=int, help="threads of torch; with 1 the process's own time is taken")
    parser.add_argument("--batches", type=int, nargs="+", help="ops: images at once; 2 16 on a GPU, 1 on a CPU")
    parser.add_argument("--shrink", type=int, help="ops: divide the sides of images; 1 on a GPU, 4 on a CPU")
    options = parser.parse_args(arguments)
    for name in ("repeats", "batch", "shrink", "threads"):
        check_range(f"--{name}", getattr(options, name), 1)
    check_range("--batches", min(options.batches or [1]), 1)
    size = size_of(options)
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    repeats = options.repeats or (10 if on_gpu or options.what == "training" else 3)
    if options.what == "training":
        clock = clock_for(device, options.threads)
        for name in options.models:
            of_images = f"{options.batch} images of {size[1]} x {size[0]} px, float32"
            if options.profile:
                shares = profile_training(device, options.batch, repeats, name, size)
                rich.print(shares_table(shares, f"where a training step of {name} spends its time, {of_images}"))
                continue
            times = benchmark_training(
                device, options.batch, repeats, clock, name, compiled=options.compile, bf16=options.bf16,
                channels_last=options.channels_last, size=size,
            )  # fmt: skip
            rich.print(timing_table(times, f"training step of {name}, {of_images}", options.batch))
    else:
        for title, times in benchmark_roi_align(device, repeats).items():
            rich.print(timing_table(times, title))
        batches, shrink = options.batches or ([2, 16] if on_gpu else [1]), options.shrink or (1 if on_gpu else 4)
        benchmark_ops.benchmark_ops(device, repeats, batches, shrink)
    return None


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


def _with_backward(forward: Callable[[], Tensor], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        out = forward()
        out.backward(torch.ones_like(out))

    return run


if __name__ == "__main__":
    main()
