"""What speaks against the labels of a data set: each finding with its certainty, loss and the baseline's score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from detkit.app.labels.corrections import Box, Correction
from detkit.app.labels.views import Views, look_at
from detkit.data.datasets.table import clipped_corners, is_usable
from detkit.engine.evaluation import to_device
from detkit.engine.precision import Precision, autocast, check_precision
from detkit.evaluation.label_errors import Candidates, Kind, Suspicion, label_errors, rarities
from detkit.evaluation.objectlab import ObjectLab, objectlab
from detkit.models import Detector
from detkit.structures import Affine, Batch, Categories, GroundTruth, Images, Target
from detkit.structures.boxes import xywh_to_xyxy, xyxy_to_xywh


class Finding(NamedTuple):
    """A suspicion about a label of ``truth``.

    ``loss_gain``: by how much the detector's loss on this image falls when the label is corrected as proposed, below 0
    where it rises; None where the number of boxes would change, since a loss of more boxes is another sum.
    ``objectlab``: the baseline's score of the same label or detection, the lower the worse; None where it has none for
    this kind, and before all images are known. ``weight`` in [0, 1]: by the gain of a wrong class, and by what the
    other images say of a box that no candidate supports; 1 for all others.
    """

    truth: GroundTruth
    suspicion: Suspicion
    loss_gain: float | None
    objectlab: float | None
    weight: float = 1.0

    @property
    def rank(self) -> float:
        """How sure it is, in [0, 1]: the certainty with its weight."""
        return self.suspicion.certainty * self.weight

    def correction(self, categories: Categories, file: str) -> Correction:
        """In the file's own terms; ``file``: the image as a reader knows it."""
        s, truth = self.suspicion, self.truth
        j = s.index
        return Correction(
            kind=s.kind,
            certainty=self.rank,
            loss_gain=self.loss_gain,
            objectlab=self.objectlab,
            file=file,
            image_id=truth.image_id,
            annotation_id=None if j is None else int(truth.annotation_ids[j]),
            name=None if j is None else categories.names[int(truth.labels[j])],
            box=None if j is None else _tuple(truth.boxes[j]),
            new_name=None if s.label is None else categories.names[s.label],
            new_box=None if s.box is None else _tuple(_xywh(s.box)),
        )


@dataclass(frozen=True, slots=True)
class LookedAt:
    """One image: its labels, what speaks against them, what was ``found`` in it, which labels have nothing in their
    place (G,), and the baseline's scores."""

    truth: GroundTruth
    findings: Sequence[Finding]
    found: Candidates
    is_unseen: np.ndarray
    baseline: ObjectLab

    @property
    def score(self) -> float:
        """In [0, 1], the higher the likelier one of its labels is wrong: the greatest rank."""
        return max((finding.rank for finding in self.findings), default=0.0)


