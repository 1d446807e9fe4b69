"""Errors planted into the labels of a data set, and how many of them two ways of looking for them put first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rich
import torch
from omegaconf import OmegaConf
from rich.table import Table

from detkit.app.assemble.schema import LabelsOptions
from detkit.app.assemble.stored import load_stored, open_data
from detkit.app.cli.components import load_components
from detkit.app.labels.found import LabelReport, LookedAt
from detkit.app.labels.tool import find
from detkit.config import ConfigError
from detkit.config.ranges import check_range
from detkit.data.writers import relative_names
from detkit.engine.state.checkpoint import load_config
from detkit.evaluation.bootstrap import CONFIDENCE, image_weights
from detkit.evaluation.errors import POSITIVE_IOU
from detkit.evaluation.label_errors import Kind
from detkit.structures.boxes import pairwise_iou, xywh_to_xyxy
from detkit.utils.log import set_up_logging

#: Share of the boxes that get an error of each kind.
SHARE = 0.05

#: A moved box overlaps the right place by an IoU between these.
MOVED_IOU = (0.3, 0.7)

#: What is planted, in this order.
KINDS = (Kind.MISSING, Kind.MISPLACED, Kind.WRONG_CLASS)

#: So many of each list are looked at, or as many as were planted where those are fewer.
FIRST = 100


def main(arguments: Sequence[str]) -> None:
    """``tools/benchmark.py labels``."""
    parser = argparse.ArgumentParser(description="Plant errors into labels, and look for them by a trained detector.")
    parser.add_argument("--checkpoint", required=True, help="a best.pt or last.pt")
    parser.add_argument("--annotations", type=Path, help="COCO's file of images that the checkpoint has not trained on")
    parser.add_argument("--images", type=Path, help="their folder; default: images/ beside the file")
    parser.add_argument("--folds", type=int, help="instead: train so many by its recipe on its own data.train")
    parser.add_argument("--seed", type=int, default=0, help="of the errors (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="of the images, for the intervals")
    parser.add_argument("--least", type=float, default=0.1, help="least certainty of a finding (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True, help="folder; the same command goes on in it")
    options = parser.parse_args(arguments)
    for name, least in (("folds", 2), ("seed", 0), ("samples", 1), ("least", 0)):
        check_range(f"--{name}", getattr(options, name), least)
    if (options.folds is None) == (options.annotations is None):
        raise ConfigError("--annotations: wanted, a file of images that the checkpoint has not trained on; or --folds")
    set_up_logging()
    load_components()
    planted, report = look_for_planted(options)
    rich.print(as_table(compare(planted, report.images, options.samples)))
    for kind in KINDS:
        if not planted.count(kind):
            rich.print(f"{kind.value}: not planted, since the data have one class")


class Planted(NamedTuple):
    """What was planted: ``kinds`` by annotation id, and by image id the boxes (4,) x y w h that were ``dropped``."""

    kinds: Mapping[int, Kind]
    dropped: Mapping[int, Sequence[np.ndarray]]

    def count(self, kind: Kind) -> int:
        """How many of ``kind``."""
        return sum(planted is kind for planted in self.kinds.values())


def plant(content: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], Planted]:
    """COCO's ``content`` with errors of each kind, no box having two, and what they are.

    Where there is one class, no class is wrong: the other kinds alone are planted.
    """
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    classes = [category["id"] for category in content["categories"]]
    usable = [i for i, one in enumerate(content["annotations"]) if not one.get("iscrowd") and min(one["bbox"][2:]) > 0]
    num = round(SHARE * len(usable))
    if num == 0:
        raise ConfigError(f"--checkpoint: {SHARE:.0%} of its {len(usable)} training boxes is none")
    kinds = [kind for kind in KINDS if kind is not Kind.WRONG_CLASS or len(classes) > 1]
    drawn = rng.permutation(usable)[: len(kinds) * num].reshape(len(kinds), num)
    kind_of = {int(i): kind for kind, places in zip(kinds, drawn, strict=True) for i in places}
    annotations: list[dict[str, Any]] = []
    dropped: dict[int, list[np.ndarray]] = {}
    for i, annotation in enumerate(content["annotations"]):
        kind = kind_of.get(i)
        if kind is Kind.MISPLACED:
            annotation = {**annotation, "bbox": _moved(annotation["bbox"], sizes[annotation["image_id"]], rng)}
        elif kind is Kind.WRONG_CLASS:
            others = [c for c in classes if c != annotation["category_id"]]
            annotation = {**annotation, "category_id": int(rng.choice(others))}
        if kind is Kind.MISSING:
            dropped.setdefault(annotation["image_id"], []).append(np.array(annotation["bbox"], np.float64))
        else:
            annotations.append(annotation)
    by_id = {content["annotations"][i]["id"]: kind for i, kind in kind_of.items()}
    return {**content, "annotations": annotations}, Planted(by_id, dropped)


def _moved(box: Sequence[float], size: tuple[int, int], rng: np.random.Generator) -> list[float]:
    """``box`` x y w h px shifted and resized by chance, inside an image of ``size`` (w, h)."""
    x, y, w, h = box
    while True:
        width, height = np.array([w, h]) * np.exp(rng.uniform(-0.5, 0.5, 2))
        left, top = np.array([x + w / 2, y + h / 2]) + rng.uniform(-0.5, 0.5, 2) * [w, h] - [width / 2, height / 2]
        low = np.clip([left, top], 0, size)
        high = np.clip([left + width, top + height], 0, size)
        shared = np.clip(np.minimum(high, [x + w, y + h]) - np.maximum(low, [x, y]), 0, None).prod()
        union = w * h + (high - low).prod() - shared
        if MOVED_IOU[0] <= shared / union <= MOVED_IOU[1]:
            return [*low.tolist(), *(high - low).tolist()]


def look_for_planted(options: argparse.Namespace) -> tuple[Planted, LabelReport]:
    """Plant errors as ``options`` say, and let the tool look for them.

    Raises:
        ConfigError: the labels do not come from a file in COCO's form.
    """
    given: dict[str, Any] = {"checkpoint": options.checkpoint, "device": options.device, "least": options.least}
    given |= {"folds": options.folds, "output": str(options.output / "labels")}
    if options.annotations is None:
        annotations, images = _of_training(given)
    else:
        annotations, images = options.annotations, options.images or options.annotations.parent / "images"
    content, planted = plant(json.loads(annotations.read_bytes()), options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "planted.json").write_text(json.dumps(content))
    with_errors = {
        "_target_": "CocoDataset",
        "root": str(options.output),
        "annotations": "planted.json",
        "images": str(images.absolute()),
    }
    data = load_config(options.checkpoint)["data"]
    train = with_errors if options.annotations is None else data["train"]
    val = None if options.annotations is None else with_errors
    given["data"] = {"root": data.get("root"), "train": train, "val": val, "loader": data["loader"]}
    chosen, stored = load_stored(OmegaConf.create(given), LabelsOptions, {"data": "coco"})
    return planted, find(chosen, stored)


def _of_training(given: dict[str, Any]) -> tuple[Path, Path]:
    """File and folder of pictures of the checkpoint's own training."""
    _, stored = load_stored(OmegaConf.create(given), LabelsOptions, {})
    dataset = open_data(stored, "train")
    if dataset.coco_file is None:
        raise ConfigError(f"--checkpoint: {given['checkpoint']} trained on labels that are not in COCO's form")
    first = Path(dataset.truths[0].file).absolute()
    return Path(dataset.coco_file), first.parents[relative_names(dataset)[0].count("/")]


