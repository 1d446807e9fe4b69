"""The RPN's raw outputs for sampled anchors alone are those for all."""

import torch

from detkit.losses import BCE, L1
from detkit.matching import AnchorGrid, BalancedSampler, DeltaCoder, MaxIoUAssigner
from detkit.models.heads.rpn import RPN, SampledAnchors
from detkit.structures import FeatureSpec

SPEC = FeatureSpec((4, 4), (8.0, 16.0))
SHAPES = [(5, 6), (3, 3)]
NUM_ANCHORS = 5 * 6 + 3 * 3


def head_and_features():
    torch.manual_seed(0)
    head = RPN(
        in_spec=SPEC, anchors=AnchorGrid(in_spec=SPEC, ratios=(1.0,)), assigner=MaxIoUAssigner(),
        sampler=BalancedSampler(), coder=DeltaCoder(), cls_loss=BCE(), box_loss=L1(),
    )  # fmt: skip
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head, [torch.randn(2, 4, *shape) for shape in SHAPES]


def everything(head, features):
    """``head.at`` for all anchors of both images."""
    samples = [SampledAnchors(torch.arange(NUM_ANCHORS), torch.empty(0))] * 2
    return [x.unflatten(0, (2, NUM_ANCHORS)) for x in head.at(features, samples)]


@torch.no_grad()
def test_outputs_of_sampled_anchors_are_those_of_all():
    head, features = head_and_features()
    raw = head(features)
    for sampled, dense in zip(everything(head, features), (raw.logits, raw.deltas), strict=True):
        torch.testing.assert_close(sampled, torch.cat(dense, dim=1))


@torch.no_grad()
def test_an_infinite_cell_reaches_its_neighbours_alone():
    head, features = head_and_features()
    expected = everything(head, features)
    features[0][0, :, 0, 0] = torch.inf
    neighbours = torch.zeros(2, NUM_ANCHORS, dtype=torch.bool)
    neighbours[0, [0, 1, 6, 7]] = True
    for found, wanted in zip(everything(head, features), expected, strict=True):
        assert torch.equal(found[~neighbours], wanted[~neighbours])
        assert not found[neighbours].isfinite().all()
