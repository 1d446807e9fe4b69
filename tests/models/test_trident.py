"""TridentNet: branches that share weights, what each of them may learn, and how they come together."""

import dataclasses

import pytest
import torch

from detkit.config import ConfigError
from detkit.matching import IGNORED, NEGATIVE, Assignment, BalancedSampler
from detkit.models.backbones import MobileNetV2, ResNet
from detkit.models.heads.trident import _of_any
from detkit.models.layers import TridentConv, one_branch
from detkit.structures import Affine, Categories, Images, SizeRange
from tests.models.builders import build_awake, build_model, small, target
from tests.models.test_contracts import batch

CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
BACKBONES = [
    (ResNet, {"depth": 18, "norm": "bn", "width": 16, "levels": (3, 4)}),
    (ResNet, {"depth": 50, "norm": "bn", "width": 16, "levels": (5,), "dilate_last": True, "frozen_stages": 5}),
    (MobileNetV2, {"norm": "frozen_bn", "dilate_last": True}),
]


def small_trident(*overrides):
    torch.manual_seed(0)
    return build_model("tridentnet", CATEGORIES, [*small("tridentnet"), *overrides])


def sized(side):
    """A square object of ``side`` px."""
    return [0.0, 0.0, side, side]


@pytest.mark.parametrize(("kind", "options"), BACKBONES)
@torch.no_grad()
def test_each_branch_is_the_plain_backbone_of_its_dilation_on_the_same_weights(kind, options):
    torch.manual_seed(0)
    trident = kind(weights=None, trident=(1, 2, 3), **options).eval()
    maps = trident(PIXELS)
    assert [len(m) for m in maps] == [6] * len(maps)
    for branch, dilation in enumerate((1, 2, 3)):
        plain = kind(weights=None, trident=(dilation,), **options).eval()
        plain.load_state_dict(trident.state_dict())  # names and shapes are equal
        assert plain.num_branches == 1
        assert not any(isinstance(m, TridentConv) for m in plain.modules()), "no second class"
        for ours, alone, copied in zip(maps, plain(PIXELS), one_branch(trident, branch)(PIXELS), strict=True):
            torch.testing.assert_close(ours.chunk(3)[branch], alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))
            assert torch.equal(copied, alone)
    first, middle, _ = maps[-1].chunk(3)
    assert (first - middle).abs().max() > 0.01 * first.abs().max()


@torch.no_grad()
def test_of_three_branches_the_middle_one_is_the_dilated_stage():
    """What ImageNet's weights were trained for where the stride is gone; and dilation 1 is the stage as it was."""
    torch.manual_seed(0)
    options = {"weights": None, "depth": 18, "norm": "bn"}
    trident = ResNet(trident=(1, 2, 3), dilate_last=True, **options).eval()
    dilated, plain = ResNet(dilate_last=True, **options).eval(), ResNet(trident=(1,), **options).eval()
    dilated.load_state_dict(trident.state_dict())
    first = dilated.layer4[0].conv2  # which has no branches, and so keeps its holes
    assert first.dilation == (2, 2)
    torch.testing.assert_close(trident(PIXELS)[-1][2:4], dilated(PIXELS)[-1], rtol=1e-4, atol=1e-4)
    strided = ResNet(**options).eval()
    strided.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain(PIXELS)[-1], strided(PIXELS)[-1])


def test_branches_share_what_they_learn():
    backbone = ResNet(weights=None, depth=18, norm="bn", width=16, frozen_stages=0, levels=(4,), trident=(1, 2, 3))
    weight = backbone.layer3[1].conv1.weight
    maps = backbone(PIXELS)[0].chunk(3)
    each = [torch.autograd.grad(m.sum(), weight, retain_graph=True)[0] for m in maps]
    whole = torch.autograd.grad(sum(m.sum() for m in maps), weight)[0]
    torch.testing.assert_close(whole, sum(each), rtol=1e-3, atol=1e-3)
    assert all(g.any() for g in each)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trident": ()}, "trident must be different dilations of at least 1"),
        ({"trident": (1, 1, 2)}, r"trident must be .*, such as \[1, 2, 3\], not \[1, 1, 2\]"),
        ({"trident": (1, 2), "stage_conv": ("conv", "conv", "conv", "deform")}, "last stage are deformable"),
    ],
)
def test_branches_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ResNet(weights=None, **options)