@dataclass(frozen=True, slots=True)
class LabelReport:
    """All images that were looked at, and how many were not since every model had trained on them."""

    categories: Categories
    images: Sequence[LookedAt]
    num_known: int = 0

    @classmethod
    def of(cls, categories: Categories, images: Sequence[LookedAt], least: float, num_known: int = 0) -> LabelReport:
        """The findings of ``images``, weighed and with the baseline's scores, and what is below ``least`` left out.

        A box without an object weighs by how rarely labels of its class are not seen. A wrong class weighs by
        g / (g + m), with g the gain in loss and m the median of those above 0: the scale of a loss is the head's own.
        What gains nothing has no weight.
        """
        labels = np.concatenate([np.zeros(0, np.int64), *(image.truth.labels for image in images)])
        is_unseen = np.concatenate([np.zeros(0, bool), *(image.is_unseen for image in images)])
        rarity = rarities(labels, is_unseen, len(categories))
        gains = [_gain(f) for image in images for f in image.findings if f.suspicion.kind is Kind.WRONG_CLASS]
        middle = float(np.median([gain for gain in gains if gain > 0] or [1.0]))
        images = _with_baseline(images)
        starts = np.cumsum([0, *(len(image.truth) for image in images)])
        kept = [
            _weighed(image, rarity[start:end], middle, least)
            for image, start, end in zip(images, starts[:-1], starts[1:], strict=True)
        ]
        return cls(categories, kept, num_known)

    @property
    def findings(self) -> list[Finding]:
        """Of all images, the surest first."""
        return sorted((f for image in self.images for f in image.findings), key=lambda f: -f.rank)

    @property
    def counts(self) -> dict[Kind, int]:
        """Findings by kind, in the order of the kinds."""
        counted = Counter(f.suspicion.kind for f in self.findings)
        return {kind: counted[kind] for kind in Kind}

    def to_dict(self, source: str, split: str, pictures: str | None, annotations: str, digest: str) -> dict[str, Any]:
        """Plain values: the counts and each image's scores; the findings stand in the table.

        Args:
            split: of the data, which was looked at.
            pictures: the folder of the images; None where the configuration reads ``annotations`` and says it.
            annotations: COCO's file that the findings are about.
            digest: of its bytes.
        """
        ranked = sorted(self.images, key=lambda image: -image.score)
        return {
            "source": source,
            "split": split,
            "pictures": pictures,
            "annotations": annotations,
            "sha256": digest,
            "images_looked_at": len(self.images),
            "images_left_out": self.num_known,
            "findings": {kind.value: count for kind, count in self.counts.items()},
            "images": [
                {
                    "file": image.truth.file, "image_id": image.truth.image_id, "score": round(image.score, 4),
                    "objectlab": round(image.baseline.image, 4), "findings": len(image.findings),
                }
                for image in ranked
            ],
        }  # fmt: skip

    def table(self) -> Table:
        """The counts, to be printed by rich."""
        num_labels = sum(int((~image.truth.crowd).sum()) for image in self.images)
        title = f"{len(self.findings)} findings about {num_labels} labels in {len(self.images)} images"
        table = Table(title=title, title_justify="left")
        for heading in ("what", "findings", "surest"):
            table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
        for kind, count in self.counts.items():
            surest = max((f.rank for f in self.findings if f.suspicion.kind is kind), default=None)
            table.add_row(kind.value, str(count), "-" if surest is None else f"{surest:.2f}")
        return table


def look(
    detector: Detector,
    device: torch.device,
    batches: Iterable[Batch],
    truths: Sequence[GroundTruth],
    categories: Categories,
    precision: Precision,
    least: float,
    views: Views,
) -> Iterator[LookedAt]:
    """Detect in each image, one by one with the trace on, and hold what is found against its labels.

    Args:
        truths: of all images of ``batches``.
        least: findings below this certainty are left out.
        views: how each image is looked at; losses are those of the image as it is.
    """
    check_precision(precision, device)
    by_id = {truth.image_id: truth for truth in truths}
    for batch in batches:
        batch = to_device(batch, device, channels_last=False)
        for i, meta in enumerate(batch.images.meta):
            one = Images(batch.images.pixels[i : i + 1], (meta,))
            with autocast(device, precision):
                yield _look_at(detector, one, by_id[meta.image_id], categories, least, views)


def _look_at(
    detector: Detector, image: Images, truth: GroundTruth, categories: Categories, least: float, views: Views
) -> LookedAt:
    found, candidates = look_at(detector, image, categories, views)
    judged = label_errors(truth, found, candidates, len(categories))
    suspicions = [s for s in judged.suspicions if s.certainty >= least]
    gains = _loss_gains(detector, image, truth, suspicions)
    findings = [Finding(truth, s, gain, None) for s, gain in zip(suspicions, gains, strict=True)]
    return LookedAt(truth, findings, found, judged.is_unseen, _scored(truth, found))


def _scored(truth: GroundTruth, found: Candidates, least: float | None = None) -> ObjectLab:
    return objectlab(_xyxy(truth.boxes), truth.labels, *found, least)


def _with_baseline(images: Sequence[LookedAt]) -> list[LookedAt]:
    """``images`` with the baseline's scores, which need the least similarity of all of them."""
    least = min((image.baseline.least for image in images), default=1.0)
    scored = [replace(image, baseline=_scored(image.truth, image.found, least)) for image in images]
    return [
        replace(image, findings=[f._replace(objectlab=_baseline(f.suspicion, image.baseline)) for f in image.findings])
        for image in scored
    ]


