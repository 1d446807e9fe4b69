"""detkit's Faster R-CNN against torchvision's, with the same weights on the same pixels."""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from detkit.models.converters import UnfitError, from_torchvision, load_converted
from detkit.structures import Categories, ImageMeta, Images, Target
from tests.models.builders import build_model

SIZE = (192, 256)
CATEGORIES = Categories(("red", "green", "blue"), (3, 5, 9))
ALL = 10**6  # samplers that take everything draw nothing at random
#: Two images in a batch of 224 x 224 px, whose side is no multiple of P6's stride of 64.
PADDED_SIZES = ((192, 224), (224, 192))
IN_PADDING = ["model.head.rpn.anchors.in_padding=true", "model.head.roi.pool.in_padding=true"]
TERMS = {
    "rpn_cls": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "roi_cls": "loss_classifier", "roi_box": "loss_box_reg",
}  # fmt: skip


def torchvision_model(num_classes: int):
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=SIZE[0], max_size=SIZE[1],
        rpn_batch_size_per_image=ALL, box_batch_size_per_image=ALL, rpn_post_nms_top_n_train=2000,
    )  # fmt: skip
    freeze_norms(model)
    for module in model.modules():  # random statistics, so that the norms matter, and activations of a trained size
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.eps = 0.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "bn3" in name:
                p.mul_(0.3)
        model.roi_heads.box_predictor.cls_score.weight.mul_(3)
        model.rpn.head.cls_logits.weight.mul_(3)
        model.rpn.head.bbox_pred.weight.mul_(0.3)
    return model


def freeze_norms(module):
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=0.0)
            frozen.weight.fill_(0.3 if name == "bn3" else 1.0)
            setattr(module, name, frozen)
        else:
            freeze_norms(child)


@pytest.fixture(scope="module")
def pair():
    return make_pair([])


def make_pair(overrides):
    theirs = torchvision_model(len(CATEGORIES))
    ours = build_model(
        "faster_rcnn_fpn_torchvision", CATEGORIES,
        [f"model.head.rpn.sampler.num={ALL}", f"model.head.roi.sampler.num={ALL}",
         "model.backbone.frozen_stages=0", *overrides],
    )  # fmt: skip
    state, with_classes = from_torchvision(theirs.state_dict(), CATEGORIES)
    assert with_classes
    assert load_converted(ours, state) == []
    return theirs, ours


@pytest.fixture(scope="module")
def batch():
    return make_batch((SIZE, SIZE))


def make_batch(sizes):
    generator = torch.Generator().manual_seed(1)
    shape = [max(sides) for sides in zip(*sizes, strict=True)]
    pixels = torch.randint(0, 256, (2, 3, *shape), generator=generator, dtype=torch.uint8)
    pixels[:, :, 40:120, 60:180] //= 4
    metas = tuple(ImageMeta(i, f"{i}.png", size, size, key=i) for i, size in enumerate(sizes))
    targets = [
        Target(torch.tensor([[60.0, 40, 180, 120], [5, 5, 30, 40]]), torch.tensor([1, 2]), torch.zeros(2).bool()),
        Target(torch.tensor([[100.0, 20, sizes[1][1] - 6, 190]]), torch.tensor([0]), torch.zeros(1).bool()),
    ]
    return Images(pixels, metas), targets


def as_torchvision_takes_them(images, targets=()):
    pixels = [p[:, :h, :w].float() / 255 for p, (h, w) in zip(images.pixels, images.sizes, strict=True)]
    return pixels, [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]


def test_losses_and_gradients_equal_torchvision(pair, batch):
    theirs, ours = pair
    images, targets = batch
    theirs.train()
    expected = theirs(*as_torchvision_takes_them(images, targets))
    losses = ours(images, targets)
    for name, other in TERMS.items():
        torch.testing.assert_close(
            losses.terms[name], expected[other], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    theirs.zero_grad()
    ours.zero_grad()
    sum(expected.values()).backward()
    losses.total.backward()
    for a, b in (
        (ours.backbone.layer1[0].conv1.weight, theirs.backbone.body.layer1[0].conv1.weight),
        (ours.neck.output[0].weight, theirs.backbone.fpn.layer_blocks[0][0].weight),
        (ours.head.rpn.cls_logits.weight, theirs.rpn.head.cls_logits.weight),
        (ours.head.rpn.bbox_pred.weight, theirs.rpn.head.bbox_pred.weight),
        (ours.head.rpn.conv.weight, theirs.rpn.head.conv[0][0].weight),
        (ours.head.roi.network.fcs[0].weight, theirs.roi_heads.box_head.fc6.weight),
    ):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4 * float(b.grad.abs().max()))