def test_head_and_backbone_must_speak_of_the_same_branches():
    with pytest.raises(
        ConfigError, match=r"trident makes 3 branches, but model.head \(TwoStageHead\) has one: model/head=tr"
    ):
        build_model("faster_rcnn_fpn", CATEGORIES, [*small("faster_rcnn_fpn"), "model.backbone.trident=[1,2,3]"])
    with pytest.raises(ConfigError, match=r"trident makes 2 branches, but .* \(TridentHead\) has valid_ranges for 3"):
        small_trident("model.backbone.trident=[1,2]")
    assert small_trident("model.backbone.trident=[1,2]", "model.head.valid_ranges=null")


def test_the_published_ranges_at_their_borders():
    """(0, 90), (30, 160), (90, inf) on sqrt(w h), borders included: which branches learn an object of each size."""
    head = small_trident().head
    given, _ = batch()
    seen = head.seen(given, 3)
    assert len(seen) == 6
    ranges = [seen.meta[2 * branch].valid_range for branch in range(3)]
    assert ranges == [seen.meta[2 * branch + 1].valid_range for branch in range(3)]
    sides = {29.99: "0", 30.0: "01", 89.99: "01", 90.0: "012", 90.01: "12", 160.0: "12", 160.01: "2", 1000.0: "2"}
    for side, branches in sides.items():
        box = torch.tensor([[0.0, 0.0, side / 2, 2 * side]])
        assert "".join(str(b) for b in range(3) if ranges[b].holds(box)) == branches, side


@pytest.mark.parametrize(("of_original", "scale"), [(True, 2.0), (False, 1.0)])
def test_ranges_may_count_px_of_the_original_image(of_original, scale):
    """One that was made twice as large: an object of 90 px there has 180 in the input."""
    head = small_trident(f"model.head.of_original={of_original}").head
    given, _ = batch()
    metas = [dataclasses.replace(m, affine=Affine(-2.0, 2.0, 5.0, 0.0)) for m in given.meta]
    seen = head.seen(Images(given.pixels, (metas[0], dataclasses.replace(metas[1], affine=None))), 3)
    ranges = [meta.valid_range for meta in seen.meta]
    published = [SizeRange(0, 90), SizeRange(30, 160), SizeRange(90)]
    assert ranges[::2] == [SizeRange(r.low * scale, r.high * scale) for r in published]
    assert ranges[1::2] == published, "a picture that was put together is its own original"


def losses_of(head, features, side):
    given, _ = batch(sizes=((64, 96),))
    features = [f.clone().requires_grad_() for f in features]
    found = head.loss(features, given, [target([8.0, 8.0, 8.0 + side, 8.0 + side])])
    boxes = found.terms["rpn_box"] + found.terms["roi_box"]
    return torch.autograd.grad(boxes, features)[0].flatten(1).abs().sum(1)


def test_a_box_out_of_range_gives_a_branch_exactly_no_gradient():
    """In both stages: a branch whose range leaves an object out learns nothing from its box."""
    head = small_trident(
        "model.head.valid_ranges=[[0,20],[10,40],[30,null]]", "model.head.inner.rpn.anchors.scales=[1.0,2.0]"
    ).head
    features = [torch.randn(3, 256, 4, 6, generator=torch.Generator().manual_seed(0))]
    for side, learns in ((12.0, [True, True, False]), (25.0, [False, True, False]), (36.0, [False, True, True])):
        assert [bool(g > 0) for g in losses_of(head, features, side)] == learns, side


def test_each_branch_draws_its_own_samples(monkeypatch):
    """Of the same assignment: a draw that is shared would leave two thirds of the regions unseen."""
    detector = small_trident("model.head.valid_ranges=null", "model.head.inner.rpn.sampler.num=16")
    drawn = []
    pick = BalancedSampler.of_batch

    def watched(sampler, assignments, generators, losses=None):
        found = pick(sampler, assignments, generators, losses)
        drawn.extend((assignment.matched, chosen) for assignment, chosen in zip(assignments, found, strict=True))
        return found

    monkeypatch.setattr(BalancedSampler, "of_batch", watched)
    given, targets = batch()
    detector(given, targets)
    for image in range(2):
        (same, first), (matched, second), (_, third) = drawn[image:6:2]
        assert torch.equal(same, matched)
        assert not torch.equal(first[1], second[1])
        assert not torch.equal(second[1], third[1])
    before = list(drawn[:6])
    drawn.clear()
    detector(given, targets)
    assert all(torch.equal(a[1][1], b[1][1]) for a, b in zip(before, drawn[:6], strict=True)), "and again the same"


