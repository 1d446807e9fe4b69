"""``tools/inspect_data.py``: what is in a data set, in numbers and pictures, before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rich
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from detkit.app.assemble.parts import part_of
from detkit.app.assemble.schema import DataSection
from detkit.app.cli.entry import run_tool
from detkit.app.run.next_command import tell_audit_of_data
from detkit.config import ConfigError, build, validate
from detkit.config.validate import plain
from detkit.data.datasets.base import DetectionDataset
from detkit.data.datasets.findings import BadDataError
from detkit.data.decode import ImageError, bits_used
from detkit.data.sample import Sample
from detkit.data.transforms import ResizeFit
from detkit.evaluation.summary import SIZE_BOUNDS
from detkit.pictures.draw import PNG_METADATA, contact_sheet, draw_boxes, encode_png
from detkit.utils.files import atomic_write
from detkit.utils.progress import track
from detkit.utils.stderr import captured_stderr

NUM_PICTURES = 16
PICTURE_SIZE = 400

#: What libjpeg writes when pixels are lost (JWRN_* in its jerror.h).
JPEG_COMPLAINTS = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression", "Invalid SOS")

#: A picture is dim where its greatest value leaves so many upper bits unused: it is below a quarter of the range.
_UNUSED = 2

#: Dim pictures that are named in the text.
_MOST_NAMED = 5

#: Classes in the console's table, and in the diagram; report.json has all.
MAX_LISTED = 40
MAX_BARS = 100
#: Letters of a class's name beside its bar: matplotlib cuts off the beginning of what leaves the bars no room.
MAX_LETTERS = 40


@dataclass
class InspectSchema:
    """``tools/inspect_data.py``."""

    data: DataSection
    split: str = "train"
    check_images: bool = True
    run_root: str = "runs"


@dataclass
class Read:
    """What came of reading the images: by file why the ``damaged`` ones cannot be used, and how many bits the ``dim``
    ones use; ``num_deep``: how many have more than 8."""

    damaged: dict[str, str] = field(default_factory=dict)
    dim: dict[str, int] = field(default_factory=dict)
    num_deep: int = 0


def main() -> None:
    """The command line."""
    run_tool(run, "inspect_data")


def run(cfg: DictConfig, folder: Path) -> None:
    """Inspect ``cfg.data[cfg.split]``; the report goes to ``folder``."""
    validate(cfg, InspectSchema)
    node = plain(cfg)["data"]
    splits = [name for name in ("train", "val") if node.get(name) is not None]
    if cfg.split not in splits:
        raise ConfigError(f"split: the configuration has no data.{cfg.split}; it has {', '.join(splits)}")
    dataset, refusal = open_whole(node[cfg.split])
    inspect(part_of(dataset, node, cfg.split), folder, check_images=cfg.check_images)
    if refusal is not None:
        raise refusal
    tell_audit_of_data(("split", "check_images", "run_root"))


def open_whole(node: Mapping[str, Any]) -> tuple[DetectionDataset, ConfigError | None]:
    """The data set of ``node``; one that training would refuse without its bad records, and the refusal.

    What is left can then be looked at in the same run, its pictures too.

    Raises:
        ConfigError: it cannot be opened even so.
    """
    try:
        return build(node), None
    except ConfigError as error:
        if not isinstance(error.__cause__, BadDataError):
            raise
        lenient = {key: "skip" for key in ("on_missing", "on_bad_annotation") if key in node}
        try:
            return build({**node, **lenient}), error
        except ConfigError:
            raise error from error.__cause__


def inspect(dataset: DetectionDataset, out_dir: str | Path, check_images: bool = True) -> dict[str, Any]:
    """Write ``report.json``, ``report.txt``, ``classes.png``, ``sizes.png`` and ``boxes.png``, and show the tables.

    Args:
        dataset: already open, and so its annotations checked.
        out_dir: folder for the files; made if it is not there.
        check_images: also decode every image, so that damaged ones are found now.

    Returns:
        What ``report.json`` holds.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    found = read_all(dataset) if check_images else Read()
    numbers = count(dataset, found)
    text = describe(numbers, dataset)
    atomic_write(folder / "report.json", json.dumps(numbers, indent=1) + "\n")
    atomic_write(folder / "report.txt", text + "\n")
    atomic_write(folder / "classes.png", _png_of(plot_classes(numbers["classes"])))
    atomic_write(folder / "sizes.png", _png_of(plot_sizes(dataset)))
    rich.print(class_table(numbers["classes"]))
    rich.get_console().print(Text(text), soft_wrap=True)
    atomic_write(folder / "boxes.png", encode_png(draw_examples(dataset, found.damaged)))  # which one file can refuse
    rich.print("report and pictures:", Text(str(folder), "bold"))
    return numbers


