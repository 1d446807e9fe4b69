"""The graph of a network's spatial operations, and the two ways through it that give a receptive field.

From the top, the recurrence: a cell of the last map reads some rows of the map before, these read more rows of the one
before that, and so on down to the pixels; over one layer RF = (RF - 1) * stride + kernel. From the bottom, the closed
form (Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks", Distill 2019, equation 2; the
recurrence is their equation 1):

    r0 = 1 + sum over the layers l of (k_l - 1) * (product of the strides of all layers before l),

and likewise for where the field begins. A network with branches has the union of its paths' fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from detkit.analysis.receptive_field.reach import Bounds, Reach, Span


class Edge(NamedTuple):
    """What a map is made from, and what it reads of it along y and x; None: all of it (a global pool, say)."""

    source: Node
    reach: tuple[Reach, Reach] | None


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """A feature map; ``index`` grows in the order of computation, ``op`` names what computed it."""

    index: int
    op: str
    edges: tuple[Edge, ...] = ()


def nodes_below(node: Node) -> list[Node]:
    """``node`` and all that it is computed from, the latest first; the last one is the image."""
    found = {node}
    todo = [node]
    while todo:
        for edge in todo.pop().edges:
            if edge.source not in found:
                found.add(edge.source)
                todo.append(edge.source)
    return sorted(found, key=lambda n: -n.index)


def trace_back(nodes: Sequence[Node], cell: int, axis: int) -> Span | None:
    """The recurrence from the top: the rows (axis 0) or columns (axis 1) of the image that ``cell`` reads.

    Paths through an operation that reads a whole map are left out; None if there are no others.

    Args:
        nodes: the map that ``cell`` belongs to and all below it, as ``nodes_below`` gives them.
    """
    spans = {nodes[0]: Span(cell, cell)}
    for node in nodes:
        span = spans.get(node)
        for edge in node.edges if span is not None else ():
            back = None if edge.reach is None else edge.reach[axis].back(span)  # type: ignore[arg-type]
            if back is not None:
                known = spans.get(edge.source, back)
                spans[edge.source] = Span(min(known.first, back.first), max(known.last, back.last))
    return spans.get(nodes[-1])


def closed_form(nodes: Sequence[Node], axis: int) -> Bounds | None:
    """The closed form from the bottom: cell i reads at most the rows ``ratio * i + low`` to ``ratio * i + high``.

    Exactly these where every stride is whole. Where maps are enlarged, neighbouring cells have fields of different
    sizes, and this holds for all of them: it may be some strides wider than each. None if branches meet at different
    strides (an enlarged map of odd size does not lie exactly over the finer one), or as for ``trace_back``.
    """
    found: dict[Node, Bounds | None] = {nodes[-1]: Bounds(Fraction(1), Fraction(0), Fraction(0))}
    for node in reversed(nodes[:-1]):
        paths = []
        for edge in node.edges:
            below = found[edge.source]
            if edge.reach is not None and below is not None:
                ratio, low, high = edge.reach[axis].bounds
                step = below.ratio  # the product of the strides so far
                paths.append(Bounds(step * ratio, below.low + step * low, below.high + step * high))
        if len({path.ratio for path in paths}) > 1:
            return None
        found[node] = Bounds(paths[0].ratio, min(p.low for p in paths), max(p.high for p in paths)) if paths else None
    return found[nodes[0]]


def is_regular(nodes: Sequence[Node]) -> bool:
    """Whether all cells have the same field, moved on by a whole stride."""
    return all(r.is_regular for node in nodes for edge in node.edges if edge.reach is not None for r in edge.reach)


def reads_all(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The operations that read a whole map, in the order of computation; not those that read what came of it."""
    placeless = {node for node in nodes if node.edges and all(edge.reach is None for edge in node.edges)}
    names = [
        node.op
        for node in reversed(nodes)
        if any(edge.reach is None and edge.source not in placeless for edge in node.edges)
    ]
    return tuple(dict.fromkeys(names))
