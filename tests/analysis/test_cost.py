"""Parameters and operations, against counting by hand."""

import torch

from detkit.analysis.cost import measure_cost
from detkit.models.detector import ComposedDetector
from detkit.models.interfaces import Backbone, Head, Neck
from detkit.structures import FeatureSpec, ImageMeta, Images
from detkit.structures.feature_spec import IMAGENET_STATS


class Stem(Backbone):
    out_spec = FeatureSpec((4,), (2.0,))
    pixel_stats = IMAGENET_STATS

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, 2, 1).requires_grad_(False)

    def forward(self, pixels):
        return [self.conv(pixels)]


class Twice(Neck):
    """Runs the backbone twice."""

    out_spec = Stem.out_spec

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, pixels, backbone):
        return [self.conv(backbone(pixels)[0]) + self.conv(backbone(pixels)[0])]


@torch.library.custom_op("detkit_tests::uncounted", mutates_args=())
def uncounted(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Linear(Head):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 5)

    def assign(self, shapes, images, targets):
        raise AssertionError

    def loss(self, features, images, targets):
        raise AssertionError

    def predict(self, features, images):
        self.linear(uncounted(features[0].mean((2, 3))))
        return []


def test_every_part_is_counted_once_for_each_time_it_runs():
    detector = ComposedDetector(backbone=Stem(), neck=Twice(), head=Linear())
    images = Images(torch.zeros(1, 3, 16, 32, dtype=torch.uint8), (ImageMeta(0, "a", (16, 32), (16, 32)),))
    costs, custom = measure_cost(detector, images)
    cells = 8 * 16
    assert costs["backbone"] == (3 * 4 * 9 + 4, 0, 2 * (2 * cells * 4 * 3 * 9))
    assert costs["neck"] == (16, 16, 2 * (2 * cells * 4 * 4))
    assert costs["head"] == (25, 25, 2 * 4 * 5)
    assert costs["total"] == tuple(sum(costs[part][i] for part in ("backbone", "neck", "head")) for i in range(3))
    assert custom == ("detkit_tests::uncounted",)
