"""MTCNN's networks and its cascade: the published numbers, plain loops, and each step by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from detkit.matching.cascade import last_detections, unsuppressed
from detkit.matching.groups import nms_over_smaller
from detkit.models.mtcnn.cascade import CascadeSettings, first_stage, run_cascade, second_stage
from detkit.models.mtcnn.crops import area_crops, integral_image, moved, pixel_ranges, placed, squared
from detkit.models.mtcnn.nets import ONet, PNet, RNet
from detkit.models.mtcnn.pyramid import normalized, pyramid_scales, scaled_image, windows
from detkit.structures import Detections
from tests.models.mtcnn import reference
from tests.models.mtcnn.published import GOLDEN, image_folder, published_nets

STAGES = GOLDEN["stages"]


@torch.no_grad()
def test_each_network_gives_the_published_outputs():
    g = torch.Generator().manual_seed(0)
    inputs = [torch.rand(s, generator=g) * 2 - 1 for s in ((1, 3, 40, 52), (2, 3, 24, 24), (2, 3, 48, 48))]
    p, r, o = (net(x) for net, x in zip(published_nets(), inputs, strict=True))
    assert [list(p.deltas.shape), list(p.logits.shape)] == STAGES["pnet"]["shape"]
    assert p.deltas.sum().item() == pytest.approx(STAGES["pnet"]["reg_sum"], abs=1e-4)
    close(p.logits.softmax(1)[0, 1, :2, :3].flatten(), STAGES["pnet"]["prob1"])
    for answers, golden in ((r, STAGES["rnet"]), (o, STAGES["onet"])):
        close(answers.deltas, golden["reg"])
        close(answers.logits.softmax(1), golden["prob"])
    close(o.landmarks, STAGES["onet"]["landmarks"])


def close(found, golden, atol=1e-6):
    torch.testing.assert_close(found, torch.tensor(golden), rtol=0, atol=atol)


@torch.no_grad()
def test_the_fully_convolutional_network_equals_sliding_its_window():
    torch.manual_seed(0)
    net, pixels = PNet(), torch.rand(1, 3, 41, 52) * 2 - 1
    whole = net(pixels)
    assert whole.logits.shape[2:] == (16, 21)
    for i in range(15):  # the last row's window reaches beyond the image: ceil mode
        crops = torch.cat([pixels[:, :, 2 * i : 2 * i + 12, 2 * j : 2 * j + 12] for j in range(21)])
        alone = net(crops)
        assert alone.logits.shape == (21, 2, 1, 1)
        torch.testing.assert_close(whole.logits[0, :, i].T, alone.logits[:, :, 0, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(whole.deltas[0, :, i].T, alone.deltas[:, :, 0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("golden", GOLDEN["images"], ids=lambda g: g["file"])
@torch.no_grad()
def test_the_published_weights_find_what_was_published(golden):
    image = np.array(Image.open(image_folder() / golden["file"]).convert("RGB"))
    assert list(image.shape[:2]) == golden["size"]
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    found = run_cascade(published_nets(), pixels, CascadeSettings())
    order = torch.tensor(golden["scores"]).argsort(descending=True, stable=True)
    close(found.boxes, torch.tensor(golden["boxes"])[order].tolist(), 0.05)
    close(found.scores, torch.tensor(golden["scores"])[order].tolist(), 1e-4)
    close(found.landmarks, torch.tensor(golden["landmarks"])[order].tolist(), 0.05)


def talkative(num_classes):
    """Random networks of which a good share of the answers pass."""
    torch.manual_seed(3)
    nets = PNet(), RNet(), ONet(num_classes, num_landmarks=2)
    for net, layer in zip(nets, ("conv4_1", "dense5_1", "dense6_1"), strict=True):
        getattr(net, layer).weight.data *= 30
    for net, layer in zip(nets, ("conv4_2", "dense5_2", "dense6_2"), strict=True):
        getattr(net, layer).weight.data *= 2
    return nets


def inside(row, height, width):
    """detkit's departure: of a detection beside the image nothing is left when it is clipped, so that it goes."""
    sides = min(row[2], width) - max(row[0], 0), min(row[3], height) - max(row[1], 0)
    return min(sides) >= 1e-2


