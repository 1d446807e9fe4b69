"""``tools/replay.py``: run the step again that a training ended with."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich
import torch
from rich.text import Text

from detkit.app.assemble.foreign import inert, restrain
from detkit.app.assemble.parts import choose_device
from detkit.app.cli.components import load_components
from detkit.app.cli.failure import told_plainly
from detkit.config import ConfigError
from detkit.config.validate import plain
from detkit.engine.bad_steps.diagnosis import Rerun
from detkit.engine.bad_steps.divergence import Bundle, describe, load_bundle, replay
from detkit.engine.bad_steps.finite import bad_inputs
from detkit.models import Detector, build_detector
from detkit.pictures.draw import contact_sheet, draw_boxes, encode_png
from detkit.utils.commands import command
from detkit.utils.files import atomic_write


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run the step again that a training ended with.")
    parser.add_argument("bundle", help="divergence_step....pt of a run folder")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, auto")
    options = parser.parse_args(arguments)
    with told_plainly():
        load_components()
        show(options.bundle, options.device)


def show(path: str | Path, device: str = "cpu") -> Rerun:
    """Print the report in ``path``, run its step again, and write the picture of its batch beside it."""
    bundle = load_bundle(path)
    print_ = rich.get_console().print
    print_(Text.assemble((str(path), "bold"), f": step {bundle.step}"))
    for line in [*describe(bundle), *_numbers(bundle)]:
        print_(Text(line), soft_wrap=True)
    picture = Path(path).with_suffix(".png")
    atomic_write(picture, encode_png(draw_batch(bundle)))
    print_("its images and boxes:", Text(str(picture), "bold"))
    seen = replay(bundle, detector_of(bundle), choose_device(device))
    print_(Text(f"again: {in_words(seen, bundle)}"), soft_wrap=True)
    return seen


def detector_of(bundle: Bundle) -> Detector:
    """The detector of the run, without its weights.

    Raises:
        ConfigError: the bundle has no configuration to build it from.
    """
    if "model" not in bundle.config:
        raise ConfigError("the bundle has no configuration; the run was not started by " + command("train"))
    model = {"model": plain(inert(bundle.config, "the bundle"))["model"]}
    restrain(model)
    return build_detector(model["model"], bundle.categories, bundle.class_counts)


def in_words(seen: Rerun, bundle: Bundle) -> str:
    """What the second run showed, and whether it is what the first one did."""
    if seen.error is not None:
        what = f"the detector fails with {seen.error}"
    elif seen.output is not None:
        what = f"the first layer whose output is not finite: {seen.output}"
    elif seen.gradient is not None:
        what = f"the first place of the backward pass where the gradient is not finite: {seen.gradient}"
    else:
        what = "everything is finite"
    terms = ", ".join(f"{name} {value:.4g}" for name, value in (seen.terms or {}).items())
    same = repr(dataclasses.asdict(seen)) == repr(dict(bundle.seen))  # repr, since nan is not equal to itself
    return f"{what}{f'; {terms}' if terms else ''} ({'as' if same else 'NOT as'} in the run)"


def draw_batch(bundle: Bundle) -> np.ndarray:
    """The images of the failing batch with their boxes, uint8 RGB; boxes that no one can learn are dashed."""
    batch = bundle.batches[bundle.failing]
    bad = list(bad_inputs(batch, len(bundle.categories)))
    pictures = []
    for pixels, meta, target in zip(batch.images.pixels, batch.images.meta, batch.targets, strict=True):
        h, w = meta.size
        image = pixels[:, :h, :w].float().nan_to_num().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        dashed = [any(f"box {i} of image {meta.image_id} " in line for line in bad) for i in range(len(target))]
        labels = target.labels.clamp(0, len(bundle.categories) - 1).tolist()
        names = bundle.categories.names
        title = f"{meta.image_id} {Path(meta.file).name}"
        boxes = target.boxes.nan_to_num().clamp(-1e6, 1e6).numpy()
        pictures.append(draw_boxes(image, boxes, labels, names, title=title, dashed=dashed, min_side=320))
    return contact_sheet(pictures, columns=4)


def _numbers(bundle: Bundle) -> list[str]:
    lines = []
    for i, terms in enumerate(bundle.terms):
        which = f" of batch {i + 1}" if len(bundle.terms) > 1 else ""
        lines.append(f"loss terms{which}: " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items()))
    written = ", ".join(f"{name} {version}" for name, version in bundle.versions.items())
    return [*lines, f"precision {bundle.precision}; written by {written}"]


if __name__ == "__main__":
    main()
