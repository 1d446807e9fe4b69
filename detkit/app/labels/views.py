"""What a detector sees of one image: as it is, in the mirror and enlarged; one look errs more often than three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from detkit.config import ConfigError
from detkit.evaluation.label_errors import Candidates
from detkit.evaluation.results import restore
from detkit.matching.trace import tracing
from detkit.models import Detector
from detkit.models.tta import see
from detkit.structures import Categories, Images
from detkit.structures.boxes import xywh_to_xyxy


class Views(NamedTuple):
    """How each image is looked at: as it is, and at each of ``others``, (scale, whether mirrored).

    ``size_divisor``: padding makes the sides of a view multiples of it, as the loader's does.
    """

    others: tuple[tuple[float, bool], ...] = ()
    size_divisor: int = 32

    @classmethod
    def of(cls, config: Mapping[str, Any], mirror: bool | None, enlarge: float | None) -> Views:
        """For a detector that was trained by ``config``.

        Args:
            mirror: whether to look in the mirror; None: if the training did.
            enlarge: look at so many times the size too; None for not.
        """
        mirrored = _is_mirrored(config) if mirror is None else mirror
        others = [*([(1.0, True)] if mirrored else []), *([] if enlarge in (None, 1) else [(enlarge, False)])]
        return cls(tuple(others), config["data"]["loader"]["val"].get("size_divisor", 32))


class Seen(NamedTuple):
    """In px of the original: what was ``found`` in the image as it is, and of each look all ``candidates``."""

    found: Candidates
    candidates: Sequence[Candidates]


def look_at(detector: Detector, image: Images, categories: Categories, views: Views) -> Seen:
    """What ``detector`` sees of one image in all of its ``views``.

    Raises:
        ConfigError: it refuses an enlarged one.
    """
    found, candidates = _detect(detector, image, categories)
    return Seen(found, [candidates, *(_in_view(detector, image, categories, view, views) for view in views.others)])


def _in_view(
    detector: Detector, image: Images, categories: Categories, view: tuple[float, bool], views: Views
) -> Candidates:
    scale, mirrored = view
    try:
        return _detect(detector, see(image, scale, mirrored, views.size_divisor), categories)[1]
    except ValueError as error:
        if scale == 1:
            raise
        raise ConfigError(
            f"enlarge: the detector refuses images of {scale:g} times the size: {error}; enlarge=null"
        ) from error


def _detect(detector: Detector, image: Images, categories: Categories) -> tuple[Candidates, Candidates]:
    """The detections, and what they were chosen from: the detections again where that is not known."""
    (meta,) = image.meta
    assert meta.affine is not None, "the loader refuses transforms without an inverse"
    with torch.no_grad(), tracing() as trace:
        (detections,) = detector(image)
    results = restore(detections, meta, categories)
    corners = xywh_to_xyxy(torch.from_numpy(results.boxes.reshape(-1, 4))).numpy()
    found = Candidates(corners, detections.labels.cpu().numpy(), results.scores)
    traced = [s for s in trace.selections if bool((s.labels >= 0).any())]
    if not traced:
        return found, found
    boxes, labels, scores = (torch.cat([getattr(s, key) for s in traced]) for key in ("boxes", "labels", "scores"))
    original = meta.affine.undo(boxes.double()).cpu().numpy()
    return found, Candidates(original, labels.cpu().numpy(), scores.double().cpu().numpy())


def _is_mirrored(config: Mapping[str, Any]) -> bool:
    """Whether a training by ``config`` mirrors its images."""
    steps = config["transform"]["train"].values()
    return any(step is not None and step.get("_target_") == "HorizontalFlip" and step.get("p", 1) for step in steps)
