"""R-FCN by hand: what a bin reads, what a region's votes are, and which regions are learnt from."""

import pytest
import torch
import torchvision
from torch import nn

from detkit.config import ConfigError
from detkit.losses import CrossEntropy
from detkit.matching import IGNORED, HardExamples
from detkit.models.heads import PSRoIAlign, ScoreMaps
from detkit.structures import Categories, FeatureSpec
from tests.models.builders import SMALL, build_model, images, small
from tests.models.test_contracts import batch

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
SPEC = FeatureSpec((5,), (16.0,))
K, CLASSES = 3, 2
DEPTH = CLASSES + 1 + 4
BOXES = torch.tensor([[16.0, 32.0, 112.0, 80.0], [3.0, 5.0, 50.0, 90.0], [0.0, 0.0, 128.0, 96.0]])
IMAGES = images((96, 128))


def pool_of(**options):
    return PSRoIAlign(in_spec=SPEC, resolution=K, **options)


def network_of(pool):
    torch.manual_seed(0)
    return ScoreMaps(in_spec=SPEC, num_classes=CLASSES, pool=pool, cls_loss=CrossEntropy())


def small_rfcn(*overrides):
    torch.manual_seed(0)
    return build_model("rfcn", CATEGORIES, [*small("rfcn"), "model.neck.out_channels=32", *overrides])


def test_the_pool_is_torchvisions_bin_for_bin():
    maps = torch.randn(1, DEPTH * K * K, 6, 8, generator=torch.Generator().manual_seed(0))
    ours = pool_of()([maps], [BOXES], IMAGES)
    within_channels = maps.unflatten(1, (K * K, DEPTH)).transpose(1, 2).flatten(1, 2)
    theirs = torchvision.ops.ps_roi_align(within_channels, [BOXES], K, 1 / 16, 2)
    torch.testing.assert_close(ours, theirs)


def test_votes_of_maps_that_hold_their_own_number():
    """Bin b of output c reads channel b * 7 + c: nine bins vote 4 * 7 + c on average."""
    pool = pool_of()
    maps = torch.arange(DEPTH * K * K).float()[None, :, None, None].expand(1, -1, 6, 8)
    raw = network_of(pool)(pool([maps], [BOXES], IMAGES))
    expected = 4 * DEPTH + torch.arange(DEPTH).float()
    torch.testing.assert_close(raw.logits, expected[:3].expand(3, 3))
    torch.testing.assert_close(raw.deltas, expected[3:].expand(3, 1, 4))


def test_votes_of_maps_that_hold_the_place_of_a_cell():
    """The mean of the bins of a ramp is its value in the middle of the box; the bins themselves are its thirds."""
    pool = pool_of()
    x = (torch.arange(8) * 16 + 8).float()
    maps = x.expand(1, DEPTH * K * K, 6, 8)
    box = torch.tensor([[32.0, 32.0, 80.0, 80.0]])
    pooled = pool([maps], [box], IMAGES)
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([40.0, 56.0, 72.0]))
    torch.testing.assert_close(network_of(pool)(pooled).logits, torch.full((1, 3), 56.0))


def test_score_maps_are_bin_major_and_boxes_are_of_no_class():
    pool = pool_of()
    network = network_of(pool)
    for conv, depth in ((network.score_maps, CLASSES + 1), (network.box_maps, 4)):
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.bias.copy_(torch.arange(depth * K * K))
    maps = network.maps([torch.zeros(1, 5, 6, 8)])
    pooled = pool(maps, [BOXES], IMAGES)
    bins = torch.arange(K * K).view(K, K)
    for c in range(CLASSES + 1):
        torch.testing.assert_close(pooled[1, c], (bins * (CLASSES + 1) + c).float())
    for c in range(4):
        torch.testing.assert_close(pooled[1, CLASSES + 1 + c], (bins * 4 + c).float())


def test_a_box_for_each_class_is_4_maps_for_each():
    pool = pool_of()
    network = ScoreMaps(
        in_spec=SPEC, num_classes=CLASSES, pool=pool, cls_loss=CrossEntropy(), class_agnostic=False, hidden=6, norm="bn"
    )
    depth = CLASSES + 1 + 4 * CLASSES
    maps = torch.arange(depth * K * K).float()[None, :, None, None].expand(1, -1, 6, 8)
    raw = network(pool([maps], [BOXES], IMAGES))
    expected = 4 * depth + torch.arange(depth).float()
    torch.testing.assert_close(raw.logits, expected[: CLASSES + 1].expand(3, -1))
    torch.testing.assert_close(raw.deltas, expected[CLASSES + 1 :].view(CLASSES, 4).expand(3, -1, -1))
    assert network.maps([torch.zeros(2, 5, 6, 8)])[0].shape == (2, depth * K * K, 6, 8)


def test_hidden_maps_are_normalised_before_their_relu():
    network = ScoreMaps(
        in_spec=SPEC, num_classes=CLASSES, pool=pool_of(), cls_loss=CrossEntropy(), hidden=6, norm="bn"
    ).train()
    seen = []
    network.hidden.register_forward_hook(lambda *call: seen.append(call[2]))
    network.maps([10 + torch.randn(2, 5, 6, 8)])
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="norm=bn normalises the hidden maps, and hidden=null makes none: norm=null"):
        ScoreMaps(in_spec=SPEC, num_classes=CLASSES, pool=pool_of(), cls_loss=CrossEntropy(), norm="bn")