def read_all(dataset: DetectionDataset) -> Read:
    """The images that cannot be read or are not of the size that their annotations say, and those that become dim.

    A JPEG with broken data in it is decoded all the same, grey from there on; that libjpeg complains is all one hears.
    Of more than 8 bits the upper ones are kept, whether or not the picture uses them.
    """
    found = Read()
    for i in track(range(len(dataset)), len(dataset), "reading images"):
        file = dataset.truths[i].file
        try:
            with captured_stderr() as said:
                dataset.read(i)
                depth = bits_used(file) if Path(file).is_file() else None
        except ImageError as error:
            found.damaged[file] = str(error)
            continue
        complaint = next((line for line in said if line.startswith(JPEG_COMPLAINTS)), None)
        if complaint is not None:
            found.damaged[file] = f"{file}: damaged inside: {complaint}"
        if depth is not None:
            found.num_deep += 1
            if 0 < depth[1] <= depth[0] - _UNUSED:
                found.dim[file] = depth[1]
    return found


def count(dataset: DetectionDataset, found: Read | None = None) -> dict[str, Any]:
    """The numbers of the report, as plain values; ``found``: what reading the images gave, where they were read."""
    found = found or Read()
    truths = list(dataset.truths)
    per_image = np.array([len(t) for t in truths])
    sizes = np.array([t.size for t in truths])
    labels = np.concatenate([t.labels for t in truths])
    crowd = np.concatenate([t.crowd for t in truths])
    areas = np.concatenate([t.area for t in truths])[~crowd]
    num_classes = len(dataset.categories)
    shown_in = np.bincount(np.concatenate([np.unique(t.labels) for t in truths]), minlength=num_classes)
    boxes = np.bincount(labels[~crowd], minlength=num_classes)
    crowds = np.bincount(labels[crowd], minlength=num_classes)
    names_and_ids = zip(dataset.categories.names, dataset.categories.ids, strict=True)
    return {
        **dataset.report.to_dict(),
        "damaged": dict(found.damaged),
        "more_than_8_bits": found.num_deep,
        "dim": dict(found.dim),
        "image_height": _spread(sizes[:, 0]),
        "image_width": _spread(sizes[:, 1]),
        "boxes_per_image": _spread(per_image),
        "landmarks": _labelled(dataset),
        "object_sizes": {k: int(((areas >= low) & (areas < high)).sum()) for k, (low, high) in SIZE_BOUNDS.items()},
        "classes": [
            {"name": name, "id": i, "boxes": int(boxes[k]), "crowds": int(crowds[k]), "images": int(shown_in[k])}
            for k, (name, i) in enumerate(names_and_ids)
        ],
    }


def describe(numbers: Mapping[str, Any], dataset: DetectionDataset) -> str:
    """The report for a reader."""
    h, w, each = numbers["image_height"], numbers["image_width"], numbers["boxes_per_image"]
    unused = [c["name"] for c in numbers["classes"] if not c["boxes"]]
    lines = [
        str(dataset.report),
        f"image width: {w['least']} to {w['most']} px, median {w['median']:g}; "
        f"height: {h['least']} to {h['most']} px, median {h['median']:g}",
        f"boxes in an image: {each['least']} to {each['most']}, {each['mean']:.1f} on average",
        "objects: " + ", ".join(f"{n} {name}" for name, n in numbers["object_sizes"].items()),
        f"boxes to train on: {numbers['num_trainable']} of {numbers['num_boxes']}",
    ]
    if numbers["landmarks"]:
        counts = ", ".join(f"{name} {count}" for name, count in numbers["landmarks"].items())
        lines.append(f"landmarks labelled: {counts}")
    if unused:
        lines.append(f"classes without a box: {', '.join(unused)}")
    lines += [f"damaged: {reason}" for reason in numbers["damaged"].values()]
    if dim := numbers["dim"]:
        named = [f"{Path(file).name} {bits}" for file, bits in dim.items()]
        most, more = max(dim.values()), ", ..." if len(named) > _MOST_NAMED else ""
        lines.append(
            f"dim: {len(dim)} of {numbers['more_than_8_bits']} pictures of 16 bits use {most} of them at most "
            f"({', '.join(named[:_MOST_NAMED])}{more}), and the upper 8 are kept: nearly black. Write their values "
            f"{2 ** (16 - most)} times as large"
        )
    return "\n".join(lines)


def class_table(classes: Sequence[Mapping[str, Any]]) -> Table:
    """The most frequent classes, for the console."""
    table = Table(title="boxes by class")
    for column in ("class", "id", "boxes", "share", "images"):
        table.add_column(column, justify="left" if column == "class" else "right")
    total = max(1, sum(c["boxes"] for c in classes))
    for c in sorted(classes, key=lambda c: -c["boxes"])[:MAX_LISTED]:
        table.add_row(Text(c["name"]), str(c["id"]), str(c["boxes"]), f"{c['boxes'] / total:.1%}", str(c["images"]))
    if len(classes) > MAX_LISTED:
        table.add_row(f"and {len(classes) - MAX_LISTED} rarer ones", "", "", "", "")
    return table


