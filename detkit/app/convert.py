"""``tools/convert.py``: a data set in another layout, split into parts if wanted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from detkit.app.assemble.parts import build_dataset, check_values
from detkit.app.assemble.schema import DataSection
from detkit.app.cli.entry import run_tool
from detkit.app.run.next_command import path_word, tell_next
from detkit.config import ConfigError, validate
from detkit.config.validate import plain
from detkit.data.datasets.base import DetectionDataset
from detkit.data.merged import MergedClasses
from detkit.data.split import groups_of, split_groups
from detkit.data.together import Together
from detkit.data.writers import LAYOUTS, Losses, relative_names, write
from detkit.utils.files import named
from detkit.utils.log import set_up_logging

#: The ``split`` that reads these, each a part by its name.
ALL = "all"
_SPLITS = ("train", "val")


@dataclass
class ConvertSchema:
    """``tools/convert.py``."""

    data: DataSection
    to: Literal["coco", "voc", "yolo"] | None = None
    output: str | None = None
    split: str = "train"
    merge: Mapping[str, Sequence[str]] | None = None
    into: Mapping[str, float] | None = None
    group: str | None = None
    seed: int = 0
    pictures: Literal["copy", "link"] = "copy"


def main() -> None:
    """The command line."""
    run_tool(run, "convert")


def run(cfg: DictConfig, folder: Path) -> None:
    """Convert ``cfg.data[cfg.split]``, or all splits; ``folder``, Hydra's, stays as it is."""
    validate(cfg, ConvertSchema)
    node = plain(cfg)
    check_values(node)
    set_up_logging()
    for key, allowed in (("to", f"one of {', '.join(LAYOUTS)}"), ("output", "the folder to write")):
        if node[key] is None:
            raise ConfigError(f"{key}: must be given: {allowed}")
    if node["group"] is not None and node["into"] is None:
        raise ConfigError("group: says which images stay together in a split, and into says no parts")
    output = Path(node["output"])
    check_free(output)
    sources = _sources(node)
    dataset = whole = _together(sources)
    parts, files = whole.places, {part: source.coco_file for part, source in sources.items()}
    if node["into"] is not None:
        parts = plan_parts(dataset, node["into"], node["group"], node["seed"])
        files = dict.fromkeys(parts, files[node["split"]])
    names = None
    if node["to"] == "yolo":  # the pictures of its parts have folders of their own
        names = [name for source in sources.values() for name in relative_names(source)]
    if node["merge"] is not None:
        dataset = _merged(dataset, node["merge"])
    losses = convert(
        dataset, node["to"], parts, output, is_linked=node["pictures"] == "link", coco_files=files, names=names
    )
    rich.print(parts_table(dataset, parts))
    for line in losses.describe():
        rich.get_console().print(Text(line), soft_wrap=True)
    known = [f"data.{name}={value}" for name, value in _reading(node["to"], list(parts))]
    tell_next("inspect_data", f"data={node['to']}", path_word("data.root", output), *known)


def _sources(node: Mapping[str, Any]) -> dict[str, DetectionDataset]:
    """The data sets that are read, by the parts that they are."""
    data, split = node["data"], node["split"]
    if split == ALL and node["into"] is not None:
        raise ConfigError(f"into: says new parts of one of them, and split={ALL} keeps those that there are")
    asked = _SPLITS if split == ALL else (split,)
    there = [name for name in asked if data.get(name) is not None]
    if not there:
        raise ConfigError(f"split: the configuration has no {' and no '.join(f'data.{name}' for name in asked)}")
    return {name: build_dataset(data, name) for name in there}


def _together(sources: Mapping[str, DetectionDataset]) -> Together:
    try:
        return Together(sources)
    except ValueError as error:
        raise ConfigError(f"split: {error}") from error


def check_free(output: Path) -> None:
    """Refuse a folder that holds something: nothing is written over.

    Raises:
        ConfigError: as it says.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"output: {output} is there and not empty; nothing is written over: choose another folder")


def _merged(dataset: DetectionDataset, merge: Mapping[str, Sequence[str]]) -> DetectionDataset:
    try:
        return MergedClasses(dataset, merge)
    except ValueError as error:
        raise ConfigError(f"merge.{error}") from error


def plan_parts(
    dataset: DetectionDataset, shares: Mapping[str, float], group: str | None, seed: int
) -> dict[str, list[int]]:
    """The images of each part, by their places in ``dataset``.

    Raises:
        ConfigError: shares or groups are none, or a part would be empty.
    """
    try:
        return split_groups(groups_of(relative_names(dataset), group), shares, seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def convert(
    dataset: DetectionDataset,
    layout: Literal["coco", "voc", "yolo"],
    parts: Mapping[str, Sequence[int]],
    output: Path,
    *,
    is_linked: bool = False,
    coco_files: Mapping[str, str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Losses:
    """Write ``dataset`` to ``output``, whole or not at all: beside it first, then by its name.

    Args:
        dataset: what to write.
        layout: see :func:`detkit.data.writers.write`, which also tells what each cannot hold.
        parts: name -> places of its images.
        output: missing or empty.
        is_linked: symbolic links instead of copies of the pictures.
        coco_files, names: see :func:`detkit.data.writers.write`.

    Raises:
        ConfigError: ``output`` is not empty, or the layout cannot hold two of the pictures or a name.
        OSError: it cannot be written; the error names it.
    """
    check_free(output)
    with named(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        losses = write(dataset, layout, parts, partial, is_linked, coco_files, names)
        partial.chmod(0o755)  # mkdtemp makes it private
        os.replace(partial, output)  # fails where something has come there since
    except ValueError as error:
        raise ConfigError(f"to: {error}") from error
    except OSError as error:
        place = str(error.filename or partial).replace(str(partial), str(output))
        raise OSError(error.errno, error.strerror, place) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return losses


def parts_table(dataset: DetectionDataset, parts: Mapping[str, Sequence[int]]) -> Table:
    """Images, boxes, and boxes of each class, by part; crowds apart."""
    table = Table(title="images and boxes of each part", title_justify="left")
    table.add_column("")
    for part in parts:
        table.add_column(part, justify="right")
    counts = [_count(dataset, places) for places in parts.values()]
    table.add_row("images", *(str(len(places)) for places in parts.values()))
    table.add_row("boxes", *(str(int(boxes.sum())) for boxes, _ in counts))
    if any(crowds for _, crowds in counts):
        table.add_row("crowds", *(str(crowds) for _, crowds in counts))
    table.add_section()
    for k, name in enumerate(dataset.categories.names):
        table.add_row(Text(name), *(str(int(boxes[k])) for boxes, _ in counts))
    return table


def _count(dataset: DetectionDataset, places: Sequence[int]) -> tuple[np.ndarray, int]:
    """Boxes (K,) that are no crowds, and the number of crowds."""
    boxes, crowds = np.zeros(len(dataset.categories), np.int64), 0
    for i in places:
        truth = dataset.truths[i]
        boxes += np.bincount(truth.labels[~truth.crowd], minlength=len(boxes))
        crowds += int(truth.crowd.sum())
    return boxes, crowds


def _reading(layout: str, parts: Sequence[str]) -> list[tuple[str, str]]:
    """Overrides with which data=<layout> finds the first part, where it has not the usual name."""
    part = parts[0]
    if part == "train":
        return []
    return [{"coco": ("train.annotations", f"{part}.json"), "voc": ("train.split", part)}.get(
        layout, ("train.images", f"images/{part}")
    )]  # fmt: skip


if __name__ == "__main__":
    main()
