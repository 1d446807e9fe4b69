"""SNIP on an image pyramid: each scale is an image of its own, with objects of its sizes, in all stages of any head."""

import pytest
import torch

from detkit.app.assemble.schema import TrainSchema
from detkit.app.cli.composer import Composer
from detkit.config import ConfigError, validate
from detkit.evaluation.causes import Cause, explain_missed, find_trails
from detkit.evaluation.errors import image_errors
from detkit.matching import IGNORED, Fate, Selector, SoftNMS, tracing
from detkit.models import build_detector
from detkit.models.heads.scales import ScaleHead, side_at
from detkit.models.interfaces import Head
from detkit.structures import Affine, Categories, Detections, FeatureSpec, SizeRange
from detkit.structures.boxes import paired_iou, pairwise_iou
from tests.evaluation.test_errors import CATEGORIES as PETS
from tests.evaluation.test_errors import results_of, truth_of
from tests.models.builders import SMALL, build_awake, build_model, images, small, target
from tests.models.test_contracts import batch

COMPOSER = Composer(keep=True)
CATEGORIES = Categories(("a", "b", "c"), (1, 4, 9))
RANGES = "model.head.valid_ranges=[[0,20],[10,40],[30,null]]"


def small_snip(*overrides):
    torch.manual_seed(0)
    return build_model("faster_rcnn_snip", CATEGORIES, [*small("faster_rcnn_snip"), RANGES, *overrides])


