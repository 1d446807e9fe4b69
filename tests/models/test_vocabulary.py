"""Many classes: boxes for all in one, classes drawn for a step, and counts that reach the losses."""

import dataclasses

import pytest
import torch

from detkit import losses
from detkit.config import ConfigError
from detkit.models import build_detector
from detkit.models.heads.roi import sample_classes, standing_for
from detkit.structures import Categories, Images, Target
from tests.models.builders import build_model, compose_model, small
from tests.models.test_contracts import CATEGORIES, batch
from tests.models.test_plugins import composed

MANY = Categories(tuple(f"c{i}" for i in range(60)), tuple(range(60)))


def build_many(*overrides):
    torch.manual_seed(0)
    return build_model("faster_rcnn_fpn", MANY, [*overrides, *small("faster_rcnn_fpn")])


def spread(targets):
    """The targets with labels all over the vocabulary."""
    return [Target(t.boxes, torch.arange(len(t)) * 13 % 60, t.ignore) for t in targets]


@pytest.mark.parametrize(("most", "boxes"), [(None, 60), (60, 60), (59, 1)])
def test_boxes_are_for_all_classes_in_one_above_a_number_of_them(most, boxes):
    said = [] if most is None else [f"model.head.roi.network.agnostic_above={most}"]
    detector = build_many(*said)
    assert detector.head.roi.network.bbox_pred.out_features == 4 * boxes
    images, targets = batch()
    detector(images, spread(targets)).total.backward()
    assert len(detector(images)) == 2


def test_drawn_classes_are_those_present_and_others_by_the_images_keys():
    labels = torch.tensor([5, 60, 17, 5, 59])
    drawn = sample_classes(labels, 60, 0.25, [3, 8])
    assert len(drawn) == 15
    assert {5, 17, 59} <= set(drawn.tolist()) < set(range(60))
    assert torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, sample_classes(labels.flip(0), 60, 0.25, [8, 3])), "the order of images is nothing"
    assert not torch.equal(drawn, sample_classes(labels, 60, 0.25, [3, 9]))
    assert torch.equal(sample_classes(labels, 60, 0.01, [3]), torch.tensor([5, 17, 59])), "those present are all there"
    assert torch.equal(sample_classes(labels, 60, 1.0, [3]), torch.arange(60))
    often = torch.stack([sample_classes(labels, 60, 0.25, [key]).bincount(minlength=60) for key in range(400)])
    share = often.float().mean(0)[[k for k in range(60) if k not in (5, 17, 59)]]
    assert share.mean().item() == pytest.approx(12 / 57, abs=1e-6)
    assert (share - 12 / 57).abs().max() < 0.1, "each of the others as often"


LOSSES = ["CrossEntropy", "BCE", "NormalizedSoftmax", "ArcFace", "LSoftmax", "ASoftmax", "Seesaw"]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_drawn_classes_is_that_of_their_columns_alone(loss):
    detector = build_many("model.head.roi.class_share=0.4", f"loss@model.head.roi.cls_loss={loss}")
    roi, (images, targets) = detector.head.roi, batch()
    targets = spread(targets)
    losses = detector(images, targets)
    losses.total.backward()
    weight = roi.network.cls_score.weight
    moved = weight.grad.flatten(1).abs().sum(1) > 0
    drawn = moved[:60].sum().item()
    assert drawn == 24
    assert all(moved[label] for t in targets for label in t.wanted.labels.tolist())
    if loss == "CrossEntropy":
        assert moved[60], "background is always there"


