"""Where the image's two axes are in a tensor, followed through reshaping and transposing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: Names of the two spatial axes, as numbers they are 0 and 1.
AXES = ("y", "x")


class Atom(NamedTuple):
    """A factor of a dimension: an image axis (``y`` or ``x``) or anything else ("")."""

    axis: str
    size: int


#: The atoms of each dimension, slowest first: (B, C, H, W) has one in each, (B * H * W, C) three in the first.
Layout = tuple[tuple[Atom, ...], ...]


class Lost(Exception):
    """The image's axes cannot be followed through this operation; the message says why."""


def feature_map(shape: Sequence[int]) -> Layout:
    """The layout of a map (..., H, W)."""
    return (*(plain(n) for n in shape[:-2]), (Atom("y", shape[-2]),), (Atom("x", shape[-1]),))


def plain(size: int) -> tuple[Atom, ...]:
    """A dimension without an image axis."""
    return (Atom("", size),)


def axes_in(dim: tuple[Atom, ...]) -> str:
    """The image axes of a dimension, in their order."""
    return "".join(atom.axis for atom in dim)


def is_map(layout: Layout) -> bool:
    """Whether the last two dimensions are y and x, and no other is."""
    return [axes_in(dim) for dim in layout][-2:] == ["y", "x"] and not any(map(axes_in, layout[:-2]))


def resized(layout: Layout, shape: Sequence[int]) -> Layout:
    """``layout`` for a tensor of ``shape`` whose dimensions mean the same but may have other sizes."""
    fitted = []
    for dim, size in zip(layout, shape, strict=True):
        if not axes_in(dim):
            fitted.append(plain(size))
        elif len(dim) == 1:
            fitted.append((Atom(dim[0].axis, size),))
        elif math.prod(atom.size for atom in dim) == size:
            fitted.append(dim)
        else:
            raise Lost("a dimension with an image axis and something else changes its size")
    return tuple(fitted)


def reshaped(layout: Layout, shape: Sequence[int]) -> Layout:
    """``layout`` after a reshape to ``shape``; an image axis may be joined with others, but not be cut.

    Raises:
        Lost: it is cut.
    """
    atoms = [atom for dim in layout for atom in dim if atom.axis or atom.size != 1]
    dims = []
    for size in shape:
        dim: list[Atom] = []
        missing = size
        while missing > 1 or (size == 1 and atoms and atoms[0].size == 1):
            if not atoms:
                raise Lost("a reshape")
            axis, length = atoms.pop(0)
            if missing % length == 0:
                taken = length
            elif not axis and length % missing == 0:
                taken = missing
                atoms.insert(0, Atom("", length // missing))
            else:
                raise Lost("a reshape cuts an image axis in pieces")
            dim.append(Atom(axis, taken))
            missing //= taken
            if size == 1:
                break
        dims.append(tuple(dim) or plain(1))
    if atoms:
        raise Lost("a reshape")
    return tuple(dims)


def broadcast(layouts: Sequence[tuple[Layout, Sequence[int]]], shape: Sequence[int]) -> Layout:
    """The layout of a pointwise result of ``shape``, from the layouts and shapes of what goes into it.

    Raises:
        Lost: one has an image axis where another has a different one, or a single row that is spread over many.
    """
    dims = []
    for i in range(1, len(shape) + 1):  # aligned at the right
        present = [(layout[-i], size[-i]) for layout, size in layouts if len(layout) >= i]
        names = {axes_in(dim) for dim, _ in present} - {""}
        if len(names) > 1:
            raise Lost("image axes of two inputs do not lie over each other")
        placed = [(dim, size) for dim, size in present if axes_in(dim)]
        if any(size != shape[-i] for _, size in placed):
            raise Lost("one row or column is spread over many")
        if placed and any(not axes_in(dim) and size != 1 for dim, size in present):
            raise Lost("an image axis of one input lies over another axis of the other")
        dims.append(placed[0][0] if placed else plain(shape[-i]))
    layout = tuple(reversed(dims))
    kept = {axis for dim in layout for axis in axes_in(dim)}
    if any({a for d in given for a in axes_in(d)} - kept for given, _ in layouts):
        raise Lost("an image axis disappears")
    return layout


def axis_number(dim: tuple[Atom, ...]) -> int:
    """Which of AXES an image dimension is; raises ``Lost`` where it is joined with another."""
    if len(dim) != 1:
        raise Lost("it moves an image axis that is joined with another dimension")
    return AXES.index(dim[0].axis)