def maps(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 256, 64 // s, 96 // s, generator=g, requires_grad=True) for s in (8, 16, 32)]


@pytest.mark.parametrize(
    ("side", "learns"), [(8.0, [1, 0, 0]), (14.0, [1, 1, 0]), (26.0, [0, 1, 0]), (36.0, [0, 1, 1]), (50.0, [0, 0, 1])]
)
def test_a_box_out_of_range_gives_a_scale_exactly_no_gradient(side, learns):
    """In the first stage and in the second: not a bit of its box reaches a map whose scale does not answer for it."""
    head = small_snip("model.head.inner.rpn.anchors.scales=[1.0,2.0,4.0]").head
    given, objects = images((64, 96)), [target([8.0, 8.0, 8.0 + side, 8.0 + side])]
    for term in ("rpn_box", "roi_box"):
        features = maps()
        gradients = torch.autograd.grad(head.loss(features, given, objects).terms[term], features)
        assert [int(g.any()) for g in gradients] == learns, term


def test_no_class_is_learnt_on_a_forbidden_object_in_either_stage():
    """Of all anchors and regions in the losses, as many as there are, none overlaps it by more than SNIP's 0.3."""
    every = [f"model.head.inner.{stage}.sampler.num=100000" for stage in ("rpn", "roi")]
    inner = small_snip(*every, "model.head.inner.rpn.anchors.scales=[1.0,2.0,4.0,8.0]").head.inner
    (finest, *_) = small_snip().head.seen(images((64, 96)))
    allowed, forbidden = [4.0, 4.0, 17.0, 17.0], [30.0, 10.0, 80.0, 60.0]
    objects, features = [target(allowed, forbidden)], [maps()[0].detach()]
    anchors = torch.cat(inner.rpn.anchors([(8, 12)], torch.device("cpu")))
    (of_anchors,) = inner.rpn.sample(inner.rpn(features), anchors, finest, objects)
    proposals = torch.cat([anchors, torch.tensor([forbidden])])
    (of_regions,) = inner.roi.sample(inner.roi.network.maps(features), [proposals], finest, objects)
    for boxes in (anchors[of_anchors.index], of_regions.regions):
        assert pairwise_iou(torch.tensor([allowed]), boxes).max() > 0.3
        assert pairwise_iou(torch.tensor([forbidden]), boxes).max() <= 0.3
    assert pairwise_iou(torch.tensor([forbidden]), anchors).max() > 0.3, "there are some that do"


def test_regions_on_a_forbidden_object_are_no_background_either():
    """The ground truth that the second stage adds does not bring it back, and proposals on it are ignored."""
    head = small_snip().head
    (finest, *_) = head.seen(images((64, 96)))
    small_one, large = [4.0, 4.0, 18.0, 18.0], [30.0, 10.0, 80.0, 60.0]
    regions, assignment = head.inner.roi.assign(torch.tensor([large]), target(small_one, large), finest.meta[0])
    assert regions.tolist() == [large, small_one, large]
    assert assignment.matched.tolist() == [IGNORED, 0, IGNORED]


def test_a_scale_is_an_image_of_its_own():
    given, _ = batch(sizes=((64, 96), (50, 71)))
    head = small_snip().head
    assert head.scales == (1.0, 0.5, 0.25)
    views = head.seen(given)
    assert [v.padded_size for v in views] == [(64, 96), (32, 48), (16, 24)]
    assert [v.meta[1].size for v in views] == [(50, 71), (25, 36), (13, 18)]
    assert [v.meta[0].valid_range for v in views] == [SizeRange(0, 20), SizeRange(5, 20), SizeRange(7.5)]
    assert len({m.key for v in views for m in v.meta}) == 6, "each draws its own samples"


def test_the_rounding_of_a_scale_adds_no_px():
    """0.8 / 1.2 is above two thirds in float64: 9 px would be 7 there, one of them padding."""
    assert [side_at(side, 0.8 / 1.2) for side in (9, 15, 16, 900)] == [6, 10, 11, 600]


class Brightest(Head):
    """Finds the brightest cell of its one map, and loses the left sides of its objects."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def loss(self, features, images, targets):
        raise NotImplementedError

    def predict(self, features, images):
        found = []
        for map_, meta in zip(features[0], images.meta, strict=True):
            place = map_[0].flatten().argmax()
            y, x = place // map_.shape[2], place % map_.shape[2]
            box = torch.stack([x, y, x + 1, y + 1]).float()[None] * self.stride
            assert meta.size[0] >= box[0, 3]
            found.append(Detections(box, torch.tensor([0.9]), torch.tensor([0])))
        return found


def test_what_scales_find_lies_over_each_other():
    """A spot of 32 px, bright at every scale, is found at its place by each: the boxes meet in it."""
    features = [torch.zeros(1, 256, 64 // s, 96 // s) for s in (8, 16, 32)]
    for f, s in zip(features, (8, 16, 32), strict=True):
        f[0, 0, 32 // s, 64 // s] = 1.0
    head = small_snip("model.head.valid_ranges=null").head
    head.inner = Brightest(8.0)
    head.selector.nms_iou = None
    (found,) = head.predict(features, images((64, 96)))
    assert sorted(found.boxes.tolist()) == [[64, 32, 64 + s, 32 + s] for s in (8, 16, 32)]


class Doubtful(Brightest):
    """Finds all that is bright in its one map as one object, and hardly believes it."""

    def predict(self, features, images):
        rows, columns = features[0][0, 0].nonzero().unbind(1)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float() * self.stride
        selector = Selector(score_threshold=0.5)
        return [selector.of_each_class(box[None, None], torch.tensor([[0.2]]), images.sizes[0])]


@pytest.mark.parametrize(
    ("box", "seen"),
    [((96.0, 96, 256, 256), (96, 96, 256, 256)), ((160.0, 160, 320, 320), (160, 160, 310, 310))],
    ids=["inside", "over the border, where the sides of scales are rounded up"],
)
def test_the_trace_of_each_scale_lies_where_the_object_is(box, seen):
    """Of 1 / 4 too, where it was found at a quarter of its place: it is not "never proposed"."""
    features = [torch.zeros(1, 256, 320 // s, 320 // s) for s in (8, 16, 32)]
    for f, s in zip(features, (8, 16, 32), strict=True):
        x1, y1, x2, y2 = (int(v) // s for v in box)
        f[0, 0, y1:y2, x1:x2] = 1.0
    head = small_snip("model.head.valid_ranges=null").head
    head.inner = Doubtful(8.0)
    with tracing() as trace:
        (found,) = head.predict(features, images((310, 310)))
    assert len(found) == 0
    assert [s.boxes.tolist() for s in trace.selections if len(s.boxes)] == [[list(seen)]] * 3
    truth = truth_of((*seen[:2], seen[2] - seen[0], seen[3] - seen[1], 0))
    for i in range(0, 6, 2):  # a scale has a selection by score and one by NMS
        trails = find_trails(trace.selections[i : i + 2], truth, Affine())
        (missed,) = explain_missed(image_errors(truth, results_of(), PETS), trails, 0.5)
        assert (missed.cause, missed.candidate.box, missed.iou) == (Cause.LOW_SCORE, seen, 1.0)


@torch.no_grad()
def test_what_scales_keep_in_the_trace_is_what_their_merge_is_given():
    detector = build_awake("faster_rcnn_snip", CATEGORIES).eval()
    given, _ = batch(sizes=((64, 96),))
    with tracing() as trace:
        detector(given)
    *of_scales, merged = trace.selections
    kept = [s.boxes[s.fates == Fate.KEPT] for s in of_scales if len(s.labels) and (s.labels >= 0).all()]
    assert len(torch.cat(kept)) > 100
    ours, theirs = (sorted(boxes.tolist()) for boxes in (torch.cat(kept), merged.boxes))
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
    proposals = torch.cat([s.boxes for s in of_scales if (s.labels < 0).all()])
    assert proposals.amax(dim=0).tolist()[2:] == [96, 64]


def test_losses_are_the_mean_over_scales():
    head = small_snip("model.head.valid_ranges=null").head
    given, objects = images((64, 96)), [target([8.0, 8.0, 40.0, 40.0])]
    features = maps()
    terms = head.loss(features, given, objects).terms
    each = [
        head.inner.loss([f], seen, [target([8.0 * s, 8.0 * s, 40.0 * s, 40.0 * s])]).terms
        for f, seen, s in zip(features, head.seen(given), head.scales, strict=True)
    ]
    for name, term in terms.items():
        torch.testing.assert_close(term, sum(e[name] for e in each) / 3)


@pytest.mark.parametrize("inner", ["retinanet", "centernet", "yolov1"])
def test_any_head_takes_the_scales(inner):
    """The command line puts it there; what the preset says of the head that goes, goes with it."""
    own = ["model/backbone=resnet18", *SMALL, "model.backbone.levels=[4]", RANGES]
    given = ["experiment=quickstart", "model=faster_rcnn_snip", f"model/head@model.head.inner={inner}", *own]
    cfg = COMPOSER(*given).cfg
    validate(cfg, TrainSchema)
    detector = build_detector(cfg.model, CATEGORIES)
    assert isinstance(detector.head, ScaleHead)
    given, targets = batch()
    losses = detector(given, targets)
    assert losses.total.isfinite()
    losses.total.backward()
    assert all(p.grad is not None for p in detector.parameters())
    assert len(detector(given)) == 2


def test_the_audit_sees_the_anchors_of_all_scales_in_place():
    """References of scale after scale; an object is matched by anchors that lie on it in px of the network input."""
    head = small_snip("model.head.inner.rpn.anchors.scales=[1.0,2.0]").head
    shapes = [(8, 12), (4, 6), (2, 3)]
    objects = target([40.0, 24.0, 56.0, 40.0], [8.0, 0.0, 40.0, 32.0])
    (found,) = head.assign(shapes, images((64, 96)), [objects])
    anchors = torch.cat(head.anchors(shapes, torch.device("cpu")))
    assert len(anchors) == len(found.matched) == 6 * (96 + 24 + 6)
    rows = (found.matched >= 0).nonzero().squeeze(1)
    overlap = paired_iou(anchors[rows], objects.boxes[found.matched[rows]])
    assert set(found.matched[rows].tolist()) == {0, 1}
    assert overlap.min() > 0.25
    assert (rows[found.matched[rows] == 0] < 6 * 120).all(), "16 px are out of the range of the last scale"
    inside = torch.cat(head.anchors.inside(shapes, (64, 48), torch.device("cpu")))
    assert torch.equal(inside, anchors[:, [0, 2]].mean(1) < 48)


@torch.no_grad()
def test_soft_nms_is_the_paper_s_merge():
    detector = build_awake("faster_rcnn_snip", CATEGORIES).eval()
    given, _ = batch(sizes=((64, 96),))
    plain = detector(given)[0]
    detector.head.merge = SoftNMS()
    soft = detector(given)[0]
    assert 0 < len(soft) <= 100
    assert (soft.scores.diff() <= 0).all()
    assert soft.scores[0] == plain.scores[0]
    h, w = given.sizes[0]
    assert (soft.boxes[:, 2] <= w).all()
    assert (soft.boxes[:, 3] <= h).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(
        ConfigError, match="valid_ranges for 2 scales, and the neck has 3 maps: choose model/neck=image_pyramid_16"
    ):
        small_snip("model.head.valid_ranges=[[0,20],[10,null]]")
    unequal = FeatureSpec((8, 16), (8.0, 16.0))
    with pytest.raises(ValueError, match=r"scales share a head, and must have equal channels, not \[8, 16\]"):
        ScaleHead(in_spec=unequal, inner=Brightest(8.0), selector=Selector())
    with pytest.raises(ConfigError, match="WBF counts how many scales found a box"):
        small_snip("model.head.merge={_target_:WBF}")
