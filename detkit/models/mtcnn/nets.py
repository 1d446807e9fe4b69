"""The three networks of MTCNN (Zhang et al. 2016, figure 2), in the shapes of the published weights.

Layers have the published names, so that published state dicts load as they are. The classes stand with background
first, as there; poolings count a last, incomplete window (ceil mode), as Caffe's do.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Answers(NamedTuple):
    """What a network says of N crops (or, P-Net, of the cells of maps, at the end of each shape).

    ``logits`` (N, O), background first; ``deltas`` (N, 4), how far the corners x1 y1 x2 y2 of the object are from those
    of the crop, in shares of its side; ``landmarks`` (N, 2 L) all x, then all y, in shares of the crop, or None.
    """

    logits: Tensor
    deltas: Tensor
    landmarks: Tensor | None = None


class PNet(nn.Module):
    """The proposal network: 12 px windows, fully convolutional, one cell each 2 px; object or not."""

    window = 12
    extra = 0.0  #: px by which sides count as longer when a box is moved, see :func:`~detkit.models.mtcnn.crops.moved`
    stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)
        _initialize(self)

    def forward(self, pixels: Tensor) -> Answers:
        """Maps (B, 2, h, w), (B, 4, h, w) for normalised ``pixels`` (B, 3, H, W); cell i sees 2 i to 2 i + 12."""
        x = self.pool1(self.prelu1(self.conv1(pixels)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return Answers(self.conv4_1(x), self.conv4_2(x))

    @staticmethod
    def map_size(size: tuple[int, int]) -> tuple[int, int]:
        """Cells (h, w) for an image of ``size`` (h, w) px; the last ones may see a row less than their window."""
        h, w = (max(0, -((2 - side) // 2) - 4) for side in size)
        return h, w


class RNet(nn.Module):
    """The refining network: 24 px crops; object or not."""

    window = 24
    extra = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)
        _initialize(self)

    def forward(self, crops: Tensor) -> Answers:
        """Answers for normalised ``crops`` (N, 3, 24, 24)."""
        x = self.pool1(self.prelu1(self.conv1(crops)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_flatten(x)))
        return Answers(self.dense5_1(x), self.dense5_2(x))


class ONet(nn.Module):
    """The output network: 48 px crops; which of K classes, or none, and where L landmarks are."""

    window = 48
    extra = 1.0

    def __init__(self, num_classes: int, num_landmarks: int = 0) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2 = nn.Linear(256, num_classes + 1), nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 2 * num_landmarks) if num_landmarks else None
        _initialize(self)

    def forward(self, crops: Tensor) -> Answers:
        """Answers for normalised ``crops`` (N, 3, 48, 48)."""
        x = self.pool1(self.prelu1(self.conv1(crops)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_flatten(x)))
        landmarks = None if self.dense6_3 is None else self.dense6_3(x)
        return Answers(self.dense6_1(x), self.dense6_2(x), landmarks)


def _flatten(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N, W * H * C): the order of the published weights, which come from Matlab's columns."""
    return maps.permute(0, 3, 2, 1).flatten(1)


def _initialize(net: nn.Module) -> None:
    """He's normal weights for PReLU of slope 0.25 (He et al. 2015), and answers near zero at first."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, a=0.25)
            if "_" in name:  # the layers that answer
                module.weight.data *= 0.1
            if module.bias is not None:
                nn.init.zeros_(module.bias)