@pytest.mark.parametrize("num_classes", [1, 3])
@torch.no_grad()
def test_the_cascade_is_that_of_plain_loops(num_classes):
    nets = talkative(num_classes)
    thresholds = (0.6, 0.55, 0.5)
    g = torch.Generator().manual_seed(5)
    pixels = F.interpolate(torch.rand(1, 3, 15, 20, generator=g) * 255, size=(61, 83), mode="bilinear")[0].round()
    wanted = [row for row in reference.detect(nets, pixels, thresholds=thresholds) if inside(row, 61, 83)]
    found = run_cascade(nets, pixels, CascadeSettings(thresholds=thresholds))
    assert len(wanted) > 8
    assert num_classes == 1 or len({row[5] for row in wanted}) > 1
    close(found.boxes, [row[:4] for row in wanted], 1e-3)
    close(found.scores, [row[4] for row in wanted], 1e-5)
    assert found.labels.tolist() == [row[5] for row in wanted]
    close(found.landmarks, [row[6] for row in wanted], 1e-3)


@torch.no_grad()
def test_images_of_a_batch_are_looked_at_as_each_alone():
    pnet, rnet, _ = talkative(1)
    how = CascadeSettings(thresholds=(0.6, 0.55, 0.5), max_candidates=20)
    g = torch.Generator().manual_seed(6)
    sums = [integral_image(torch.rand(3, h, w, generator=g) * 255) for h, w in ((61, 83), (10, 300), (90, 50))]
    first = first_stage(pnet, sums, how)
    second = second_stage(rnet, sums, first, how)
    assert [len(boxes) > 3 for boxes in second] == [True, False, True]
    assert len(first[1]) == 0, "too small for any scale"
    for one, boxes, left in zip(sums, first, second, strict=True):
        [alone] = first_stage(pnet, [one], how)
        assert torch.equal(alone, boxes)
        assert torch.equal(second_stage(rnet, [one], [alone], how)[0], left)
    assert first_stage(pnet, sums[1:2], how)[0].shape == (0, 4)


def test_scales_begin_where_the_least_object_fills_a_window():
    assert pyramid_scales((100, 60), 20.0, 0.709) == pytest.approx([0.6, 0.6 * 0.709, 0.6 * 0.709**2, 0.6 * 0.709**3])
    assert pyramid_scales((100, 20), 20.0, 0.709) == pytest.approx([0.6]), "12 px are enough"
    assert pyramid_scales((100, 19), 20.0, 0.709) == []


def test_images_of_the_pyramid_are_means_of_areas_a_pixel_larger_than_the_share():
    pixels = torch.arange(48.0).view(1, 1, 6, 8).expand(1, 3, 6, 8)
    small = scaled_image(integral_image(pixels[0]), 0.5)
    assert small.shape == (1, 3, 4, 5)
    assert small[0, 0, 0, 0] == pytest.approx((0 + 1 + 8 + 9) / 4), "rows 0 to 1.5, columns 0 to 1.6: all they touch"


@pytest.mark.parametrize(("size", "scale"), [((61, 83), 0.6), ((61, 83), 0.21), ((12, 40), 1.0), ((20, 13), 1.7)])
def test_images_of_the_pyramid_are_those_of_interpolation_by_areas(size, scale):
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) * 255
    wanted = F.interpolate(pixels[None], size=[int(side * scale + 1) for side in size], mode="area")
    torch.testing.assert_close(scaled_image(integral_image(pixels), scale), wanted, rtol=0, atol=1e-4)


def test_pixels_are_normalised_as_published():
    assert normalized(torch.tensor([0.0, 127.5, 255.0])).tolist() == [-0.99609375, 0.0, 0.99609375]


def test_windows_count_from_one_and_stand_on_whole_pixels():
    boxes = windows(torch.tensor([[0, 0], [4, 5]]), 0.43)
    assert boxes.tolist() == [[2, 2, 27, 27], [25, 20, 51, 46]]


def test_boxes_are_made_square_about_their_centre():
    assert squared(torch.tensor([[10.0, 20.0, 14.0, 30.0]])).tolist() == [[7, 20, 17, 30]]


