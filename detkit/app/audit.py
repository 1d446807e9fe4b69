"""``tools/audit.py``: before training, which objects the head's own assigner leaves without anything to learn from.

No network runs, and no image is read but those that the page shows: the loader of the training plans its batches from
sizes and boxes, and the assigner gets the shapes of the feature maps.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich
import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from detkit.app.audit_advice import GOOD_FIT, Advice, advise
from detkit.app.audit_page import COLUMNS, audit_page, in_columns
from detkit.app.audit_pictures import albums
from detkit.app.audit_plan import Planner
from detkit.app.entry import run_tool
from detkit.app.schema import AuditSchema
from detkit.app.setup import build_dataset, build_transforms, check_values, without_pretrained_weights
from detkit.config import ConfigError, build, validate
from detkit.data.datasets.base import DetectionDataset
from detkit.data.loader import EvalLoader, TrainLoader
from detkit.data.sample import trainable_boxes
from detkit.data.transforms import Transform, unplanned
from detkit.models import build_detector
from detkit.structures import Batch, GroundTruth, ImageMeta, Images, Target
from detkit.utils.files import atomic_write
from detkit.utils.log import set_up_logging
from detkit.utils.progress import track
from detkit.utils.seed import seed_everything

#: Bounds in px of the network input between the sizes that the report tells apart.
SIDES = (0, 8, 16, 32, 64, 128, 256, np.inf)


#: Pixels of the padded images that are assigned where nobody says how many: 500 of 800 x 1333, or all of a small set.
#: Assigning takes about 30 ms for each million.
MOST_PIXELS = 500 * 800 * 1333


def main() -> None:
    """The command line."""
    run_tool(run, "audit")


def run(cfg: DictConfig, folder: Path) -> None:
    """Audit ``cfg.data[cfg.split]``; the report goes to ``folder``."""
    validate(cfg, AuditSchema)
    set_up_logging()
    node: Any = OmegaConf.to_container(cfg, resolve=True)
    split = node["split"]
    check_values(node)
    if node["num_pictures"] < 0:
        raise ConfigError(f"num_pictures: must be 0 or more, not {node['num_pictures']}")
    if node["num_images"] is not None and node["num_images"] < 1:
        raise ConfigError(f"num_images: must be 1 or more, or null, not {node['num_images']}")
    if node["data"].get(split) is None:
        raise ConfigError(f"split: the configuration has no data.{split}")
    seed_everything(node["seed"])
    if node["threads"] is not None:
        torch.set_num_threads(node["threads"])
    dataset = build_dataset(node["data"][split], f"data.{split}")
    if all(truth.crowd.all() for truth in dataset.truths):
        raise ConfigError(f"data.{split}: none of its {len(dataset)} images has an object: nothing can be assigned")
    without_pretrained_weights(node["model"])
    detector = build_detector(node["model"], dataset.categories)
    planner = Planner(detector)
    transforms = build_transforms(node["transform"][split], f"transform.{split}")
    loader = _loader(node, split, dataset, transforms)
    planned = track(_batches(loader), _num_batches(node, split, dataset), "planning batches")
    batches, all_sides = first_batches(planned, node["num_images"])
    audit = Audit.of(planner, batches, dataset)
    sizes: Any = OmegaConf.to_container(cfg.transform)
    advice = advise(node, sizes, audit, planner, batches, dataset.categories)
    if wrong := planner.misfit(audit.sides, max(max(meta.size) for meta in audit.metas)):
        poor = float(audit.poor.mean())
        advice.insert(0, Advice(f"{wrong[0].upper()}{wrong[1:]}.", "", poor))
    numbers = audit.to_dict(advice) | {"all": by_size(all_sides)}
    atomic_write(folder / "audit.json", json.dumps(numbers, indent=1) + "\n")
    source = f"{type(planner.head).__name__} on data.{split} ({dataset.report.source})"
    pictures = albums(audit, planner, batches, dataset, node["num_pictures"])
    atomic_write(folder / "audit.html", audit_page(audit, advice, source, pictures))
    rich.print(audit.table())
    for line in [audit.in_words(), *_caveats(transforms, audit, len(dataset), all_sides), *(a.text for a in advice)]:
        rich.get_console().print(Text(line), soft_wrap=True)
    rich.print("report:", Text(str(folder / "audit.html"), "bold"))


@dataclass(frozen=True, slots=True)
class Audit:
    """One row for each object, crowds left out.

    ``metas`` of all images; ``images`` (N,) index into it; ``annotations`` (N,) the annotation's id, -1 where the
    transforms have mixed the order; ``boxes`` (N, 4) px of the network input; ``labels`` (N,); ``positives`` (N, L) and
    ``fit`` (N,): see :class:`Assigned`; ``crowded_out`` (N,) bool: has no reference, but would have one if it were
    alone in its image.
    """

    names: tuple[str, ...]
    strides: tuple[float, ...]
    metas: Sequence[ImageMeta]
    images: np.ndarray
    annotations: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    positives: np.ndarray
    fit: np.ndarray
    crowded_out: np.ndarray

    @classmethod
    def of(cls, planner: Planner, batches: Sequence[Batch], dataset: DetectionDataset) -> Audit:
        """Count over ``batches``."""
        truths = {truth.image_id: truth for truth in dataset.truths}
        metas = [meta for batch in batches for meta in batch.images.meta]
        parts: list[tuple[np.ndarray, ...]] = []
        for batch, assigned in track(zip(batches, planner.each(batches), strict=True), len(batches), "assigning"):
            for i, (target, (counts, fit)) in enumerate(zip(batch.targets, assigned, strict=True)):
                meta, wanted = batch.images.meta[i], (~target.ignore).numpy()
                ids = _annotation_ids(truths[meta.image_id], target)
                without = (counts.sum(dim=1) == 0).numpy() & wanted
                lonely = np.array([bad and planner.is_crowded_out(batch, i, k) for k, bad in enumerate(without)], bool)
                columns = (ids, target.boxes.numpy(), target.labels.numpy(), counts.numpy(), fit.numpy(), lonely)
                parts.append(tuple(column[wanted] for column in columns))
        return cls(
            dataset.categories.names,
            planner.strides,
            metas,
            np.repeat(np.arange(len(metas)), [len(part[0]) for part in parts]),
            *(np.concatenate(column) for column in zip(*parts, strict=True)),
        )

    @property
    def num_images(self) -> int:
        return len(self.metas)

    @property
    def num_positive(self) -> np.ndarray:
        """(N,): the references that answer for each object."""
        return self.positives.sum(axis=1)

    @property
    def poor(self) -> np.ndarray:
        """(N,) bool: no reference answers for it, or none that overlaps it by half."""
        return self.fit < GOOD_FIT

    @property
    def sides(self) -> np.ndarray:
        """(N,): the root of each box's area, px of the network input."""
        w, h = (self.boxes[:, 2:] - self.boxes[:, :2]).T
        return np.sqrt(w * h)

    def groups(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Kind, name, and (N,) bool of each size and class."""
        for low, high in itertools.pairwise(SIDES):
            yield "size", _size_name(low, high), (self.sides >= low) & (self.sides < high)
        for k, name in enumerate(self.names):
            yield "class", name, self.labels == k

    def rows(self) -> list[dict[str, Any]]:
        """For all objects, each size and each class: how many have no, one, or several references, and the ceiling."""
        everything = ("all", "all", np.ones(len(self.labels), bool))
        rows = []
        for kind, name, mask in [everything, *self.groups()]:
            count, total = self.num_positive[mask], int(mask.sum())
            if total:
                rows.append(
                    {
                        "kind": kind, "name": name, "objects": total, "none": int((count == 0).sum()),
                        "crowded_out": int(self.crowded_out[mask].sum()), "one": int((count == 1).sum()),
                        "many": int((count > 1).sum()), "mean": float(count.mean()), "poor": int(self.poor[mask].sum()),
                        "recall_ceiling": float((count > 0).mean()),
                    }
                )  # fmt: skip
        return rows

    def to_dict(self, advice: Sequence[Advice]) -> dict[str, Any]:
        """Plain values: the rows, positives by level, and every object of a poor fit by file and id."""
        return {
            "images": self.num_images,
            "positives_per_image": float(self.num_positive.sum() / self.num_images),
            "by_level": [
                {"stride": s, "positives": int(self.positives[:, level].sum())} for level, s in enumerate(self.strides)
            ],
            "rows": self.rows(),
            "advice": [{"text": a.text, "change": a.change, "poor": a.poor} for a in advice],
            "poor": [self.describe(int(i)) for i in np.flatnonzero(self.poor)],
        }

    def table(self) -> Table:
        """The rows, to be printed by rich."""
        table = Table(title="references of the head for each object", title_justify="left")
        for heading in COLUMNS:
            table.add_column(heading, justify="left" if heading == COLUMNS[0] else "right", no_wrap=True)
        for row in self.rows():
            table.add_row(*map(Text, in_columns(row)))
        return table

    def in_words(self) -> str:
        """The whole in a sentence."""
        count = self.num_positive
        crowded = f" ({self.crowded_out.sum()} since another object has theirs)" if self.crowded_out.any() else ""
        loose = f", {self.poor.mean():.1%} have none that overlaps them by half" * bool((self.poor & (count > 0)).any())
        return (
            f"{len(count)} objects in {self.num_images} images: {(count == 0).mean():.1%} have no reference{crowded}, "
            f"{(count == 1).mean():.1%} have one{loose}; "
            f"{count.sum() / self.num_images:.2f} positives an image"
        )

    def cause(self, i: int) -> str:
        """Why object ``i`` has a poor fit."""
        if self.crowded_out[i]:
            return "another object has its reference"
        return "its references overlap it by less than half" if self.positives[i].any() else "no reference fits"

    def describe(self, i: int) -> dict[str, Any]:
        """Object ``i`` by file and id, for a reader."""
        meta = self.metas[int(self.images[i])]
        return {
            "image_id": meta.image_id,
            "file": meta.file,
            "annotation_id": int(self.annotations[i]) if self.annotations[i] >= 0 else None,
            "class": self.names[int(self.labels[i])],
            "box_in_network": [round(float(v), 1) for v in self.boxes[i]],
            "reason": self.cause(i),
            "fit": round(float(self.fit[i]), 3),
        }


def _loader(
    node: Mapping[str, Any], split: str, dataset: DetectionDataset, transforms: Sequence[Transform]
) -> TrainLoader | EvalLoader:
    runtime: dict[str, Any] = {"dataset": dataset, "transforms": transforms}
    said = node["data"]["loader"][split]
    once: dict[str, Any] = {"num_workers": 0}
    if split == "train":
        runtime["seed"] = node["seed"]
        once |= {name: None for name in ("sampling",) if name in said}  # each image counts once
    return build(said | once, key=f"data.loader.{split}")(**runtime)


def _num_batches(node: Mapping[str, Any], split: str, dataset: DetectionDataset) -> int:
    return -(-len(dataset) // node["data"]["loader"][split]["batch_size"])


def _batches(loader: TrainLoader | EvalLoader) -> Iterator[Batch]:
    """The batches of the first epoch, with their sizes and boxes as in the training.

    Batches that are grouped by their aspect mix the end of an epoch with the next one; each image counts once.
    """
    seen: set[int] = set()
    for batch in loader.lay():
        first = {meta.image_id: i for i, meta in reversed(list(enumerate(batch.images.meta)))}
        rows = sorted(i for image_id, i in first.items() if image_id not in seen)
        seen |= first.keys()
        if rows:
            yield _select(batch, rows)
        if isinstance(loader, TrainLoader) and len(seen) == loader.num_images:
            return  # within some batches after the first epoch, see TrainSampler


def _select(batch: Batch, rows: Sequence[int]) -> Batch:
    metas = tuple(batch.images.meta[i] for i in rows)
    return Batch(Images(batch.images.pixels[: len(rows)], metas), tuple(batch.targets[i] for i in rows))


def first_batches(batches: Iterable[Batch], num_images: int | None) -> tuple[list[Batch], np.ndarray]:
    """Those with the first ``num_images`` images, None for as many as have ``MOST_PIXELS``; and of all objects (N,),
    crowds left out, the root of the area of their box, px of the network input."""
    kept, sides, pixels = [], [np.zeros(0, np.float32)], 0
    left = num_images
    for batch in batches:
        for target in batch.targets:
            w, h = (target.boxes[:, 2:] - target.boxes[:, :2])[~target.ignore].numpy().T
            sides.append(np.sqrt(w * h))
        if left is None:
            if pixels < MOST_PIXELS:
                kept.append(batch)
                pixels += len(batch) * math.prod(batch.images.padded_size)
            continue
        if left >= len(batch):
            kept.append(batch)
        elif left > 0:
            kept.append(_select(batch, range(left)))
        left = max(0, left - len(batch))
    return kept, np.concatenate(sides)


def by_size(sides: np.ndarray) -> dict[str, int]:
    """Objects of each size: ``sides`` (N,) px of the network input."""
    bounds = itertools.pairwise(SIDES)
    return {_size_name(low, high): int(((sides >= low) & (sides < high)).sum()) for low, high in bounds}


def _size_name(low: float, high: float) -> str:
    return f"from {low:g} px" if np.isinf(high) else f"{low:g}-{high:g} px"


def _caveats(transforms: Sequence[Transform], audit: Audit, num_images: int, all_sides: np.ndarray) -> list[str]:
    """What the figures rest on, where that is not each image and its own pixels."""
    lines = []
    if len(audit.labels) < len(all_sides):
        shares = ", ".join(f"{n / len(all_sides):.1%} {name}" for name, n in by_size(all_sides).items() if n)
        lines += [
            f"Looked at: {audit.num_images} of the {num_images} images, those of the first batches; "
            f"num_images={num_images} takes all of them",
            f"All {len(all_sides)} objects of the epoch by size in the network: {shares}",
        ]
    if names := unplanned(transforms):
        verb = "tells" if len(names) == 1 else "tell"
        lines.append(f"{', '.join(names)} {verb} where objects go only after seeing pixels: run on black images here")
    return lines


def _annotation_ids(truth: GroundTruth, target: Target) -> np.ndarray:
    usable = trainable_boxes(truth)[1]
    same = usable.sum() == len(target) and np.array_equal(truth.labels[usable], target.labels.numpy())
    return truth.annotation_ids[usable] if same else np.full(len(target), -1)


if __name__ == "__main__":
    main()
