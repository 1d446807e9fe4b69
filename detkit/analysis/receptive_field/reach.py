"""Along one axis: which rows of its input a row of an operation's output reads.

Rows are counted without regard to borders: row -1 is the first of the padding. So the field of every cell has the size
that it would have in an endless image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


class Span(NamedTuple):
    """Rows from ``first`` to ``last``, both included."""

    first: int
    last: int


class Bounds(NamedTuple):
    """Row i reads at most the rows from ``ratio * i + low`` to ``ratio * i + high``."""

    ratio: Fraction
    low: Fraction
    high: Fraction


class Reach(ABC):
    """What an operation reads along one axis."""

    @abstractmethod
    def back(self, span: Span) -> Span | None:
        """The input rows from the first to the last that the output rows of ``span`` read; None if they read none."""

    @property
    @abstractmethod
    def bounds(self) -> Bounds:
        """The same for any row as a linear bound."""

    @property
    def is_regular(self) -> bool:
        """Whether every row reads the same window, moved on by a whole stride: ``bounds`` is then exact."""
        return False


@dataclass(frozen=True, slots=True)
class Window(Reach):
    """Convolution and pooling: row u reads ``kernel`` rows, ``dilation`` apart, from ``u * stride - padding`` on."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    @property
    def extent(self) -> int:
        """The effective kernel, d (k - 1) + 1."""
        return self.dilation * (self.kernel - 1) + 1

    def back(self, span: Span) -> Span:
        # The length follows RF = (RF - 1) * stride + kernel.
        first = span.first * self.stride - self.padding
        return Span(first, first + (span.last - span.first) * self.stride + self.extent - 1)

    @property
    def bounds(self) -> Bounds:
        first = Fraction(-self.padding)
        return Bounds(Fraction(self.stride), first, first + self.extent - 1)

    @property
    def is_regular(self) -> bool:
        return True


IDENTITY = Window()


@dataclass(frozen=True, slots=True)
class Transposed(Reach):
    """Transposed convolution: input row i adds to the rows ``i * stride - padding + dilation * j``, j < kernel."""

    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1

    def back(self, span: Span) -> Span | None:
        steps = [self.dilation * j for j in range(self.kernel)]
        # beyond the first and the last few rows of a long span nothing more is to be found
        reach = self.stride + steps[-1]
        rows = {*range(span.first, min(span.first + reach, span.last + 1))}
        rows |= {*range(max(span.last - reach, span.first), span.last + 1)}
        places = [row + self.padding - step for row in rows for step in steps]
        found = [place // self.stride for place in places if place % self.stride == 0]
        return Span(min(found), max(found)) if found else None

    @property
    def bounds(self) -> Bounds:
        high = Fraction(self.padding, self.stride)
        low = high - Fraction(self.dilation * (self.kernel - 1), self.stride)
        return Bounds(Fraction(1, self.stride), low, high)


@dataclass(frozen=True, slots=True)
class Nearest(Reach):
    """Nearest-neighbour resizing: row u reads row ``floor(ratio * u + offset)``."""

    ratio: Fraction
    offset: Fraction = Fraction(0)

    def back(self, span: Span) -> Span:
        return Span(math.floor(self.ratio * span.first + self.offset), math.floor(self.ratio * span.last + self.offset))

    @property
    def bounds(self) -> Bounds:
        step = Fraction(1, math.lcm(self.ratio.denominator, self.offset.denominator))
        return Bounds(self.ratio, self.offset - 1 + step, self.offset)


@dataclass(frozen=True, slots=True)
class Resample(Reach):
    """Linear or cubic resizing: row u reads the rows whose centres are nearer than ``radius`` to its own.

    Centres in rows of the input: ``ratio * u + offset`` of an output row, j + 1/2 of input row j.
    """

    ratio: Fraction
    offset: Fraction
    radius: Fraction

    def back(self, span: Span) -> Span:
        low, high = self.bounds.low, self.bounds.high
        return Span(math.floor(self.ratio * span.first + low) + 1, math.ceil(self.ratio * span.last + high) - 1)

    @property
    def bounds(self) -> Bounds:
        centre = self.offset - Fraction(1, 2)
        return Bounds(self.ratio, centre - self.radius, centre + self.radius)


@dataclass(frozen=True, slots=True)
class Adaptive(Reach):
    """Adaptive pooling of ``size_in`` rows into ``size_out``: row u is made of its share of them."""

    size_in: int
    size_out: int

    def back(self, span: Span) -> Span:
        last = -(-(span.last + 1) * self.size_in // self.size_out) - 1
        return Span(span.first * self.size_in // self.size_out, last)

    @property
    def bounds(self) -> Bounds:
        ratio = Fraction(self.size_in, self.size_out)
        part = Fraction(self.size_out - 1, self.size_out)
        return Bounds(ratio, -part, ratio - 1 + part)
