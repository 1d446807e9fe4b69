"""What the recorder does with operations that move, mix or overwrite, and with those that it does not know."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from detkit.analysis.receptive_field import receptive_fields
from detkit.ops import deform_conv

PIXELS = torch.zeros(1, 3, 32, 48)
WEIGHT = torch.ones(3, 3, 3, 3)


def conv(x):
    return F.conv2d(x, WEIGHT, padding=1)


def field(function):
    (level,), notes = receptive_fields(lambda x: [function(x)], PIXELS)
    return level, notes


def squeeze_and_excitation(x):
    x = conv(x)
    gate = F.adaptive_avg_pool2d(x, 1).flatten(1) @ torch.ones(3, 3)
    return x * gate.sigmoid()[:, :, None, None]


def cbam(x):
    pooled = F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)
    x = x * F.conv2d(pooled, torch.ones(3, 3, 1, 1)).sigmoid()
    both = torch.stack([x.mean(1), x.amax(1)], 1)
    return x * F.conv2d(both, torch.ones(1, 2, 7, 7), padding=3).sigmoid()


@pytest.mark.parametrize(
    ("function", "rest", "through"),
    [
        (squeeze_and_excitation, 3, ("mean",)),
        (cbam, 7, ("mean", "adaptive_max_pool2d")),
        (lambda x: conv(x) + x.mean((2, 3), keepdim=True), 3, ("mean",)),
        (lambda x: conv(x) * conv(x).softmax(3), 3, ("_softmax",)),
        (lambda x: x + (x.flatten(2).transpose(1, 2) @ x.flatten(2)).mean((1, 2))[:, None, None, None], 1, ("bmm",)),
        (lambda x: torchvision.ops.deform_conv2d(x, torch.cat([conv(x)] * 6, 1), WEIGHT, padding=1), 3, ("torchvision::deform_conv2d",)),
        (lambda x: deform_conv(x, torch.cat([conv(x)] * 6, 1), WEIGHT, padding=(1, 1)), 3, ("detkit::deform_conv",)),
        (lambda x: conv(x) + F.linear(x.flatten(2), torch.ones(32 * 48, 32 * 48)).view(x.shape), 3, ("mm",)),
    ],
    ids=["SE", "CBAM", "mean", "softmax", "attention", "deformable", "detkit's deformable", "linear over places"],
)  # fmt: skip
def test_what_sees_the_whole_image_is_named_and_the_rest_is_still_told(function, rest, through):
    level, _ = field(function)
    assert level.whole_image == through
    assert level.size == (rest, rest)


def test_a_gate_alone_has_no_field_of_its_own():
    level, notes = field(lambda x: conv(x).mean((2, 3), keepdim=True).expand(1, 3, 8, 8))
    assert level.size is None
    assert level.whole_image == ("mean",)
    assert not notes, "global pooling is nothing strange"


@torch.library.custom_op("detkit_tests::blur", mutates_args=())
def blur(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 5, 1, 2)


@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (lambda x: conv(blur(x)), "detkit_tests::blur", "an operation that this analysis does not know"),
        (lambda x: conv(x).roll(1, 3), "roll", "an operation that this analysis does not know"),
        (lambda x: conv(x)[:, :, [0, 5, 3]], "index", "an operation that this analysis does not know"),
        (lambda x: F.grid_sample(conv(x), torch.zeros(1, 8, 8, 2), align_corners=False), "grid_sampler_2d", "an operation that this analysis does not know"),
        (lambda x: conv(x).view(1, 3, 8, 4, 48).sum(2), "view", "a reshape cuts an image axis in pieces"),
        (lambda x: torch.cat([x, conv(x)], 3), "cat", "it joins maps along an image axis"),
        (lambda x: conv(x).cumsum(2), "cumsum", "it runs along an image axis"),
        (lambda x: x + conv(x)[:, :, :1], "add", "one row or column is spread over many"),
    ],
)  # fmt: skip
def test_unknown_operations_are_never_taken_for_pointwise_ones(function, name, reason):
    level, notes = field(function)
    assert level.whole_image, "the whole image, which is never too small"
    assert notes[0] == f"{name}: {reason}; what comes of it counts as made from the whole image"


def in_place_on_channels(x):
    y = conv(x)
    y[:, :2].relu_()
    return y


def copied_into_a_buffer(x):
    buffer = torch.zeros(1, 3, 32, 48)
    buffer[:, :2] = conv(x)[:, :2]
    return buffer


def copied_into_rows(x):
    y = conv(x)
    y[:, :, 4:] = conv(conv(x))[:, :, :-4]
    return y


@pytest.mark.parametrize("function", [in_place_on_channels, copied_into_a_buffer, copied_into_rows])
def test_writes_into_a_part_of_a_tensor_are_not_lost(function):
    level, notes = field(function)
    assert level.whole_image
    assert any("writes into a part of a tensor" in note for note in notes)


def overwritten_whole(x):
    y = torch.zeros_like(x)
    y.copy_(conv(x))
    alias = y.view_as(y)
    y.add_(conv(conv(x)))
    return alias


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (overwritten_whole, 5),
        (lambda x: conv(x).zero_().add_(x), 1),
        (lambda x: conv(x.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).view(x.shape)), 3),
        (lambda x: torch.stack(conv(x).unbind(1)[::-1], 1), 3),
        (lambda x: torch.cat(conv(x).chunk(3, 1)[::-1], 1) + x, 3),
        (lambda x: torch.where(x > 0, conv(x), conv(conv(x))), 5),
        (lambda x: F.layer_norm(conv(x).permute(0, 2, 3, 1), (3,)).permute(0, 3, 1, 2), 3),
        (lambda x: F.batch_norm(conv(x), torch.zeros(3), torch.ones(3)), 3),
        (lambda x: torch.maximum(conv(x), x).max(1, keepdim=True).values, 3),
        (lambda x: F.hardswish(conv(x), inplace=True), 3),
        (lambda x: F.pad(x, (2, 2, 2, 2), mode="reflect").narrow(2, 1, 34).narrow(3, 1, 50)[:, :, 1:33, 1:49], 1),
    ],
)  # fmt: skip
def test_what_stays_in_place_adds_nothing(function, size):
    level, notes = field(function)
    assert (level.size, level.whole_image, notes) == ((size, size), (), [])
    assert level.start == (0.5, 0.5)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(1, 3), nn.InstanceNorm2d(3), nn.LayerNorm((3, 32, 48)), nn.BatchNorm2d(3).train()]
)
def test_statistics_over_the_map_are_not_counted_but_told(norm):
    level, notes = field(lambda x: norm(conv(x)))
    assert level.size == (3, 3)
    assert not level.whole_image
    assert "the whole map" in notes[0]
    assert "not counted" in notes[0]


def test_numbers_that_python_reads_are_told():
    _, notes = field(lambda x: conv(x) if x.sum().item() > 0 else x)
    assert notes == [
        "_local_scalar_dense: Python reads a number computed from the image; what it decides by it is not counted"
    ]


def test_a_constant_map_sees_nothing():
    level, _ = field(lambda x: torch.ones_like(conv(x)))
    assert level.size is None
    assert not level.whole_image