def test_drawn_classes_are_a_part_of_the_softmax_by_hand():
    detector = build_many("model.head.roi.class_share=0.4")
    roi, (images, targets) = detector.head.roi, batch()
    features = [torch.randn(2, 256, 16 // 2**i, 24 // 2**i) for i in range(5)]
    proposals = [torch.tensor([[0.0, 0, 30, 30], [20, 10, 60, 60]])] * 2
    targets = spread(targets)
    sampled = roi.sample(features, proposals, images, targets)
    labels = torch.cat([s.labels for s in sampled])
    classes = sample_classes(labels, 60, 0.4, [m.key for m in images.meta])
    logits = roi(features, [s.regions for s in sampled], images).logits
    total, present = 0.0, {label for label in labels.tolist() if label < 60}
    others = (60 - len(present)) / (24 - len(present))  # for so many classes each of those stands that chance has drawn
    assert 0 < len(present) < 24
    for row, label in zip(logits, labels, strict=True):
        weighed = [(1.0 if k in present else others) * row[k].exp() for k in classes.tolist()]
        total += (sum(weighed) + row[60].exp()).log() - row[label]
    torch.testing.assert_close(roi.loss(features, proposals, images, targets).terms["roi_cls"], total / len(labels))
    with torch.no_grad():
        everything = roi.loss(features, proposals, images, targets).terms["roi_cls"]
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(everything, expected, msg="an evaluation has all classes")


def test_drawn_classes_stand_for_those_left_out():
    labels = torch.tensor([3, 0, 5, 0, 5])
    assert standing_for(labels, 5, 62).tolist() == [1, 20, 20, 1, 20], "60 do not occur; 3 of them are drawn"
    assert standing_for(torch.tensor([2, 2]), 2, 60).tolist() == [30, 30]
    assert standing_for(torch.tensor([0, 1, 2]), 2, 60).tolist() == [1, 1], "none is drawn by chance"
    assert standing_for(torch.tensor([0, 60]), 60, 60).tolist() == [1] * 60


@pytest.mark.parametrize("name", [*LOSSES, "SoftmaxFocal", "Focal", "CosFace", "CombinedMargin"])
def test_a_region_loses_as_much_among_drawn_classes_as_among_all(name):
    """With equal logits that holds to the last digits, of background and of an object; so scores stay what they are."""
    loss = getattr(losses, name)()
    classes, among = torch.arange(0, 1000, 10), torch.tensor([7, 100])
    logits = loss.initial_bias(1000).repeat(2, 1)
    of_drawn = torch.cat([logits[:, classes], logits[:, 1000:][:, : loss.num_outputs(100) - 100]], dim=1)
    drawn = loss.of_classes(classes, standing_for(among, 100, 1000))
    torch.testing.assert_close(drawn(of_drawn, among), loss(logits, torch.tensor([70, 1000])))
    ones = loss.of_classes(torch.arange(1000), torch.ones(1000))
    torch.manual_seed(0)
    some, labels = logits + torch.randn_like(logits).abs(), torch.tensor([70, 1000])
    assert torch.equal(ones(some, labels), loss(some, labels)), "all of them"


@pytest.mark.parametrize("name", ["CrossEntropy", "BCE", "NormalizedSoftmax", "Seesaw"])
def test_what_is_added_up_over_classes_is_right_in_the_mean_over_draws(name):
    loss, generator = getattr(losses, name)(), torch.Generator().manual_seed(0)
    logits = torch.randn(1, loss.num_outputs(60), generator=generator)
    label = torch.tensor([13])
    added = (lambda x: x) if name == "BCE" else torch.exp  # a softmax's loss is the logarithm of a sum
    found = []
    for key in range(1000):
        classes = sample_classes(label, 60, 0.3, [key])
        among = torch.searchsorted(classes, label)
        drawn = loss.of_classes(classes, standing_for(among, 18, 60))
        found.append(added(drawn(torch.cat([logits[:, classes], logits[:, 60:]], dim=1), among)))
    expected, spread = added(loss(logits, label)).item(), torch.cat(found).std().item() / 1000**0.5
    assert torch.cat(found).mean().item() == pytest.approx(expected, abs=4 * spread)
    assert spread < 0.05 * expected


def test_the_order_of_the_images_changes_nothing_with_drawn_classes():
    detector = build_many("model.head.roi.class_share=0.3").eval()
    images, targets = batch(seed=3)
    targets = spread(targets)
    one = detector(images, targets).terms
    swapped = Images(images.pixels.flip(0), images.meta[::-1])
    two = detector(swapped, targets[::-1]).terms
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    other = dataclasses.replace(images, meta=tuple(dataclasses.replace(m, key=m.key + 9) for m in images.meta))
    assert detector(other, targets).terms["roi_cls"] != one["roi_cls"]


def test_a_network_that_cannot_leave_classes_out_is_refused():
    slots = "region_network@model.head.roi.network=ScoreMaps region_pool@model.head.roi.pool=PSRoIAlign"
    cfg = composed("faster_rcnn_fpn", slots, "model.head.roi.class_share=0.5")
    with pytest.raises(ConfigError, match="class_share needs a network that takes classes, and ScoreMaps does not"):
        build_detector(cfg.model, CATEGORIES)


def test_the_datas_counts_reach_the_losses_that_ask():
    said = ["loss@model.head.roi.cls_loss=Seesaw", *small("faster_rcnn_fpn")]
    cfg = compose_model("faster_rcnn_fpn", said)
    assert build_detector(cfg, CATEGORIES, (5, 6, 7)).head.roi.cls_loss.class_counts == (5, 6, 7)
    assert build_detector(cfg, CATEGORIES).head.roi.cls_loss.class_counts is None
    said = ["model.head.roi.cls_loss.frequency_bias=true", "model.head.roi.cls_loss.prior_prob=0.25"]
    cfg = compose_model("faster_rcnn_fpn", [*said, *small("faster_rcnn_fpn")])
    bias = build_detector(cfg, CATEGORIES, (7, 0, 15)).head.roi.network.cls_score.bias
    torch.testing.assert_close(bias.softmax(0), torch.tensor([0.08, 0.01, 0.16, 0.75]))