class Ranked(NamedTuple):
    """A list of suspects, the likeliest first: ``hits`` (N,) bool, which are planted, and ``images`` (N,), whose."""

    hits: np.ndarray
    images: np.ndarray

    def precision(self, weights: np.ndarray, first: int) -> np.ndarray:
        """(S,) share of hits in the first ones, with image i counted ``weights`` (S, I) times; what is lacking of
        ``first`` counts as wrong."""
        times = weights[:, self.images]
        taken = np.clip(first - (times.cumsum(axis=1) - times), 0, times)
        return (taken * self.hits).sum(axis=1) / first


class Compared(NamedTuple):
    """Of one kind: how many were planted and looked at, and (1 + B,) precisions of detkit and of the baseline."""

    kind: Kind
    num_planted: int
    first: int
    ours: np.ndarray
    baseline: np.ndarray


def compare(planted: Planted, images: Sequence[LookedAt], num_samples: int) -> list[Compared]:
    """Both lists of each planted kind against what was planted, on the images and on ``num_samples`` resamplings."""
    weights = image_weights(len(images), num_samples)
    rows = []
    for kind in KINDS:
        num = planted.count(kind)
        if num == 0:
            continue
        first = min(FIRST, num)
        both = [rank(planted, images, kind).precision(weights, first) for rank in (ranked_by_us, ranked_by_objectlab)]
        rows.append(Compared(kind, num, first, *both))
    return rows