@torch.no_grad()
def test_a_branch_finds_its_sizes_alone_and_overlaps_go():
    detector = build_awake("tridentnet", CATEGORIES).eval()
    head = detector.head
    head.valid_ranges = (SizeRange(0, 30), SizeRange(20, 50), SizeRange(40))
    given, _ = batch(sizes=((64, 96),))
    features = detector.neck(PIXELS[:1], detector.backbone)
    of_branches = head.inner.predict(features, head.seen(given, 3))
    assert all(len(f) for f in of_branches)
    for found, sizes in zip(of_branches, head.valid_ranges, strict=True):
        assert sizes.holds(found.boxes).all()
    together = torch.cat([f.boxes for f in of_branches])
    (merged,) = head.predict(features, given)
    assert 0 < len(merged) < len(together)
    assert (merged.boxes[:, None] == together).all(2).any(1).all(), "nothing but what a branch has found"
    assert merged.scores[0] == max(f.scores[0] for f in of_branches)
    head.selector.max_detections = 1000
    (all_kept,) = head.predict([f[:1].repeat(3, 1, 1, 1) for f in features], given)
    (of_one,) = head.inner.predict([f[:1] for f in features], given)
    assert len(all_kept) <= len(of_one), "three equal branches find each thing once"


@torch.no_grad()
def test_fast_inference_is_the_inner_head_on_the_middle_branch():
    three, fast = (build_awake("tridentnet", CATEGORIES).eval() for _ in range(2))
    options = {"weights": None, "depth": 18, "norm": "bn", "width": 16, "levels": (4,), "frozen_stages": 0}
    fast.backbone = ResNet(trident=(2,), **options).eval()
    fast.load_state_dict(three.state_dict())
    given, _ = batch()
    (one, two), expected = (
        fast(given),
        fast.head.inner.predict(fast.neck(normalized(fast, given), fast.backbone), given),
    )
    assert torch.equal(one.boxes, expected[0].boxes)
    assert torch.equal(two.scores, expected[1].scores)
    middle = [f.chunk(3)[1] for f in three.neck(normalized(three, given), three.backbone)]
    torch.testing.assert_close(three.head.inner.predict(middle, given)[0].boxes, one.boxes, rtol=1e-3, atol=1e-2)


def normalized(detector, given: Images):
    return (given.pixels.float() - detector.pixel_mean) / detector.pixel_std


def test_the_audit_counts_what_any_branch_answers_for():
    head = small_trident("model.head.inner.rpn.anchors.scales=[1.0,2.0]").head
    given, _ = batch(sizes=((64, 96),))
    objects = target(sized(16.0), [48.0, 24.0, 80.0, 56.0])
    whole = head.inner.assign([(4, 6)], given, [objects])[0]
    head.valid_ranges = (SizeRange(0, 20), SizeRange(25, 40), SizeRange(90))
    (found,) = head.assign([(4, 6)], given, [objects])
    assert set(found.matched[found.matched >= 0].tolist()) == {0, 1}
    assert ((whole.matched >= 0) <= (found.matched >= 0)).all()
    head.valid_ranges = (SizeRange(50), SizeRange(60), SizeRange(90))
    assert not (head.assign([(4, 6)], given, [objects])[0].matched >= 0).any()


def test_one_branch_keeps_keys_and_ranges_as_they_are():
    given, _ = batch()
    assert small_trident().head.seen(given, 1) is given
    keys = {meta.key for meta in small_trident().head.seen(given, 3).meta}
    assert len(keys) == 6
    assert dataclasses.replace(given.meta[0]).key not in keys


def test_an_object_of_one_branch_is_no_background_of_another():
    """An object where any branch has one, ignored only where none has more to say."""
    branches = ([NEGATIVE, 1, IGNORED, NEGATIVE], [0, 2, NEGATIVE, IGNORED])
    first, second = (Assignment(torch.tensor(m)) for m in branches)
    assert _of_any([first, second]).matched.tolist() == [0, 1, NEGATIVE, NEGATIVE]