def test_a_bin_learns_in_its_own_channels_alone():
    pool = pool_of()
    maps = torch.zeros(1, DEPTH * K * K, 6, 8, requires_grad=True)
    pool([maps], [BOXES], IMAGES)[0, 2, 1, 0].backward()
    assert maps.grad.flatten(2).abs().sum(2)[0].nonzero().flatten().tolist() == [3 * DEPTH + 2]


def test_the_background_starts_as_the_loss_wants_it():
    loss = CrossEntropy(prior_prob=0.1)
    network = ScoreMaps(in_spec=SPEC, num_classes=CLASSES, pool=pool_of(), cls_loss=loss)
    assert torch.equal(network.score_maps.bias, loss.initial_bias(CLASSES).repeat(K * K))


def test_another_pool_is_refused():
    words = "ScoreMaps makes other maps for each bin, which a RoIAlign does not read so: choose a position-sensitive"
    with pytest.raises(ConfigError, match=words):
        small_rfcn("region_pool@model.head.roi.pool=RoIAlign")
    with pytest.raises(ValueError, match=r"3 x 3 bins needs maps of a multiple of 9 channels, not 10"):
        pool_of().out_channels(10)


def test_deformable_bins_start_where_they_lie():
    """A fresh deformable pool is the plain one, and the maps that move its bins learn."""
    plain, deformable = pool_of(), pool_of(deformable=True)
    assert deformable.out_channels(3 * K * K * DEPTH) == DEPTH
    networks = network_of(plain), network_of(deformable)
    networks[1].load_state_dict(networks[0].state_dict(), strict=False)
    x = torch.randn(1, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    raws = [n(p(n.maps([x]), [BOXES], IMAGES)) for n, p in zip(networks, (plain, deformable), strict=True)]
    torch.testing.assert_close(raws[0].logits, raws[1].logits)
    torch.testing.assert_close(raws[0].deltas, raws[1].deltas)
    raws[1].logits[:, 0].sum().backward()
    learnt = networks[1].move_maps.bias.grad.view(K * K, DEPTH, 2)
    assert (learnt[:, 0] != 0).all()
    assert not learnt[:, 1:].any(), "each class has moves of its own"


def test_a_move_of_ten_is_one_box():
    """gamma is 0.1: dx = 10 reads what lies a box's width to the right, for that channel and bin alone."""
    pool = pool_of(deformable=True)
    scores = torch.randn(1, DEPTH * K * K, 6, 8, generator=torch.Generator().manual_seed(0))
    moves = torch.zeros(1, K * K, DEPTH, 2, 6, 8)
    moves[:, 4, 1, 0] = 10
    box = torch.tensor([[16.0, 16.0, 48.0, 64.0]])
    moved = pool([torch.cat([scores, moves.flatten(1, 3)], 1)], [box], IMAGES)
    here, beside = (pool_of()([scores], [box + torch.tensor([dx, 0, dx, 0])], IMAGES) for dx in (0.0, 32.0))
    expected = here.clone()
    expected[0, 1, 1, 1] = beside[0, 1, 1, 1]
    torch.testing.assert_close(moved, expected)


def test_score_maps_are_made_once_and_the_hardest_regions_make_the_loss(monkeypatch):
    """Of all proposals the head learns from those that a sort by their loss puts first."""
    detector = small_rfcn("model.head.roi.sampler.num=12")
    roi, calls, seen = detector.head.roi, [], []
    maps_of, pick = roi.network.maps, HardExamples.of_batch

    def picked(sampler, assignments, generators, losses):
        seen.extend(own[a.matched != IGNORED] for own, a in zip(losses, assignments, strict=True))
        return pick(sampler, assignments, generators, losses)

    monkeypatch.setattr(roi.network, "maps", lambda features: calls.append(1) or maps_of(features))
    monkeypatch.setattr(HardExamples, "of_batch", picked)
    given, targets = batch()
    terms = detector(given, targets).terms
    assert len(calls) == 1
    hardest = torch.cat([losses.sort(descending=True).values[:12] for losses in seen])
    assert 24 == len(hardest) < sum(map(len, seen))
    torch.testing.assert_close(terms["roi_cls"] + terms["roi_box"], hardest.mean())
    (terms["roi_cls"] + terms["roi_box"]).backward()
    assert roi.network.score_maps.weight.grad.any()


def test_deformable_rfcn_is_an_argument_each():
    detector = small_rfcn("model.head.roi.pool.deformable=true", "model.backbone.stage_conv=[conv,conv,conv,deform]")
    given, targets = batch()
    detector(given, targets).total.backward()
    without = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert detector.backbone.layer4[0].conv2.offset.dilation == (2, 2)
    assert len(detector(given)) == 2


def test_any_head_of_regions_takes_hard_examples():
    overrides = ["model/backbone=resnet18", *SMALL, "model.head.roi.network.hidden=[64]"]
    for slot in ("rpn", "roi"):
        sampler = f"model.head.{slot}.sampler"
        overrides += [f"sampler@{sampler}=HardExamples", f"~{sampler}.positive_share"]
    detector = build_model("faster_rcnn_fpn", CATEGORIES, overrides)
    given, targets = batch()
    assert detector(given, targets).total.isfinite()
