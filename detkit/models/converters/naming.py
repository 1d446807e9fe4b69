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


def coco_categories() -> Categories:
    """COCO's 80 classes with their numbers."""
    ids = tuple(i for i, name in enumerate(COCO_91) if name not in ("__background__", "N/A"))
    return Categories(tuple(COCO_91[i] for i in ids), ids)


def renamed(state: Mapping[str, Tensor], renames: Sequence[Rename], what: str) -> dict[str, Tensor]:
    """``state`` under detkit's names: of ``renames`` the first that fits.

    A convolution beside the ``norm`` that follows it is that layer's ``conv``.

    Raises:
        ValueError: keys that none fits; ``what`` has no such keys.
    """
    names = {key: _rename(key, renames) for key in state}
    if foreign := [key for key, name in names.items() if name is None]:
        shown = ", ".join(map(repr, foreign[:5])) + ", ..." * (len(foreign) > 5)
        raise ValueError(f"{shown} {'is not a key' if len(foreign) == 1 else 'are not keys'} of {what}")
    placed = {name: state[key] for key, name in names.items() if name is not None}
    normed = {name.removesuffix(".norm.weight") for name in placed if name.endswith(".norm.weight")}
    return {_beside_norm(name, normed): value for name, value in placed.items()}


def check_present(found: Mapping[str, Tensor], last: Sequence[str], what: str) -> None:
    """Refuse a state dict without one of its ``last`` layers' tensors, from which the classes are told."""
    if missing := [name for name in last if name not in found]:
        raise ValueError(f"the state dict of {what} must have all of its last layers; missing: {', '.join(missing)}")


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
