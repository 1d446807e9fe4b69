"""detkit's RetinaNet against torchvision's, with the same weights on the same pixels."""

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d, box_convert, box_iou

from detkit.models.converters import from_torchvision, load_converted
from detkit.structures import Categories, ImageMeta, Images, Target
from tests.models.builders import build_model
from tests.models.test_torchvision_parity import CATEGORIES, as_torchvision_takes_them, assert_equal, freeze_norms


def torchvision_model(num_classes, size):
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=min(size), max_size=max(size)
    )  # fmt: skip
    freeze_norms(model)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "head.conv" in name and p.ndim == 4:
                p.mul_(2)
            if "bbox_reg" in name and p.ndim == 4:
                p.mul_(0.3)
        last = model.head.classification_head.cls_logits
        last.bias.uniform_(-4, -1)
        last.bias.view(9, -1)[:, 0] = -40  # the class that nothing is; detkit's loss does not have it
        last.weight.view(9, -1, *last.weight.shape[1:])[:, 0] = 0
    return model


def pair(size, *overrides):
    theirs = torchvision_model(len(CATEGORIES), size)
    ours = build_model("retinanet_torchvision", CATEGORIES, ["model.backbone.frozen_stages=0", *overrides])
    state, with_classes = from_torchvision(theirs.state_dict(), CATEGORIES)
    assert with_classes
    assert load_converted(ours, state) == []
    return theirs, ours


def batch(size, count=1):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    pixels[:, :, 40:120, 60:180] //= 4
    metas = tuple(ImageMeta(i, f"{i}.png", size, size, key=i) for i in range(count))
    target = Target(torch.tensor([[60.0, 40, 180, 120], [5, 5, 30, 40]]), torch.tensor([1, 2]), torch.zeros(2).bool())
    return Images(pixels, metas), [target] * count


MANY = ["model.head.selector.max_detections=5000"]


def losses_by_positives(theirs, images, targets):
    """torchvision's losses of a batch with each image counting by its positives, as here; there all count alike."""
    plain = theirs.compute_loss

    def of_each(targets, outputs, anchors):
        parts, counts = [], []
        for i, (target, own) in enumerate(zip(targets, anchors, strict=True)):
            parts.append(plain([target], {name: value[i : i + 1] for name, value in outputs.items()}, [own]))
            counts.append(int((theirs.proposal_matcher(box_iou(target["boxes"], own)) >= 0).sum()))
        assert len(counts) == 1 or len(set(counts)) > 1
        return {k: sum(n * p[k] for n, p in zip(counts, parts, strict=True)) / sum(counts) for k in parts[0]}

    theirs.compute_loss = of_each
    try:
        return theirs(*as_torchvision_takes_them(images, targets))
    finally:
        theirs.compute_loss = plain


def assert_losses_equal(ours, theirs, images, targets):
    theirs.train()
    ours.train()
    expected, losses = losses_by_positives(theirs, images, targets), ours(images, targets)
    torch.testing.assert_close(losses.terms["cls"], expected["classification"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.terms["box"], expected["bbox_regression"], rtol=1e-4, atol=1e-5)


def assert_detections_equal(ours, theirs, images):
    """The best 200 of each image but for those without area, which torchvision keeps; ``ours`` gives 5000."""
    theirs.eval()
    ours.eval()
    theirs.detections_per_img = 5000
    expected = theirs(as_torchvision_takes_them(images)[0])
    large = [box_convert(found["boxes"], "xyxy", "xywh")[:, 2:].amin(dim=1) > 0 for found in expected]
    best = [{k: v[kept][:200] for k, v in f.items()} for f, kept in zip(expected, large, strict=True)]
    found = [d.select(torch.arange(len(b["scores"]))) for d, b in zip(ours(images), best, strict=True)]
    assert_equal(found, best)


@torch.no_grad()
def test_losses_and_detections_of_images_of_different_sizes_equal_torchvision():
    """In one batch, the padding read as there; the second image has one object of the two."""
    sizes = (
        (128, 224),
        (224, 128),
        (128, 160),
    )  # their shorter side is one, so that torchvision leaves them as they are
    theirs = torchvision_model(len(CATEGORIES), (128, 224))
    padded = ["model.head.in_padding=true", "model.head.anchors.in_padding=true"]
    ours = build_model("retinanet_torchvision", CATEGORIES, ["model.backbone.frozen_stages=0", *MANY, *padded])
    load_converted(ours, from_torchvision(theirs.state_dict(), CATEGORIES)[0])
    images, _ = batch((224, 224), len(sizes))
    metas = tuple(ImageMeta(i, f"{i}.png", size, size, key=i) for i, size in enumerate(sizes))
    target = Target(torch.tensor([[10.0, 20, 80, 90], [5, 5, 40, 45]]), torch.tensor([1, 2]), torch.zeros(2).bool())
    few = Target(target.boxes[1:], target.labels[1:], torch.zeros(1).bool())
    images = Images(images.pixels, metas)
    assert_losses_equal(ours, theirs, images, [target, few, target])
    assert_detections_equal(ours, theirs, images)


@pytest.mark.parametrize(
    ("size", "overrides"), [((128, 256), []), ((160, 224), ["model.head.anchors.in_padding=true"])]
)
def test_losses_and_detections_equal_torchvision(size, overrides):
    theirs, ours = pair(size, *overrides)
    images, targets = batch(size)
    assert_losses_equal(ours, theirs, images, targets)
    theirs.eval()
    ours.eval()
    with torch.no_grad():
        images, _ = batch(size, 2)
        assert_equal(ours(images), theirs(as_torchvision_takes_them(images)[0]))


def test_published_rows_are_matched_by_name_and_old_names_are_understood():
    state = torchvision_model(90, (128, 128)).state_dict()
    state["head.classification_head.cls_logits.bias"] = torch.arange(9.0 * 91)
    old = {
        k.replace("head.conv.1.0.", "head.conv.2.").replace("head.conv.3.0.", "head.conv.6."): v
        for k, v in state.items()
    }
    old = {
        k.replace("head.conv.2.0.", "head.conv.4.").replace("head.conv.0.0.", "head.conv.0."): v for k, v in old.items()
    }
    cats = Categories(("person", "cat", "toothbrush"), (1, 17, 90))
    converted, with_classes = from_torchvision(old, cats)
    assert with_classes
    assert converted["head.cls_logits.bias"][:6].tolist() == [1.0, 17.0, 90.0, 92.0, 108.0, 181.0]
    new, _ = from_torchvision(state, cats)
    assert new.keys() == converted.keys()
    assert torch.equal(new["head.cls_tower.convs.2.weight"], converted["head.cls_tower.convs.2.weight"])


def test_what_is_missing_extra_or_misshapen_is_named():
    theirs = torchvision_model(3, (128, 128))
    ours = build_model("retinanet_torchvision", CATEGORIES)
    state = theirs.state_dict()
    more, _ = from_torchvision({**state, "head.mask.weight": torch.zeros(1)}, CATEGORIES)
    with pytest.raises(ValueError, match=r"1 unknown .\"head.mask.weight \(no key of torchvision's RetinaNet\)"):
        load_converted(ours, more)
    state["backbone.fpn.extra_blocks.p6.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"1 of another shape \['neck.extra_convs.0.bias \(7,\) for \(256,\)'\]"):
        load_converted(ours, from_torchvision(state, CATEGORIES)[0])
    del state["backbone.fpn.extra_blocks.p6.bias"]
    assert load_converted(ours, from_torchvision(state, CATEGORIES)[0]) == ["neck.extra_convs.0.bias"]