def ranked_by_us(planted: Planted, images: Sequence[LookedAt], kind: Kind) -> Ranked:
    """The tool's findings of ``kind``."""
    suspects = []
    for i, image in enumerate(images):
        for finding in image.findings:
            s = finding.suspicion
            if s.kind is not kind:
                continue
            box = None if s.box is None else np.array(s.box)
            suspects.append((-finding.rank, _is_hit(planted, image, kind, s.index, box), i))
    return _ranked(suspects)


def ranked_by_objectlab(planted: Planted, images: Sequence[LookedAt], kind: Kind) -> Ranked:
    """All that ObjectLab has a score for, by that."""
    suspects = []
    for i, image in enumerate(images):
        if kind is Kind.MISSING:
            for row in np.flatnonzero(~np.isnan(image.baseline.overlooked)).tolist():
                hit = _is_hit(planted, image, kind, None, image.found.boxes[row])
                suspects.append((float(image.baseline.overlooked[row]), hit, i))
        else:
            scores = image.baseline.badly_located if kind is Kind.MISPLACED else image.baseline.swapped
            suspects += [(float(s), _is_hit(planted, image, kind, j, None), i) for j, s in enumerate(scores)]
    return _ranked(suspects)


def _is_hit(planted: Planted, image: LookedAt, kind: Kind, index: int | None, box: np.ndarray | None) -> bool:
    """Whether a label, or an object at ``box`` x1 y1 x2 y2 px, is what was planted."""
    if index is not None:
        return planted.kinds.get(int(image.truth.annotation_ids[index])) is kind
    dropped = planted.dropped.get(image.truth.image_id, ())
    if not len(dropped) or box is None:
        return False
    places = xywh_to_xyxy(torch.from_numpy(np.stack(dropped)))
    return bool((pairwise_iou(torch.from_numpy(box[None]), places) >= POSITIVE_IOU).any())


def _ranked(suspects: list[tuple[float, bool, int]]) -> Ranked:
    ordered = sorted(suspects, key=lambda suspect: suspect[0])
    return Ranked(np.array([hit for _, hit, _ in ordered], bool), np.array([i for *_, i in ordered], np.int64))


def as_table(rows: Sequence[Compared]) -> Table:
    """Precisions and their difference, with intervals from the resampled images."""
    table = Table(title=f"share that was planted among the first; {CONFIDENCE:.0%} intervals", title_justify="left")
    for heading in ("kind", "planted", "first", "detkit", "ObjectLab", "difference"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for row in rows:
        told = (_in_words(values) for values in (row.ours, row.baseline, row.ours - row.baseline))
        table.add_row(row.kind.value, str(row.num_planted), str(row.first), *told)
    return table


def _in_words(values: np.ndarray) -> str:
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return f"{values[0]:.2f} [{low:.2f}, {high:.2f}]"
