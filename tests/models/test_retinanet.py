"""RetinaNet's head gives torchvision's losses and detections on the same features."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from detkit.losses import L1, Focal
from detkit.matching import AnchorGrid, DeltaCoder, MaxIoUAssigner, Selector
from detkit.models.heads.retinanet import RetinaHead
from detkit.structures import FeatureSpec, ImageMeta, Images, Target

NUM_CLASSES, CHANNELS, SIZE = 3, 8, (64, 96)
SPEC = FeatureSpec((CHANNELS,) * 3, (8.0, 16.0, 32.0))
SCALES = (3.0, 4.0, 5.0)


def ours(score_threshold=0.05, **options):
    return RetinaHead(
        in_spec=SPEC, num_classes=NUM_CLASSES, anchors=AnchorGrid(in_spec=SPEC, scales=SCALES, rounded=True),
        assigner=MaxIoUAssigner(positive=0.5, negative=0.4, match_best=True), coder=DeltaCoder(), cls_loss=Focal(),
        box_loss=L1(), selector=Selector(score_threshold=score_threshold), **options,
    )  # fmt: skip


@pytest.fixture
def pair():
    """Both heads with the same weights, features and one image."""
    torch.manual_seed(0)
    head = ours(score_threshold=0.005)
    theirs = RetinaNetHead(CHANNELS, head.anchors.num_per_cell, NUM_CLASSES)
    renamed = {
        **{
            f"classification_head.conv.{i}.0.{k}": v
            for i, c in enumerate(head.cls_tower.convs)
            for k, v in c.state_dict().items()
        },
        **{
            f"regression_head.conv.{i}.0.{k}": v
            for i, c in enumerate(head.box_tower.convs)
            for k, v in c.state_dict().items()
        },
        **{f"classification_head.cls_logits.{k}": v for k, v in head.cls_logits.state_dict().items()},
        **{f"regression_head.bbox_reg.{k}": v for k, v in head.bbox_pred.state_dict().items()},
    }
    for value in head.parameters():
        value.data += 0.1 * torch.randn_like(value)
    theirs.load_state_dict(renamed)
    features = [torch.randn(1, CHANNELS, int(SIZE[0] / s), int(SIZE[1] / s)) for s in SPEC.strides]
    images = Images(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), (ImageMeta(0, "0.png", SIZE, SIZE),))
    return head, theirs, features, images


def generator():
    return AnchorGenerator(tuple(tuple(s * scale for scale in SCALES) for s in SPEC.strides), ((0.5, 1.0, 2.0),) * 3)


def torchvision_anchors(features):
    from torchvision.models.detection.image_list import ImageList

    return generator()(ImageList(torch.zeros(1, 3, *SIZE), [SIZE]), features)


def test_losses_are_torchvisions(pair):
    head, theirs, features, images = pair
    boxes = torch.tensor([[5.0, 8.0, 40.0, 30.0], [50.0, 10.0, 90.0, 60.0], [20.0, 40.0, 26.0, 46.0]])
    labels = torch.tensor([0, 2, 1])
    losses = head.loss(features, images, [Target(boxes, labels, torch.zeros(3, dtype=torch.bool))])
    model = RetinaNet(Backbone(), NUM_CLASSES, anchor_generator=generator(), head=theirs)
    expected = model.compute_loss([{"boxes": boxes, "labels": labels}], theirs(features), torchvision_anchors(features))
    torch.testing.assert_close(losses.terms["cls"], expected["classification"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.terms["box"], expected["bbox_regression"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_detections_are_torchvisions(pair):
    head, theirs, features, images = pair
    found = head.predict(features, images)[0]
    model = RetinaNet(
        Backbone(), NUM_CLASSES, anchor_generator=generator(), head=theirs, score_thresh=0.005, detections_per_img=100
    )
    out = theirs(features)
    counts = [f.shape[2] * f.shape[3] * head.anchors.num_per_cell for f in features]
    split = {k: list(v.split(counts, dim=1)) for k, v in out.items()}
    anchors = [list(a.split(counts)) for a in torchvision_anchors(features)]
    expected = model.postprocess_detections(split, anchors, [SIZE])[0]
    assert len(found) > 50
    torch.testing.assert_close(found.scores, expected["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes, expected["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(found.labels, expected["labels"])


def test_a_fresh_head_says_background_with_the_prior():
    raw = ours()([torch.zeros(1, CHANNELS, 8, 12), torch.zeros(1, CHANNELS, 4, 6), torch.zeros(1, CHANNELS, 2, 3)])
    torch.testing.assert_close(torch.cat(raw.logits, 1).sigmoid(), torch.full((1, 1134, NUM_CLASSES), 0.01))


class Backbone(torch.nn.Module):
    """torchvision's model wants one, although it is never run here."""

    out_channels = CHANNELS


def test_an_infinite_output_of_an_anchor_without_an_object_does_not_reach_the_box_loss():
    head = ours()
    images = Images(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), (ImageMeta(0, "0.png", SIZE, SIZE),))
    raw = head([torch.zeros(1, CHANNELS, int(SIZE[0] / s), int(SIZE[1] / s)) for s in SPEC.strides])
    deltas = [d.detach().clone().requires_grad_() for d in raw.deltas]
    target = Target(torch.tensor([[5.0, 8.0, 40.0, 30.0]]), torch.tensor([0]), torch.zeros(1, dtype=torch.bool))
    nothing = Target.empty()
    matched = head.assign(raw.shapes, images, [target])[0].matched
    expected = head.loss_from_raw(raw._replace(deltas=deltas), images, [target]).terms["box"]
    first = int((matched[: deltas[0].shape[1]] < 0).nonzero()[0])
    with torch.no_grad():
        deltas[0][0, first] = torch.inf
    for one, value in ((target, expected), (nothing, 0)):
        box = head.loss_from_raw(raw._replace(deltas=deltas), images, [one]).terms["box"]
        gradients = torch.autograd.grad(box, deltas)  # also without objects: every process of several needs the graph
        assert box == value
        assert all(g.isfinite().all() for g in gradients)
