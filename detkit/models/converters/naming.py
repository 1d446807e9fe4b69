"""Renaming by patterns, and the rows of a class layer: what the converters have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from detkit.structures import Categories

#: A pattern of a library's names, and what it is here.
Rename = tuple[str, str]

#: COCO's 91 numbers as torchvision names them: number 0 is background, eleven others are of no class ("N/A").
COCO_91: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])


class UnfitError(ValueError):
    """The last layers of a file, from which its classes are told, are not there or do not fit each other.

    Attributes:
        found: the tensors of the file under detkit's names but for those of its last layers, ``last``.
    """

    def __init__(self, text: str, found: Mapping[str, Tensor], last: Sequence[str]) -> None:
        super().__init__(text)
        self.last = last
        self.found = {name: value for name, value in found.items() if name not in last}


def coco_categories() -> Categories:
    """COCO's 80 classes with their numbers."""
    ids = tuple(i for i, name in enumerate(COCO_91) if name not in ("__background__", "N/A"))
    return Categories(tuple(COCO_91[i] for i in ids), ids)


def renamed(state: Mapping[str, Tensor], renames: Sequence[Rename], what: str) -> dict[str, Tensor]:
    """``state`` under detkit's names: of ``renames`` the first that fits.

    A convolution beside the ``norm`` that follows it is that layer's ``conv``. A key that none fits gets a name that
    says so and that no model has, so that loading names it together with all else that does not fit.

    Args:
        what: the network that has no such keys.
    """
    names = {key: _rename(key, renames) or f"{key} (no key of {what})" for key in state}
    placed = {name: state[key] for key, name in names.items()}
    normed = {name.removesuffix(".norm.weight") for name in placed if name.endswith(".norm.weight")}
    return {_beside_norm(name, normed): value for name, value in placed.items()}


def check_present(found: Mapping[str, Tensor], last: Sequence[str], what: str) -> None:
    """Refuse a state dict without one of its ``last`` layers' tensors, which tell the classes, or their rows."""
    if missing := [name for name in last if name not in found]:
        text = f"the state dict of {what} must have all of its last layers; missing: {', '.join(missing)}"
        raise UnfitError(text, found, last)
    if bare := [f"{name} {tuple(found[name].shape)}" for name in last if not (found[name].ndim and len(found[name]))]:
        raise UnfitError(f"the last layers of {what} have no rows: {', '.join(bare)}", found, last)


def check_rows(found: Mapping[str, Tensor], rows: Mapping[str, int], what: str) -> None:
    """Refuse last layers that do not agree on the classes: ``rows`` are those that each tensor must have."""
    if wrong := [
        f"{name} {tuple(found[name].shape)}, not {n} rows" for name, n in rows.items() if len(found[name]) != n
    ]:
        raise UnfitError(f"the last layers of {what} do not fit each other: {'; '.join(wrong)}", found, list(rows))


def _rename(key: str, renames: Sequence[Rename]) -> str | None:
    for pattern, replacement in renames:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return None


def _beside_norm(name: str, normed: set[str]) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{layer}.conv.{kind}" if layer in normed else name


def class_rows(num_rows: int, categories: Categories, published: Sequence[str], first: int) -> Sequence[int] | None:
    """The rows of a class layer of ``num_rows``, without background, that belong to ``categories``.

    By name where the layer has a row for each of ``published``; else by position from ``first`` on where there are as
    many classes; None where they cannot be told.
    """
    if num_rows == len(published) and set(categories.names) <= set(published):
        return [published.index(name) for name in categories.names]
    if num_rows - first == len(categories):
        return list(range(first, num_rows))
    return None


def of_rows(
    found: dict[str, Tensor],
    last: Sequence[str],
    categories: Categories,
    names: Sequence[str] | None,
    what: str,
    anchors: int = 1,
) -> tuple[dict[str, Tensor], bool]:
    """``found`` with the rows of ``categories`` in its ``last`` tensors (A * K, ...), and whether they are in it.

    Args:
        names: of the K classes of the file; COCO's where they are not known and K is 80.
        anchors: A, for each of which there are K rows.
    """
    check_present(found, last, what)
    num = len(found[last[-1]]) // anchors
    check_rows(found, dict.fromkeys(last, num * anchors), what)
    rows = _rows_of(num, categories, names)
    kept = {name: value for name, value in found.items() if name not in last}
    if rows is not None:
        kept |= {n: found[n].unflatten(0, (anchors, -1))[:, rows].flatten(0, 1) for n in last}
    return kept, rows is not None


def of_dense_classes(
    found: dict[str, Tensor], categories: Categories, names: Sequence[str] | None, what: str, anchors: int = 9
) -> tuple[dict[str, Tensor], bool]:
    """:func:`of_rows` of RetinaNet's class layer, which has K rows for each of the anchors of a cell."""
    boxes, last = "head.bbox_pred.bias", ("head.cls_logits.weight", "head.cls_logits.bias")
    check_present(found, (*last, boxes, "head.bbox_pred.weight"), what)
    check_rows(found, dict.fromkeys((boxes, "head.bbox_pred.weight"), 4 * anchors), what)
    return of_rows(found, last, categories, names, what, anchors)


def of_region_classes(
    found: dict[str, Tensor], categories: Categories, names: Sequence[str] | None, what: str
) -> tuple[dict[str, Tensor], bool]:
    """The same of a region network, whose class layer has a row more, for background, and is last in both libraries."""
    network = "head.roi.network"
    scores, boxes = (
        [f"{network}.{layer}.{kind}" for kind in ("weight", "bias")] for layer in ("cls_score", "bbox_pred")
    )
    check_present(found, (*scores, *boxes), what)
    num = len(found[scores[-1]]) - 1
    is_shared = len(found[boxes[-1]]) == 4 and num > 1  # one box for all classes
    num_boxes = 4 if is_shared else 4 * num
    check_rows(found, dict.fromkeys(scores, num + 1) | dict.fromkeys(boxes, num_boxes), what)
    rows = _rows_of(num, categories, names)
    left_out = {*scores, *(() if is_shared else boxes)}
    kept = {name: value for name, value in found.items() if name not in left_out}
    if rows is not None:
        kept |= {name: found[name][[*rows, -1]] for name in scores}
        kept |= {n: found[n] if is_shared else found[n].unflatten(0, (-1, 4))[rows].flatten(0, 1) for n in boxes}
    return kept, rows is not None


def _rows_of(num: int, categories: Categories, names: Sequence[str] | None) -> Sequence[int] | None:
    """:func:`class_rows`; where the file tells its ``names``, by these alone."""
    if names is not None and not set(categories.names) <= set(names):
        return None
    coco = coco_categories().names
    return class_rows(num, categories, names or (coco if num == len(coco) else ()), 0)
