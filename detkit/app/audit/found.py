"""What an audit found: a row for each object, counts of them, and what to change."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from detkit.app.audit.plan import Assigned, Planner
from detkit.data.datasets.base import DetectionDataset
from detkit.data.sample import trainable_boxes
from detkit.models import Wording
from detkit.structures import Batch, GroundTruth, ImageMeta, Target
from detkit.utils.progress import track

#: Bounds in px of the network input between the sizes that the report tells apart.
SIDES = (0, 8, 16, 32, 64, 128, 256, np.inf)

#: A positive reference should overlap its object so much. Assigners that give every object its best anchor give bad
#: ones too, and ties between anchors that all contain a small object give many of them.
GOOD_FIT = 0.5

#: "crowded": of those with none, how many would have one if they were alone; "ceiling": the recall at most.
COLUMNS = ("objects of", "all", "none", "crowded", "one", "many", "poor fit", "mean", "ceiling")


@dataclass(frozen=True, slots=True)
class Advice:
    """``change``: overrides for the command line, quoted for a shell, empty for nothing; ``poor``: the share of objects
    with few references, as it is or with the change; ``text``: all of it for a reader."""

    text: str
    change: str
    poor: float


@dataclass(frozen=True, slots=True)
class Audit:
    """One row for each object, crowds left out.

    ``wording`` of the references, and the value of each of the L ``levels`` in its words; ``metas`` of all images;
    ``images`` (N,) index into it; ``annotations`` (N,) the annotation's id, -1 where the transforms have mixed the
    order; ``boxes`` (N, 4) px of the network input; ``labels`` (N,); ``positives`` (N, L) and ``fit`` (N,): see
    :class:`Assigned`; ``crowded_out`` (N,) bool: has no reference, but would have one if it were alone in its image;
    ``reasons`` (N,) text: why it has none, empty for what has one or is crowded out.
    """

    names: tuple[str, ...]
    wording: Wording
    levels: tuple[float, ...]
    metas: Sequence[ImageMeta]
    images: np.ndarray
    annotations: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    positives: np.ndarray
    fit: np.ndarray
    crowded_out: np.ndarray
    reasons: np.ndarray

    @classmethod
    def of(cls, planner: Planner, batches: Sequence[Batch], dataset: DetectionDataset) -> Audit:
        """Count over ``batches``."""
        truths = {truth.image_id: truth for truth in dataset.truths}
        metas = [meta for batch in batches for meta in batch.images.meta]
        parts: list[_Rows] = []
        for batch, assigned in track(zip(batches, planner.each(batches), strict=True), len(batches), "assigning"):
            for i, found in enumerate(assigned):
                parts.append(_of_image(planner, batch, i, found, truths[batch.images.meta[i].image_id]))
        num_levels = max(part.positives.shape[1] for part in parts)
        wide = [part.with_levels(num_levels) for part in parts]
        return cls(
            dataset.categories.names,
            planner.asked.wording,
            tuple(map(planner.asked.level_value, range(num_levels))),
            metas,
            np.repeat(np.arange(len(metas)), [len(part.labels) for part in parts]),
            **{name: np.concatenate([getattr(part, name) for part in wide]) for name in _Rows._fields},
        )

    @property
    def num_images(self) -> int:
        """How many images were looked at."""
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

    def by_level(self) -> Iterator[tuple[float, int, int]]:
        """Of each level its value, the references that answer there, and for how many objects."""
        for value, counts in zip(self.levels, self.positives.T, strict=True):
            yield value, int(counts.sum()), int((counts > 0).sum())

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
                {self.wording.level: value, "positives": positives, "objects": objects}
                for value, positives, objects in self.by_level()
            ],
            "without": self.by_reason(),
            "rows": self.rows(),
            "advice": [{"text": a.text, "change": a.change, "poor": a.poor} for a in advice],
            "poor": [self.describe(int(i)) for i in np.flatnonzero(self.poor)],
        }

    def table(self) -> Table:
        """The rows, to be printed by rich."""
        table = Table(title=f"references of {self.wording.owner} for each object", title_justify="left")
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

    def by_reason(self) -> dict[str, int]:
        """How many objects have no reference, by cause, the most frequent first."""
        return dict(Counter(self.cause(int(i)) for i in np.flatnonzero(self.num_positive == 0)).most_common())

    def why_none(self) -> list[str]:
        """A line on the objects without a reference, where the detector has reasons."""
        if not self.reasons.any():
            return []
        return ["Without a reference: " + "; ".join(f"{n} {reason}" for reason, n in self.by_reason().items())]

    def cause(self, i: int) -> str:
        """Why object ``i`` has a poor fit."""
        if self.crowded_out[i]:
            return "another object has its reference"
        return (
            "its references overlap it by less than half"
            if self.positives[i].any()
            else self.reasons[i] or "no reference fits"
        )

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


def in_columns(row: Mapping[str, Any]) -> list[str]:
    """A row of ``Audit.rows`` under the headings COLUMNS."""
    counts = (str(row[key]) for key in ("objects", "none", "crowded_out", "one", "many", "poor"))
    return [row["name"], *counts, f"{row['mean']:.1f}", f"{row['recall_ceiling']:.1%}"]


def by_size(sides: np.ndarray) -> dict[str, int]:
    """Objects of each size: ``sides`` (N,) px of the network input."""
    bounds = itertools.pairwise(SIDES)
    return {_size_name(low, high): int(((sides >= low) & (sides < high)).sum()) for low, high in bounds}


def _size_name(low: float, high: float) -> str:
    return f"from {low:g} px" if np.isinf(high) else f"{low:g}-{high:g} px"


class _Rows(NamedTuple):
    """Those columns of an :class:`Audit`, under the same names, that are made image by image: of the objects of one."""

    annotations: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    positives: np.ndarray
    fit: np.ndarray
    crowded_out: np.ndarray
    reasons: np.ndarray

    def with_levels(self, num: int) -> _Rows:
        """The same with none on the levels that its image, which is smaller than others, has not."""
        return self._replace(positives=np.pad(self.positives, [(0, 0), (0, num - self.positives.shape[1])]))


def _of_image(planner: Planner, batch: Batch, i: int, found: Assigned, truth: GroundTruth) -> _Rows:
    """The rows of image ``i`` of ``batch``."""
    target, wanted = batch.targets[i], (~batch.targets[i].ignore).numpy()
    without = (found.counts.sum(dim=1) == 0).numpy() & wanted
    crowded = np.array([bad and planner.is_crowded_out(batch, i, k) for k, bad in enumerate(without)], bool)
    reasons = np.full(len(target), "", object)
    for k in np.flatnonzero(without & ~crowded):
        reasons[k] = planner.asked.why_none(target.boxes[k].tolist(), batch.images.meta[i].size)
    ids = _annotation_ids(truth, target, batch.images.meta[i])
    columns = _Rows(
        ids, target.boxes.numpy(), target.labels.numpy(), found.counts.numpy(), found.fit.numpy(), crowded, reasons,
    )  # fmt: skip
    return _Rows(*(column[wanted] for column in columns))


def _annotation_ids(truth: GroundTruth, target: Target, meta: ImageMeta) -> np.ndarray:
    usable = trainable_boxes(truth)[1]
    same = usable.sum() == len(target) and np.array_equal(truth.labels[usable], target.labels.numpy())
    same &= meta.affine is not None  # else they may be as many objects of other images
    return truth.annotation_ids[usable] if same else np.full(len(target), -1)