@torch.no_grad()
def test_detections_equal_torchvision(pair, batch):
    theirs, ours = pair
    assert_equal(ours(batch[0]), detections_of(theirs, batch[0]))


@pytest.mark.slow
def test_padded_batches_equal_torchvision_over_several_steps():
    """Losses of each step by the same optimiser, and the detections after it."""
    theirs, ours = make_pair(IN_PADDING)
    images, targets = make_batch(PADDED_SIZES)
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for model in (theirs, ours)]
    theirs.train()
    for _ in range(3):
        expected, losses = theirs(*as_torchvision_takes_them(images, targets)), ours(images, targets)
        for name, other in TERMS.items():
            torch.testing.assert_close(
                losses.terms[name], expected[other], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )
        for optimizer, total in zip(optimizers, (sum(expected.values()), losses.total), strict=True):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    with torch.no_grad():
        assert_equal(ours(images), detections_of(theirs, images))


@torch.no_grad()
def test_padded_batches_equal_torchvision_where_the_padding_is_read(pair, monkeypatch):
    """It takes both switches: without them no image depends on its batch, as torchvision's do."""
    theirs, ours = pair
    images, _ = make_batch(PADDED_SIZES)
    expected = detections_of(theirs, images)
    for part in (ours.head.rpn.anchors, ours.head.roi.pool):
        with pytest.raises(AssertionError, match="not close"):
            assert_equal(ours(images), expected)
        monkeypatch.setattr(part, "in_padding", True)
    assert_equal(ours(images), expected)


def detections_of(theirs, images):
    theirs.eval()
    theirs.rpn._pre_nms_top_n = {"training": 2000, "testing": 1000}
    theirs.rpn._post_nms_top_n = {"training": 2000, "testing": 1000}
    return theirs(as_torchvision_takes_them(images)[0])


def assert_equal(detections, expected):
    for found, wanted in zip(detections, expected, strict=True):
        assert len(wanted["boxes"]) > 5, "a comparison of nothing proves nothing"
        torch.testing.assert_close(found.scores, wanted["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.boxes, wanted["boxes"], rtol=1e-4, atol=1e-2)
        assert torch.equal(found.labels, wanted["labels"] - 1)


def test_published_class_rows_are_matched_by_name():
    state = torchvision_model(90).state_dict()
    state["roi_heads.box_predictor.cls_score.bias"] = torch.arange(91.0)
    converted, with_classes = from_torchvision(state, Categories(("person", "cat", "toothbrush"), (1, 17, 90)))
    assert with_classes
    assert converted["head.roi.network.cls_score.bias"].tolist() == [1.0, 17.0, 90.0, 0.0]


def test_names_before_2022_are_understood():
    state = torchvision_model(3).state_dict()
    old = {
        k.replace("inner_blocks.0.0.", "inner_blocks.0.").replace("head.conv.0.0.", "head.conv."): v
        for k, v in state.items()
    }
    new_keys, old_keys = (set(from_torchvision(s, CATEGORIES)[0]) for s in (state, old))
    assert new_keys == old_keys


def test_other_classes_leave_the_class_layers_out():
    converted, with_classes = from_torchvision(torchvision_model(7).state_dict(), CATEGORIES)
    assert not with_classes
    assert not any("cls_score" in key or "roi.bbox_pred" in key for key in converted)


def test_a_foreign_key_has_a_name_that_no_model_has_and_missing_last_layers_are_named():
    state = {**torchvision_model(3).state_dict(), "mask_head.conv": torch.zeros(1)}
    found, _ = from_torchvision(state, CATEGORIES)
    assert "mask_head.conv (no key of torchvision's Faster R-CNN)" in found
    with pytest.raises(
        UnfitError, match=r"torchvision's .* must have all of its last layers; missing: head\.roi"
    ) as caught:
        from_torchvision({"mask_head.conv": torch.zeros(1)}, CATEGORIES)
    assert list(caught.value.found) == ["mask_head.conv (no key of torchvision's Faster R-CNN)"]
