"""Stages that keep their input's stride: convolutions with holes.

Strides are traded for holes by the algorithme a trous (Holschneider et al. 1989; in detection: Dai et al., R-FCN,
NeurIPS 2016, section 2): the dense map holds the values of the strided one at every other cell.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def dilate(stage: nn.Module, rate: int = 2) -> None:
    """Take the stride of ``rate`` out of ``stage``; its convolutions after that get holes: weights keep their sense.

    Where the strided stage has a value, the dilated one has the same (their cells (i, j) and (rate i, rate j)).
    """
    for conv in convolutions(stage):
        if max(conv.stride) > 1:
            assert conv.stride == (rate, rate), conv
            conv.stride = (1, 1)
        else:
            set_dilation(conv, rate)


def convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    """All of ``module``'s, those within a deformable one too."""
    return (m for m in module.modules() if isinstance(m, nn.Conv2d))


def set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    """Spread the taps of ``conv`` and pad it so that it keeps the size of a map."""
    conv.dilation = (dilation, dilation)
    conv.padding = (dilation * (conv.kernel_size[0] // 2), dilation * (conv.kernel_size[1] // 2))
