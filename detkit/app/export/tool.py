"""``tools/export.py``: a checkpoint as a file for other runtimes, kept only if it says what the detector says."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich
import torch
from omegaconf import DictConfig
from rich.text import Text

from detkit.app.assemble.exported import Contract
from detkit.app.assemble.outputs import refuse_url_without_output
from detkit.app.assemble.parts import build_evaluator, build_transforms
from detkit.app.assemble.schema import ExportOptions
from detkit.app.assemble.stored import Stored, eval_loader, load_stored, open_split
from detkit.app.cli.entry import run_tool
from detkit.app.export.check import (
    LEAST_COMPARED,
    MOST_AP,
    MOST_PX,
    MOST_SCORE,
    OneByOne,
    ResizedDetector,
    agreement,
    edges_of,
    least_score,
    most_detections,
)
from detkit.app.run.next_command import tell_prediction_with
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from detkit.data.datasets.base import DetectionDataset
from detkit.data.loader import EvalLoader
from detkit.data.transforms.base import PlannedTransform, Transform
from detkit.data.transforms.plan import Plan
from detkit.engine.evaluation import evaluate
from detkit.models import ComposedDetector, Detector
from detkit.models.calibrated import Calibrated
from detkit.models.export import NoFormError, Program, made_program
from detkit.models.export.resize import Resized
from detkit.models.export.runtime import ExportedDetector, onnx_run, onnx_session, torch_run
from detkit.models.export.trace import traced, write_onnx
from detkit.utils.download import checksum
from detkit.utils.files import named, output_folder
from detkit.utils.log import logger, set_up_logging

_RESIZED_BEFORE = "resized as transform.val of the configuration says"
_SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}


class DiffersError(ValueError):
    """The file finds something else than the detector; it is not left behind."""


def main() -> None:
    """The command line."""
    run_tool(run, "export")


def run(cfg: DictConfig, _: Path) -> None:
    """Export ``cfg.checkpoint`` to ``cfg.output``, or beside it.

    Raises:
        DiffersError: what was written does not agree with the detector.
        NoFormError: a part of the detector cannot be exported.
    """
    set_up_logging()
    refuse_url_without_output(str(cfg.get("checkpoint")), cfg.get("output"))
    options, stored = load_stored(cfg, ExportOptions)
    check_range("num_images", options.num_images, 1)
    output = Path(options.output or Path(options.checkpoint).with_suffix(_SUFFIXES[options.format]))
    if output.suffix.lower() != _SUFFIXES[options.format]:
        raise ConfigError(
            f"output: a file of format={options.format} ends in {_SUFFIXES[options.format]}, not {output}"
        )
    if output.is_dir():
        raise ConfigError(f"output: {output} is a folder")
    dataset, loader = open_split(stored, options.split)
    whole = here = stored.augmented(None)
    resized = None
    if options.resize:
        resized = resizing_of(stored, options.size)
        here = ResizedDetector(whole, resized, _divisor(stored))
        loader = eval_loader(_with_steps(stored, _to_size(resized.before)), dataset)
        stored = _with_steps(stored, {})
    elif options.size is not None:
        _check_size(loader, options.size)
    contract = contract_of(stored, whole, options)
    with output_folder(output.parent), tempfile.TemporaryDirectory(dir=output.parent, prefix=".export_") as folder:
        draft = Path(folder) / output.name
        program = made_program(
            whole, size_divisor=_divisor(stored), channels_last=options.layout == "bhwc", resized=resized
        )
        with named(output):
            write(draft, program, contract, options)
        _compare(here, _opened(draft, options), stored, dataset, loader, options)
        with named(output):
            draft.replace(output)
    rich.print("exported:", Text(str(output), "bold"))
    if options.format == "onnx":
        tell_prediction_with(output, dataset, options.size if options.resize else None)


def contract_of(stored: Stored, detector: Detector, options: ExportOptions) -> Contract:
    """What the file will say of itself."""
    order = "height, width, 3" if options.layout == "bhwc" else "3, height, width"
    which = (
        "any number of images of one size"
        if options.size is None
        else f"one image of {options.size[0]} x {options.size[1]} px"
    )
    thresholds = detector.thresholds.tolist() if isinstance(detector, Calibrated) else None
    return Contract(
        categories=stored.checkpoint.categories.to_dict(),
        input=f"uint8 RGB (batch, {order}), {which}, {'as they are' if options.resize else _RESIZED_BEFORE}",
        layout=options.layout, size=options.size, score_threshold=least_score(detector), thresholds=thresholds,
        checkpoint=stored.checkpoint.source, sha256=checksum(stored.checkpoint.source), config=stored.config,
        metrics={name: float(value) for name, value in stored.checkpoint.metrics.items()},
    )  # fmt: skip


def write(path: Path, program: Program, contract: Contract, options: ExportOptions) -> None:
    """Write ``program`` in the format that was asked for.

    Raises:
        NoFormError: there is no way to say it for images of any size.
        OSError: the file cannot be written.
    """
    size = _example(program) if options.size is None else options.size
    try:
        graph = traced(program, size, fixed=options.size is not None, gathered=options.deform_conv == "gather")
    except Exception as error:  # torch.export raises what it likes
        if options.size is not None or isinstance(error, NoFormError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise NoFormError(
            f"for images of any size this detector cannot be exported ({reason}): give size=[H,W]"
        ) from error
    if options.format == "onnx":
        write_onnx(graph, path, contract.metadata())
    else:
        content = io.BytesIO()  # torch's own writer says of a full disk no more than "unexpected pos"
        torch.export.save(graph, content, extra_files={f"{k}.txt": v for k, v in contract.metadata().items()})
        path.write_bytes(content.getbuffer())


def resizing_of(stored: Stored, size: tuple[int, int] | None) -> Resized:
    """What ``transform.val`` does to images of ``size`` (h, w) px, for the program to do.

    Raises:
        ConfigError: no size is given.
        NoFormError: ``transform.val`` does something else than to resize.
    """
    if size is None:
        raise ConfigError("resize=true needs size=[H,W], the px of the images that the file will take")
    plan = Plan.resized(size, size)
    for name, step in zip(*_steps(stored), strict=True):
        own = step.plan(plan.size, 0) if isinstance(step, PlannedTransform) else None
        if own is None or own.mirrored or not own.fills or not plan.is_idle:
            kind = type(step).__name__
            raise NoFormError(f"transform.val.{name}: {kind} cannot go into a file: export with resize=false")
        plan = own
    try:
        return Resized(size, plan.size)
    except ValueError as error:
        raise NoFormError(f"size: {error}; export with resize=false") from error


def _steps(stored: Stored) -> tuple[list[str], list[Transform]]:
    steps = {name: step for name, step in stored.config["transform"]["val"].items() if step is not None}
    return list(steps), build_transforms(steps, "transform.val")


def _to_size(size: tuple[int, int]) -> dict[str, Any]:
    return {"resize": {"_target_": "Resize", "height": size[0], "width": size[1]}}


def _with_steps(stored: Stored, steps: Mapping[str, Any]) -> Stored:
    """``stored`` with other ``steps`` at ``transform.val``."""
    transform = {**stored.config["transform"], "val": steps}
    return replace(stored, config={**stored.config, "transform": transform})


def _divisor(stored: Stored) -> int:
    return stored.config["data"]["loader"]["val"].get("size_divisor", 32)


def _check_size(loader: EvalLoader, size: tuple[int, int]) -> None:
    """Refuse a ``size`` that the first image has not, before the time that an export takes.

    Raises:
        ConfigError: the message names the image and its size.
    """
    first = next(iter(loader)).images.meta[0]
    if first.size != size:
        raise ConfigError(
            f"size: {first.file} has {first.size[0]} x {first.size[1]} px after transform.val, and the file would take "
            f"images of {size[0]} x {size[1]} px alone: give that size, choose a transform that makes {list(size)}, or "
            "resize=true for images that come in this size"
        )


def _example(program: Program) -> tuple[int, int]:
    """A size of which every map has two cells at least on each side, and no two sides are alike."""
    detector = program.detector
    side = 2 * int(max(detector.neck.out_spec.strides)) if isinstance(detector, ComposedDetector) else 0
    return side + 34, side + 94


def _opened(path: Path, options: ExportOptions) -> ExportedDetector:
    made: Any = onnx_run(onnx_session(path)) if options.format == "onnx" else torch_run(path)
    return ExportedDetector(made, channels_last=options.layout == "bhwc", size=options.size)


def _compare(
    here: Detector, exported: ExportedDetector, stored: Stored, dataset: DetectionDataset, loader: EvalLoader,
    options: ExportOptions,
) -> None:  # fmt: skip
    """Print how far the file agrees, and AP by both.

    Raises:
        DiffersError: it finds something else, or has another AP.
        ConfigError: nothing is found in the images, so that nothing can be compared.
    """
    edges = edges_of(here, len(stored.checkpoint.categories))
    most = most_detections(here)
    found = agreement(here, exported, loader, options.num_images, _divisor(stored), edges, most)
    if found.alone:
        shown = "\n  ".join(found.alone[:5])
        raise DiffersError(
            f"the exported file finds something else (more than {MOST_PX:g} px or {MOST_SCORE:g} apart) in "
            f"{len(found.alone)} places and is not kept:\n  {shown}"
        )
    if not found.num_detections:
        raise ConfigError(
            f"split: the detector finds nothing in {found.num_images} images of {options.split}, so that nothing of "
            "the file could be compared, and it is not kept: take another split or more images (num_images), lower the "
            "detector's score_threshold, or train it further"
        )
    rich.print(str(found))
    if found.num_detections < LEAST_COMPARED:
        logger.warning(
            "only %d detections in %d images could be compared, which is little to trust a file by",
            found.num_detections, found.num_images,
        )  # fmt: skip
    if options.evaluate and stored.config.get("evaluator") is not None:
        _compare_ap(here, exported, stored, dataset, loader)


def _compare_ap(
    here: Detector, exported: ExportedDetector, stored: Stored, dataset: DetectionDataset, loader: EvalLoader
) -> None:
    """Print AP of the whole split by both; raise DiffersError where one is another."""
    values = []
    for detector in (OneByOne(here, _divisor(stored)), exported):
        evaluator = build_evaluator(stored.config["evaluator"], dataset, lambda: open_split(stored, "train")[0])
        values.append(evaluate(detector, loader, evaluator, device=stored.device).value("AP"))
    rich.print(f"AP on {len(dataset)} images: {values[0]:.4f} here, {values[1]:.4f} by the file")
    if abs(values[0] - values[1]) > MOST_AP:  # nan, where there is no object, is no difference
        raise DiffersError(
            f"the exported file has another AP on {len(dataset)} images (more than {MOST_AP:g} apart) and is not kept: "
            f"{values[0]:.4f} here, {values[1]:.4f} by the file"
        )


if __name__ == "__main__":
    main()