def test_sides_are_longer_by_a_pixel_in_the_later_stages():
    box, deltas = torch.tensor([[10.0, 20.0, 29.0, 59.0]]), torch.tensor([[0.1, -0.1, 0.2, 0.5]])
    torch.testing.assert_close(moved(box, deltas, RNet.extra), torch.tensor([[12.0, 16.0, 33.0, 79.0]]))
    torch.testing.assert_close(moved(box, deltas, PNet.extra), torch.tensor([[11.9, 16.1, 32.8, 78.5]]))


def test_landmarks_count_in_longer_sides_from_a_pixel_before_the_box():
    points = placed(torch.tensor([[0.0, 0.5, 1.0, 0.25]]), torch.tensor([[10.0, 20.0, 29.0, 59.0]]))
    assert points.tolist() == [[[9.0, 59.0], [19.0, 29.0]]]


def test_crops_begin_a_pixel_early_and_end_in_the_image():
    boxes = torch.tensor(
        [[5.9, 7.2, 17.9, 19.9], [-3.7, 0.4, 9.0, 8.0], [30.0, 30.0, 90.0, 90.0], [-9.0, 3.0, 0.9, 9.0]]
    )
    ranges = pixel_ranges(boxes, (50, 40))
    assert ranges[:3].tolist() == [[4, 6, 17, 19], [0, 0, 9, 8], [29, 29, 40, 50]]
    assert ranges[3, 2] <= ranges[3, 0], "nothing is left of a box beside the image"


def test_crops_are_those_of_area_interpolation():
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 70, 90), generator=g).float()
    ranges = torch.tensor([[0, 0, 90, 70], [3, 5, 4, 6], [10, 20, 34, 44], [50, 1, 59, 68], [80, 60, 90, 70]])
    crops = area_crops(integral_image(pixels), ranges, 24)
    for (x1, y1, x2, y2), crop in zip(ranges.tolist(), crops, strict=True):
        wanted = F.interpolate(pixels[None, :, y1:y2, x1:x2], size=(24, 24), mode="area")[0]
        torch.testing.assert_close(crop, wanted, rtol=0, atol=1e-4)


def test_suppression_by_the_union_among_the_first_proposals():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.9], [0.0, 0.0, 10.0, 7.1]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    [kept] = unsuppressed([boxes], [scores], [(20, 20)], 0.7, None, "P-Net")
    assert kept.tolist() == [0, 1]
    apart = torch.tensor([[0.0, 0.0, 20.0, 20.0], [5.0, 0.0, 25.0, 20.0]])
    [kept] = unsuppressed([apart], [scores[:2]], [(30, 30)], 0.6, None, "P-Net")
    assert kept.tolist() == [0, 1], "an IoU of 0.6 is none of more than 0.6"

    several = [boxes, boxes[:0], boxes.flip(0)], [scores, scores[:0], scores.flip(0)], [(20, 20)] * 3
    kept = unsuppressed(*several, 0.7, None, "P-Net")
    assert [k.tolist() for k in kept] == [[0, 1], [], [2, 1]], "no image knows of another's boxes"
    kept = unsuppressed(*several, 0.7, 1, "P-Net")
    assert [k.tolist() for k in kept] == [[0], [], [2]]


def test_the_last_suppression_is_by_the_smaller_area_with_longer_sides():
    boxes = torch.tensor([[0.0, 0.0, 19.0, 19.0], [5.0, 5.0, 9.0, 9.0], [13.0, 0.0, 22.0, 9.0], [14.0, 0.0, 23.0, 9.0]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64)
    assert nms_over_smaller(boxes, scores, labels, 0.7, extra=1.0).tolist() == [0, 2], "7 of 10 columns are not more"
    assert nms_over_smaller(boxes, scores, torch.tensor([0, 1, 0, 1]), 0.7, extra=1.0).tolist() == [0, 1, 2, 3]
    assert nms_over_smaller(boxes[:0], scores[:0], labels[:0], 0.7).tolist() == []
    found = Detections(boxes, scores, labels)
    assert last_detections(found, (40, 40), 0.7, 1, "O-Net").tolist() == [0], "and the best so many"
    beside = Detections(boxes - 30, scores, labels)
    assert last_detections(beside, (40, 40), 0.7, 9, "O-Net").tolist() == []
