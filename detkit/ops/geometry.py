"""What an op computes, apart from its maps and boxes: what its forms and its kernel share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

#: Of a side times a scale, before it is rounded up to whole cells: what the rounding of the scale adds makes no cell.
#: 42 px are 3 cells of 14 px, but 42 times the float32 next to 1/14 is more than 3.
UNROUNDED = 1 - 2**-21


class Pooling(NamedTuple):
    """How regions are pooled: the op's last arguments, in the order of its schema.

    ``image_sizes`` (B, 2) int64 are h, w px of each image, None for whole maps: a tensor, so that a graph that was
    compiled for one batch takes the next. ``scales`` are cells per px of each level.
    """

    image_sizes: Tensor | None
    output_size: Sequence[int]
    scales: Sequence[float]
    sampling_ratio: int
    aligned: bool
    position_sensitive: bool
    gamma: float

    @property
    def channel_sets(self) -> int:
        """Bins that read channels of their own."""
        return self.output_size[0] * self.output_size[1] if self.position_sensitive else 1


class ConvSizes(NamedTuple):
    """All sizes: B, C, H, W; C', groups, G; the kernel's and the output's (height, width); how the kernel moves."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    groups: int
    offset_groups: int
    kernel: tuple[int, int]
    output: tuple[int, int]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(
        x: Sequence[int],
        weight: Sequence[int],
        offset: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> ConvSizes:
        """From the shapes of the tensors, with how the kernel moves.

        Raises:
            ValueError: a tensor has not four axes, or the kernel moves by nothing or is padded by less than nothing.
        """
        if len(x) != 4 or len(weight) != 4 or len(offset) != 4:
            raise ValueError(f"x, weight and offset have 4 axes, not {len(x)}, {len(weight)} and {len(offset)}")
        if min(*stride, *dilation) < 1 or min(padding) < 0:
            raise ValueError(
                f"stride and dilation must be at least 1 and padding at least 0, not {tuple(stride)}, "
                f"{tuple(dilation)} and {tuple(padding)}"
            )
        kernel = (weight[2], weight[3])
        output = tuple(
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(x[2:], kernel, stride, padding, dilation, strict=True)
        )
        groups = x[1] // weight[1] if weight[1] and x[1] % weight[1] == 0 else 0
        offset_groups = offset[1] // (2 * kernel[0] * kernel[1])
        moves = (tuple(stride), tuple(padding), tuple(dilation))
        return ConvSizes(*x, weight[0], groups, offset_groups, kernel, output, *moves)  # pyright: ignore

    @property
    def num_taps(self) -> int:
        """Places that the kernel reads."""
        return self.kernel[0] * self.kernel[1]

    @property
    def num_cells(self) -> int:
        """Of all maps of the batch."""
        return self.batch * self.height * self.width

    def check(self, offset: Tensor, mask: Tensor | None, bias: Tensor | None) -> None:
        """Whether the shapes go together.

        Raises:
            ValueError: they do not; the message has the shape that would.
        """
        if self.groups == 0 or self.out_channels % self.groups:
            raise ValueError(f"{self.channels} channels do not divide among weights for {self.out_channels}")
        taps = self.offset_groups * self.num_taps
        if min(self.output) < 0 or offset.shape != (self.batch, 2 * taps, *self.output) or taps == 0:
            raise ValueError(
                f"offset must be ({self.batch}, 2 G * {self.num_taps}, {self.output[0]}, {self.output[1]}), "
                f"not {tuple(offset.shape)}"
            )
        if self.channels % self.offset_groups:
            raise ValueError(
                f"{self.channels} channels do not divide into the {self.offset_groups} groups of the offset"
            )
        if mask is not None and mask.shape != (self.batch, taps, *self.output):
            raise ValueError(
                f"mask must be ({self.batch}, {taps}, {self.output[0]}, {self.output[1]}), not {tuple(mask.shape)}"
            )
        if bias is not None and bias.shape != (self.out_channels,):
            raise ValueError(f"bias must be ({self.out_channels},), not {tuple(bias.shape)}")