def _weighed(image: LookedAt, rarity: np.ndarray, middle: float, least: float) -> LookedAt:
    """``image`` with the weights of its findings, the surest first, by the ``rarity`` (G,) of its labels."""
    findings = [f._replace(weight=_weight(f, rarity, middle)) for f in image.findings]
    return replace(image, findings=sorted((f for f in findings if f.rank >= least), key=lambda f: -f.rank))


def _weight(finding: Finding, rarity: np.ndarray, middle: float) -> float:
    kind, index = finding.suspicion.kind, finding.suspicion.index
    if index is None or kind not in (Kind.WRONG_CLASS, Kind.SPURIOUS):
        return 1.0
    return _gain(finding) / (_gain(finding) + middle) if kind is Kind.WRONG_CLASS else float(rarity[index])


def _gain(finding: Finding) -> float:
    return max(finding.loss_gain or 0.0, 0.0)


def _loss_gains(
    detector: Detector, image: Images, truth: GroundTruth, suspicions: Sequence[Suspicion]
) -> list[float | None]:
    """What the loss of the image falls by with each of ``suspicions`` corrected by itself, where boxes stay as many.

    The samples that a loss is of are drawn by the image's key, so that they are the same with the label and without.
    """
    alike = [s.index is not None and s.box is not None for s in suspicions]
    if not any(alike):
        return [None] * len(suspicions)
    as_is = _loss(detector, image, truth, None)
    return [
        as_is - _loss(detector, image, truth, s) if comparable else None
        for s, comparable in zip(suspicions, alike, strict=True)
    ]


def _loss(detector: Detector, image: Images, truth: GroundTruth, correction: Suspicion | None) -> float:
    (meta,) = image.meta
    assert meta.affine is not None
    target = _target(truth, meta.affine, meta.size, correction).to(image.pixels.device)
    with torch.no_grad():
        return float(detector(image, [target]).total)


def _target(truth: GroundTruth, affine: Affine, size: tuple[int, int], correction: Suspicion | None) -> Target:
    """The labels of ``truth`` in an input of ``size``, corrected if so."""
    corners, labels, crowd = clipped_corners(truth.boxes, np.array(truth.size)), truth.labels, truth.crowd
    kept = is_usable(corners)
    if correction is not None:
        if correction.index is not None:
            kept = kept & (np.arange(len(labels)) != correction.index)
        if correction.box is not None and correction.label is not None:
            new = clipped_corners(_xywh(correction.box)[None], np.array(truth.size))
            corners, labels = np.concatenate([corners, new]), np.append(labels, correction.label)
            crowd, kept = np.append(crowd, False), np.append(kept, is_usable(new))
    boxes: Tensor = affine.apply(torch.from_numpy(corners[kept])).float()
    h, w = size
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([w, h, w, h]))
    return Target(boxes, torch.from_numpy(labels[kept].astype(np.int64)), torch.from_numpy(crowd[kept].astype(bool)))


def _baseline(suspicion: Suspicion, scored: ObjectLab) -> float | None:
    of = {Kind.MISPLACED: scored.badly_located, Kind.WRONG_CLASS: scored.swapped}
    if suspicion.kind in of and suspicion.index is not None:
        return float(of[suspicion.kind][suspicion.index])
    if suspicion.kind is Kind.MISSING and suspicion.detection is not None:
        value = float(scored.overlooked[suspicion.detection])
        return None if np.isnan(value) else value
    return None


def _tuple(box: np.ndarray) -> Box:
    x, y, w, h = box.tolist()
    return x, y, w, h


def _xywh(box: Sequence[float]) -> np.ndarray:
    return xyxy_to_xywh(torch.tensor(box, dtype=torch.float64)).numpy()


def _xyxy(boxes: np.ndarray) -> np.ndarray:
    return xywh_to_xyxy(torch.from_numpy(boxes.reshape(-1, 4))).numpy()