def plot_classes(classes: Sequence[Mapping[str, Any]]) -> Figure:
    """Boxes of each class as bars, the most frequent first."""
    shown = sorted(classes, key=lambda c: -c["boxes"])[:MAX_BARS]
    figure = Figure(figsize=(8, max(2.5, 0.9 + 0.22 * len(shown))), layout="constrained", dpi=110)
    axes = figure.subplots()
    counts = [c["boxes"] for c in shown]
    bars = axes.barh(range(len(shown)), counts, color="#3b7dd8")
    axes.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=8)  # its own form has six digits: 1.23457e+06
    axes.set_yticks(range(len(shown)), [_cut(c["name"]) for c in shown], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    rarer = f", the {len(classes) - len(shown)} rarest not shown" if len(shown) < len(classes) else ""
    axes.set(xlabel="boxes", title=f"{sum(c['boxes'] for c in classes)} boxes of {len(classes)} classes{rarer}")
    if max(counts) > 100 * max(1, min(counts)):
        axes.set_xscale("symlog")  # rare classes would be invisible beside the frequent ones
    _tidy(axes)
    return figure


def plot_sizes(dataset: DetectionDataset) -> Figure:
    """Histograms of the boxes' size, in px and relative to the image, and of their aspect."""
    pairs = [(t.boxes[~t.crowd & (t.boxes[:, 2:] > 0).all(axis=1)], t.size) for t in dataset.truths]
    boxes = np.concatenate([b for b, _ in pairs])
    image_areas = np.concatenate([np.full(len(b), h * w) for b, (h, w) in pairs])
    side = np.sqrt(boxes[:, 2] * boxes[:, 3])
    figure = Figure(figsize=(12, 3.6), layout="constrained", dpi=110)
    panels = figure.subplots(1, 3)
    _histogram(panels[0], side, "side of a box: root of its area (px)")
    for _, high in list(SIZE_BOUNDS.values())[:-1]:
        panels[0].axvline(np.sqrt(high), color="0.3", linestyle=":", linewidth=1)
    panels[0].set_title("dotted: COCO's small | medium | large", fontsize=9)
    _histogram(panels[1], side / np.sqrt(image_areas), "the same, as a share of the image's")
    _histogram(panels[2], boxes[:, 2] / boxes[:, 3], "width / height")
    return figure


def draw_examples(dataset: DetectionDataset, damaged: Mapping[str, str]) -> np.ndarray:
    """A contact sheet of images from all over the data set with their boxes; crowds have dashed outlines.

    Raises:
        ImageError: no image of the data set can be read.
    """
    readable = [i for i, truth in enumerate(dataset.truths) if truth.file not in damaged]
    if not readable:
        raise ImageError(f"{dataset.report.source}: no image can be read")
    pictures = []
    for i in np.unique(np.linspace(0, len(readable) - 1, NUM_PICTURES).round().astype(int)):
        truth = dataset.truths[readable[i]]
        sample = Sample.from_truth(dataset.read(readable[i]), truth)
        sample = ResizeFit(size=PICTURE_SIZE)(sample, key=0)
        names, points = dataset.categories.names, None if sample.landmarks is None else sample.landmarks.points
        pictures.append(
            draw_boxes(sample.image, sample.boxes, sample.labels, names, dashed=sample.ignore, landmarks=points)
        )
    return contact_sheet(pictures, columns=4, cell=PICTURE_SIZE)


def _cut(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 2].rstrip()}.."


def _labelled(dataset: DetectionDataset) -> dict[str, int]:
    """How many objects, crowds left out, have each of the landmarks labelled."""
    names = dataset.categories.landmarks
    marks = [t.landmarks.is_labelled[~t.crowd].sum(axis=0) for t in dataset.truths if t.landmarks is not None]
    return dict(zip(names, np.sum(marks, axis=0).tolist(), strict=True)) if names and marks else {}


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "least": int(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "most": int(values.max()),
    }


def _histogram(axes: Axes, values: np.ndarray, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel("boxes")
    if len(values):
        low, high = values.min() / 1.05, values.max() * 1.05
        axes.hist(values, bins=np.geomspace(low, high, 41).tolist(), color="#3b7dd8")
        axes.set_xscale("log")
        # within two decades powers of ten are too few; matplotlib's own words for what lies between overlap
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _tidy(axes)


def _png_of(figure: Figure) -> Callable[[Path], None]:
    return lambda path: figure.savefig(path, metadata=PNG_METADATA)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


if __name__ == "__main__":
    main()
