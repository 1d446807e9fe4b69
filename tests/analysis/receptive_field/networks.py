"""Networks whose fields are known, and the proof by gradients that they are."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.analysis.receptive_field import Box


class Bottlenecks(nn.Module):
    """The spatial layers of a ResNet of bottlenecks, one channel wide; ``stride_in`` says which layer has the stride.

    ``first``: the 1x1 convolution of a stage's first block (He et al.). ``middle``: the 3x3 of that block ("v1.5",
    torchvision, detkit). ``last``: the 3x3 of the last block of the stage before (TF-Slim, whose networks the Distill
    article measures).
    """

    def __init__(self, counts: Sequence[int], stride_in: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 1, 7, 2, 3)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.ModuleList()
        for i, count in enumerate(counts):
            for j in range(count):
                is_first, is_last = i > 0 and j == 0, i < len(counts) - 1 and j == count - 1
                s1 = 2 if stride_in == "first" and is_first else 1
                s3 = 2 if (stride_in == "middle" and is_first) or (stride_in == "last" and is_last) else 1
                path = nn.Sequential(nn.Conv2d(1, 1, 1, s1), nn.Conv2d(1, 1, 3, s3, 1), nn.Conv2d(1, 1, 1))
                self.blocks.append(nn.ModuleList([path, nn.Conv2d(1, 1, 1, s1 * s3)]))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.pool(self.conv1(pixels).relu())
        for path, shortcut in self.blocks:
            x = F.relu_(path(x) + shortcut(x))
        return [x]


def vgg16() -> nn.Module:
    """One channel wide, up to and with pool5."""
    layers: list[nn.Module] = []
    for count in (2, 2, 3, 3, 3):
        layers += [nn.Conv2d(1 if layers or i else 3, 1, 3, padding=1) for i in range(count)] + [nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def alexnet() -> nn.Module:
    """One channel wide, up to and with pool5."""
    return nn.Sequential(
        nn.Conv2d(3, 1, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 5, padding=2),
        nn.MaxPool2d(3, 2), *(nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def seen_by_gradient(network: Callable[[Tensor], Sequence[Tensor]], size: tuple[int, int], level: int, cell) -> Box:
    """The extent of the pixels whose gradient of one cell is not zero; the weights must be positive."""
    pixels = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    value = network(pixels)[level][0, :, cell[0], cell[1]].sum()
    (gradient,) = torch.autograd.grad(value, pixels)
    rows, columns = (torch.nonzero(gradient[0].sum(dim=(0, d)) > 0).flatten() for d in (2, 1))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def make_linear(module: nn.Module) -> nn.Module:
    """Positive weights that keep the size of values, and average pooling for maximum: nothing can vanish."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
        elif isinstance(child, (nn.ReLU, nn.ReLU6)):
            setattr(module, name, nn.Identity())
        else:
            make_linear(child)
    for parameter in module.parameters(recurse=False):
        parameter.data = torch.full_like(parameter, 1 / max(1, parameter[0].numel()), dtype=torch.float64)
    return module.double().eval()
