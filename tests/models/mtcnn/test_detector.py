"""MTCNN as a detector: its samples, its losses, what starts from published weights, and which stage missed what."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.analysis.waits import watched
from detkit.app.assemble.init_from import initialize
from detkit.config import ConfigError
from detkit.matching import Fate, tracing
from detkit.matching.trace import NO_CLASS
from detkit.models import MTCNN
from detkit.models.heads import common
from detkit.models.mtcnn.crops import integral_image, landmark_targets, moved, placed
from detkit.models.mtcnn.loss import box_targets, hardest_mean, landmark_loss, stage_loss
from detkit.models.mtcnn.nets import Answers, PNet, RNet
from detkit.models.mtcnn.pyramid import windows
from detkit.models.mtcnn.samples import (
    LANDMARKS,
    NEGATIVE,
    PART,
    POSITIVE,
    UNUSED,
    Samples,
    draw_squares,
    label,
    sample,
)  # fmt: skip
from detkit.models.mtcnn.training import TrainingSettings, _chosen, _labelled, _loss_of
from detkit.structures import Categories, ImageMeta, Images, Target
from detkit.utils.seed import generator
from tests.models.builders import images, target
from tests.models.mtcnn.published import GOLDEN, image_folder, weights_folder
from tests.models.test_contracts import batch

OBJECT = [20.0, 20, 40, 40]


def test_a_box_is_an_example_of_what_its_overlap_says():
    of = target(OBJECT, [80.0, 80, 90, 90], [60.0, 60, 75, 75], labels=[2, 1, 0], ignore=[False, False, True])
    boxes = torch.tensor([
        [22.0, 20, 42, 40],  # 18 / 22
        [26.0, 20, 46, 40],  # 14 / 26
        [30.0, 20, 50, 40],  # 1 / 3: neither part nor negative
        [36.0, 20, 56, 40],  # 4 / 36
        [60.0, 60, 70, 70],  # inside what is to be ignored
        [81.0, 80, 91, 90],
    ])  # fmt: skip
    found = label(boxes, of, as_squares=False)
    assert found.kinds.tolist() == [POSITIVE, PART, UNUSED, NEGATIVE, UNUSED, POSITIVE]
    assert found.labels[[0, 1, 5]].tolist() == [2, 2, 1]
    assert found.objects[0].tolist() == OBJECT
    assert label(boxes, Target.empty(), as_squares=False).kinds.tolist() == [NEGATIVE] * 6


def test_overlaps_between_two_kinds_are_as_the_paper_has_them():
    """Parts lie "between 0.4 and 0.65", positives "above 0.65" and negatives have "less than 0.3" (section III-A)."""
    boxes = torch.tensor([[0.0, 0, 100, 40], [0, 0, 100, 65], [0, 0, 100, 30]])
    assert label(boxes, target([0.0, 0, 100, 100]), as_squares=False).kinds.tolist() == [PART, PART, UNUSED]


def test_a_long_object_has_positives_by_its_square_alone():
    of, square = target([20.0, 20, 60, 40]), torch.tensor([[20.0, 10, 60, 50]])
    assert label(square, of, as_squares=False).kinds.tolist() == [PART], "half of the square"
    found = label(square, of, as_squares=True)
    assert found.kinds.tolist() == [POSITIVE]
    assert found.objects.tolist() == [[20, 20, 60, 40]], "the box is learnt, not the square"


def test_samples_are_three_to_one_to_one_and_what_came_through_goes_first():
    kinds = torch.tensor([NEGATIVE] * 50 + [PART] * 20 + [POSITIVE] * 20 + [UNUSED] * 10)
    boxes = torch.arange(100.0)[:, None].expand(100, 4)
    labelled = Samples(boxes, kinds, torch.zeros_like(kinds), boxes)
    [chosen] = sample([labelled], 40, [15], [generator(1)])
    assert [int((chosen.kinds == kind).sum()) for kind in (NEGATIVE, PART, POSITIVE)] == [24, 8, 8]
    assert set(range(15)) <= set(chosen.boxes[:, 0].tolist())
    few = labelled.select(torch.arange(20, 90), labelled.kinds[20:90])
    _, again, other = sample([few, labelled, labelled], 40, [2, 15, 15], [generator(i) for i in (7, 1, 2)])
    assert torch.equal(again.boxes, chosen.boxes), "by the generator alone, whatever else is in the batch"
    assert not torch.equal(other.boxes, chosen.boxes)


def test_drawn_squares_give_every_kind():
    of = target(OBJECT, [60.0, 50, 80, 74])
    squares = draw_squares(of, (100, 120), 12.0, generator(3))
    sides = squares[:, 2:] - squares[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    kinds = label(squares, of, as_squares=False).kinds
    assert min(int((kinds == kind).sum()) for kind in (NEGATIVE, PART, POSITIVE)) >= 8
    anywhere = squares[:60]
    assert (anywhere[:, :2] >= 0).all()
    assert (anywhere[:, 2] <= 120).all()
    assert (anywhere[:, 3] <= 100).all()


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_what_is_learnt_moves_a_box_onto_its_object(extra):
    boxes, objects = torch.tensor([[10.0, 12, 30, 32]]), torch.tensor([[11.0, 10, 27, 36]])
    torch.testing.assert_close(moved(boxes, box_targets(boxes, objects, extra), extra), objects)


def test_the_hardest_enter_the_loss():
    assert hardest_mean(torch.tensor([1.0, 5.0, 2.0, 4.0]), 0.7).item() == pytest.approx((5 + 4 + 2) / 3)
    assert hardest_mean(torch.zeros(0), 0.7).item() == 0


def test_means_are_over_the_samples_of_all_processes(monkeypatch):
    """Ten samples that lose 1 in one process and one that loses 0 in another: 10 / 11, as if they were together."""
    counts, shares = [], (torch.ones(10), torch.zeros(1))
    monkeypatch.setattr(common, "mean_over_processes", lambda count: counts.append(count) or torch.tensor(5.5))
    assert sum(hardest_mean(losses, 1.0).item() for losses in shares) / 2 == pytest.approx(10 / 11)
    assert [count.item() for count in counts] == [10, 1]
    hardest = hardest_mean(torch.arange(10.0), 0.7)
    assert (counts[-1].item(), hardest.item()) == (7, pytest.approx(sum(range(3, 10)) / 5.5))
    boxes = torch.tensor([[20.0, 20, 39, 39]] * 2)
    samples = Samples(boxes, torch.tensor([POSITIVE, LANDMARKS]), torch.zeros(2).long(), boxes, torch.ones(2, 3, 3))
    answers = Answers(torch.zeros(2, 2), torch.ones(2, 4), torch.zeros(2, 6))
    counts.clear()
    terms = stage_loss(answers, samples, name="s", extra=1.0, hard_share=1.0, box_weight=1.0).terms
    assert [count.item() for count in counts] == [1, 1, 1]
    assert terms["s_box"].item() == pytest.approx(4 / 5.5)
    unmarked = samples._replace(kinds=torch.full((2,), PART), landmarks=None)
    stage_loss(answers, unmarked, name="s", extra=1.0, hard_share=1.0, box_weight=1.0)
    assert [count.item() for count in counts[3:]] == [0, 2, 0], "every process asks as often, or the others would wait"


def test_the_terms_of_a_stage_by_hand():
    """Parts have no say in the classes, negatives none in the boxes."""
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]], requires_grad=True)
    deltas = torch.tensor([[0.1, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0], [0.0, 0.3, 0.0, 0.4]])
    boxes = torch.tensor([[0.0, 0, 20, 20]] * 3)
    samples = Samples(boxes, torch.tensor([POSITIVE, NEGATIVE, PART]), torch.tensor([3, 0, 0]), boxes)
    losses = stage_loss(Answers(logits, deltas), samples, name="s", extra=0.0, hard_share=1.0, box_weight=0.5)
    positive, negative = 0.693147, 0.126928  # log 2, log(1 + e^-2)
    assert losses.terms["s_cls"].item() == pytest.approx((positive + negative) / 2, abs=1e-5)
    assert losses.terms["s_box"].item() == pytest.approx(0.5 * (0.01 + 0.25) / 2)
    assert {k: v.item() for k, v in losses.stats.items()} == {"s_num_pos": 1, "s_num_neg": 1}
    hard = stage_loss(Answers(logits, deltas), samples, name="s", extra=0.0, hard_share=0.5, box_weight=0.5)
    assert hard.terms["s_cls"].item() == pytest.approx(positive, abs=1e-5)
    many = torch.tensor([[0.0, 0, 0, 0, 4.0]] * 3)
    losses = stage_loss(Answers(many, deltas), samples._replace(kinds=torch.tensor([POSITIVE, PART, PART])),
                        name="s", extra=0.0, hard_share=1.0, box_weight=0.5)  # fmt: skip
    assert losses.terms["s_cls"].item() == pytest.approx(0.07067, abs=1e-4), "label 3 is output 4"


def test_boxes_are_learnt_in_the_longer_sides_in_which_they_are_used():
    """9 px count as 10 from R-Net on, so that 1 px is a tenth: half its square is the term of a network that says 0."""
    net, near = RNet(), torch.tensor([[10.0, 10, 19, 19]])
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    of = Samples(near, torch.tensor([POSITIVE]), torch.tensor([0]), near + torch.tensor([1.0, 0, 0, 0]))
    losses = _loss_of(net, [integral_image(torch.zeros(3, 40, 40))], [of], "rnet", SETTINGS, False)
    assert losses.terms["rnet_box"].item() == pytest.approx(0.5 * 0.1**2)


class Watcher(PNet):
    """A P-Net that says nothing, and what it was shown."""

    def forward(self, pixels):
        self.shown = pixels
        return Answers(torch.zeros(len(pixels), 2, 1, 1), torch.zeros(len(pixels), 4, 1, 1))


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.25])
def test_the_first_stage_learns_of_what_it_sees_where_it_says_it(scale):
    """Of the cell at row 3, column 5 the pixels from 2 i to 2 i + 12 of the scaled image, and boxes by its window."""
    (window,) = windows(torch.tensor([[3, 5]]), scale)
    side = 11 / scale
    boxes = torch.stack([window, window + 0.4])  # windows stand on whole px, wherever they were drawn
    objects = torch.stack([window + torch.tensor([0.2, 0, 0, 0.1]) * side] * 2)
    of = Samples(boxes, torch.tensor([POSITIVE, PART]), torch.tensor([0, 0]), objects)
    ramp = torch.arange(200.0).expand(3, 200, 200)
    net = Watcher()
    losses = _loss_of(net, [integral_image(ramp)], [of], "pnet", SETTINGS, False)
    columns = torch.arange(10, 22) / scale + (1 / scale - 1) / 2
    torch.testing.assert_close(net.shown[0, 0, 0] * 128 + 127.5, columns)
    assert losses.terms["pnet_box"].item() == pytest.approx(SETTINGS.box_weight * (0.2**2 + 0.1**2), rel=1e-5)


def test_windows_that_no_cell_looks_through_teach_the_first_stage_nothing():
    of = target(OBJECT)
    inside, left, below = [20.0, 20, 42, 42], [1.0, 20, 23, 42], [20.0, 40, 42, 62]
    kinds = _labelled(torch.tensor([inside, left, below]), of, (60, 80), "pnet", SETTINGS).kinds
    assert kinds.tolist() == [POSITIVE, UNUSED, UNUSED]
    dot = torch.tensor([[20.2, 20.2, 20.8, 20.8]])  # of a pixel, but no window on whole px
    assert _labelled(dot, target(dot[0].tolist()), (60, 80), "pnet", SETTINGS).kinds.tolist() == [UNUSED]
    later = _labelled(torch.tensor([inside, left, below]), of, (60, 80), "rnet", SETTINGS).kinds
    assert later.tolist() == [POSITIVE, NEGATIVE, NEGATIVE]


def test_stages_are_trained_in_turn():
    detector = MTCNN(num_classes=2, stages=("rnet",))
    losses = detector(*batch())
    assert set(losses.terms) == {"rnet_cls", "rnet_box"}
    losses.total.backward()
    trained = {name.split(".")[0] for name, p in detector.named_parameters() if p.requires_grad}
    assert trained == {"rnet"}
    assert all(p.grad is None for p in detector.pnet.parameters())


def test_samples_come_from_the_key_not_from_a_global_generator():
    torch.manual_seed(0)
    detector = MTCNN(num_classes=3)
    one = detector(*batch()).total
    torch.manual_seed(1)
    assert torch.equal(one, detector(*batch()).total)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"factor": 1.0}, "factor must be below 1, not 1.0"), ({"stages": ("pnet", "pnet")}, "each once"),
     ({"stages": ()}, "one or more"), ({"thresholds": (0.6, 1.7, 0.7)}, r"thresholds must lie in \[0, 1\]")],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MTCNN(num_classes=1, **options)


def test_published_weights_are_taken(caplog):
    for num_classes, num_landmarks in ((1, 5), (1, 0), (3, 0)):
        detector = MTCNN(num_classes=num_classes, num_landmarks=num_landmarks)
        before = {k: v.clone() for k, v in detector.state_dict().items()}
        with caplog.at_level(logging.WARNING, "detkit"):
            initialize(detector, f"mtcnn:{weights_folder()}", categories(num_classes), {})
        same = {k for k, v in detector.state_dict().items() if torch.equal(v, before[k])}
        kept = {"onet.dense6_1.weight", "onet.dense6_1.bias"}
        assert same == (set() if num_classes == 1 else kept)
        assert ("onet.dense6_1" in caplog.text) == (num_classes == 3)


def categories(num):
    return Categories(tuple("abc"[:num]), tuple(range(num)))


def test_a_folder_without_the_weights_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"init_from: mtcnn:.*nowhere is not a folder with pnet.pt"):
        initialize(MTCNN(num_classes=1), f"mtcnn:{tmp_path / 'nowhere'}", categories(1), {})
    with pytest.raises(ConfigError, match=r"pnet\.pt.*a folder with pnet.pt, rnet.pt and onet.pt"):
        initialize(MTCNN(num_classes=1), f"mtcnn:{tmp_path}", categories(1), {})


@torch.no_grad()
def test_an_image_smaller_than_any_window_has_nothing():
    assert len(MTCNN(num_classes=1)(images((10, 300)))[0]) == 0


@torch.no_grad()
def test_each_stage_tells_the_trace_its_name():
    torch.manual_seed(0)
    detector = MTCNN(num_classes=3, min_size=12.0, thresholds=(0.5, 0.5, 0.1))
    with tracing() as trace:
        (found,) = detector(batch(sizes=((64, 96),))[0])
    stages = [s.stage for s in trace.selections]
    assert list(dict.fromkeys(stages)) == ["P-Net", "R-Net", "O-Net"]
    for selection in trace.selections:
        assert (selection.labels == NO_CLASS).all() if selection.stage != "O-Net" else (selection.labels >= 0).all()
    assert int((trace.selections[-1].fates == Fate.KEPT).sum()) == len(found) > 0


@torch.no_grad()
def test_each_stage_tells_it_of_an_image_without_a_window_too():
    with tracing() as trace:
        MTCNN(num_classes=1)(images((10, 300)))
    assert list(dict.fromkeys(s.stage for s in trace.selections)) == ["P-Net", "R-Net", "O-Net"]
    assert sum(len(s.boxes) for s in trace.selections) == 0


def test_each_stage_learns_on_what_the_one_before_lets_through():
    """The same weights and keys: only what a threshold holds back is missing among the samples."""

    def terms(*thresholds):
        torch.manual_seed(0)
        detector = MTCNN(num_classes=3, min_size=12.0, thresholds=(*thresholds, 0.7))
        return {k: v.item() for k, v in detector(*batch()).terms.items()}

    all_through, none_of_second, none = terms(0.0, 0.0), terms(0.0, 1.0), terms(1.0, 1.0)
    assert all_through["pnet_cls"] == none["pnet_cls"]
    assert all_through["rnet_cls"] == none_of_second["rnet_cls"] != none["rnet_cls"]
    assert all_through["onet_cls"] != none_of_second["onet_cls"] == none["onet_cls"]


MIDDLE = [[25.0, 25, 2], [35, 25, 1], [0, 0, 0]]


def marked(*objects, points=MIDDLE):
    of = target(*objects)
    return replace(of, landmarks=torch.tensor([points] * len(objects)))


SETTINGS = TrainingSettings(("rnet",), 20, 0.7, 0.5, 1.0, False)


def test_the_samples_of_a_batch_are_those_of_each_image():
    sizes, keys = [(96, 128), (60, 200), (96, 128)], [5, 6, 7]
    metas = tuple(ImageMeta(i, f"{i}.png", s, s, key=k) for i, (s, k) in enumerate(zip(sizes, keys, strict=True)))
    seen = Images(torch.zeros(3, 3, 96, 200, dtype=torch.uint8), metas)
    targets = [target([20, 20, 50, 50]), target(), target([20, 20, 50, 50])]
    far = torch.tensor([[70.0, 5, 90, 25]]) + torch.arange(6)[:, None]
    passed = [far, far[:0], far]

    def chosen(*which):
        some = [targets[i] for i in which]
        of = Images(seen.pixels[list(which)], tuple(metas[i] for i in which))
        return _chosen("rnet", [passed[i] for i in which], some, of, some, SETTINGS, 12.0, False)

    together = chosen(0, 1, 2)
    for i, of_image in enumerate(together):
        [alone] = chosen(i)
        assert torch.equal(alone.boxes, of_image.boxes)
        assert torch.equal(alone.kinds, of_image.kinds)
        boxes = of_image.boxes.tolist()
        assert all(box in boxes for box in passed[i].tolist()), "what came through goes before what was drawn"
    assert not torch.equal(together[0].boxes, together[2].boxes), "by the image's key"


def test_a_gpu_is_asked_once_for_the_samples_of_a_stage_and_its_loss():
    square = torch.tensor([[20.0, 20, 40, 40], [22.0, 20, 42, 40], [26.0, 20, 46, 40], [70.0, 70, 90, 90]])
    points = torch.tensor([MIDDLE])
    of = replace(target([20, 20, 40, 40]), landmarks=points)
    labelled = [label(square, of, as_squares=False)] * 2
    with watched() as found:
        drawn = sample(labelled, 20, [0, 0], [generator(1), generator(2)], with_landmarks=True)
        answers = Answers(square.new_zeros(40, 2), square.new_zeros(40, 4), square.new_zeros(40, 6))
        joined = Samples.join(drawn)
        answers = Answers(*(column[: len(joined.boxes)] for column in answers))
        stage_loss(answers, joined, name="s", extra=0.0, hard_share=0.7, box_weight=0.5)
    assert [wait.what for wait in found.waits] == ["copy to the host"], found.waits


@pytest.mark.parametrize("boxes", [[[18.0, 22, 40, 44]], [[10.5, 9, 31.25, 29.75]]])
def test_what_is_learnt_of_landmarks_places_them(boxes):
    boxes, points = torch.tensor(boxes), torch.tensor([[[20.0, 30], [33, 28], [25.5, 41]]])
    torch.testing.assert_close(placed(landmark_targets(points, boxes), boxes), points)
    by_hand = landmark_targets(torch.tensor([[[19.0, 59], [29, 29]]]), torch.tensor([[10.0, 20, 29, 59]]))
    assert by_hand.tolist() == [[0.5, 1.0, 1.0, 0.25]], "all x, then all y; sides of 20 and 40 px, from a px before"


def test_two_fifths_more_are_samples_of_landmarks():
    """3 : 1 : 1 : 2, of positives with a point, and of others than the positives as long as there are any."""
    boxes = torch.tensor([[20.0, 20, 40, 40], [80, 80, 90, 90]])
    of = replace(target(*boxes.tolist()), landmarks=torch.tensor([MIDDLE, [[0.0, 0, 0]] * 3]))
    labelled = label(torch.cat([boxes[:1].expand(30, 4), boxes[1:].expand(30, 4)]), of, as_squares=False)
    assert labelled.landmarks.shape == (60, 3, 3)
    [chosen] = sample([labelled], 25, [0], [generator(1)], with_landmarks=True)
    assert [int((chosen.kinds == kind).sum()) for kind in (NEGATIVE, PART, POSITIVE, LANDMARKS)] == [0, 0, 5, 10]
    assert (chosen.landmarks[chosen.kinds == LANDMARKS, 0, 2] == 2).all(), "none of the object without a point"
    [without] = sample([labelled], 25, [0], [generator(1)])
    assert torch.equal(without.boxes, chosen.boxes[chosen.kinds != LANDMARKS]), "the others are drawn as without"
    numbered = labelled._replace(boxes=torch.arange(60.0)[:, None].expand(60, 4))
    [chosen] = sample([numbered], 25, [0], [generator(1)], with_landmarks=True)
    twice = set(chosen.boxes[chosen.kinds == POSITIVE, 0].tolist()) & set(
        chosen.boxes[chosen.kinds == LANDMARKS, 0].tolist()
    )
    assert not twice
    assert label(boxes, Target.empty(), as_squares=False).landmarks is None
    nothing = replace(Target.empty(), landmarks=torch.zeros(0, 3, 3))
    assert label(boxes, nothing, as_squares=False).landmarks.tolist() == [[[0, 0, 0]] * 3] * 2


def test_the_landmark_term_by_hand():
    """Only samples of the kind LANDMARKS and labelled points count; hidden ones do."""
    boxes = torch.tensor([[20.0, 20, 39, 39]] * 3)
    points = torch.tensor([[[24.0, 29, 2], [34, 29, 1], [0, 0, 0]]] * 3)
    samples = Samples(boxes, torch.tensor([LANDMARKS, POSITIVE, LANDMARKS]), torch.zeros(3).long(), boxes, points)
    right = torch.tensor([0.25, 0.75, 9.0, 0.5, 0.5, 9.0])  # shares of 20 px from 19 on; the third point is free
    found = torch.stack([right, right + 5, right + torch.tensor([0.1, 0, 0, 0, 0.2, 0])]).requires_grad_()
    assert landmark_loss(found, samples).item() == pytest.approx((0 + 0.01 + 0.04) / 2)
    answers = Answers(torch.zeros(3, 2), torch.zeros(3, 4), found)
    losses = stage_loss(answers, samples, name="s", extra=1.0, hard_share=1.0, box_weight=0.5, landmark_weight=2.0)
    assert losses.terms["s_landmarks"].item() == pytest.approx(0.05)
    assert losses.stats["s_num_pos"].item() == 1, "a sample of landmarks is none of the classes"
    for none in (samples._replace(landmarks=None), samples._replace(kinds=torch.zeros(3).long())):
        loss = landmark_loss(found, none)
        assert loss.item() == 0
        loss.backward()


def test_landmarks_are_learnt_by_the_last_stage_alone():
    pictures, of = batch()
    of = [replace(t, landmarks=torch.rand(len(t), 2, 3) * 30 + 1) for t in of]
    torch.manual_seed(0)
    detector = MTCNN(num_classes=3, num_landmarks=2)
    losses = detector(pictures, of)
    assert {name for name in losses.terms if "landmarks" in name} == {"onet_landmarks"}
    losses.total.backward()
    assert detector.onet.dense6_3.weight.grad.abs().sum() > 0
    frozen = MTCNN(num_classes=3, num_landmarks=2, landmark_weight=0.0)
    assert not frozen.onet.dense6_3.weight.requires_grad
    assert "onet_landmarks" not in frozen(pictures, of).terms


def test_landmarks_change_nothing_where_nobody_asked_for_them():
    """The same weights and keys: the terms have the same bits."""
    pictures, of = batch()
    points = [replace(t, landmarks=torch.rand(len(t), 2, 3) * 30 + 1) for t in of]
    torch.manual_seed(0)
    plain = MTCNN(num_classes=3)
    terms = plain(pictures, of).terms
    assert all(torch.equal(value, terms[name]) for name, value in plain(pictures, points).terms.items())
    bare = MTCNN(num_classes=3, num_landmarks=2)(pictures, of).terms["onet_landmarks"]
    assert bare.item() == 0


def test_another_number_of_landmarks_is_refused():
    pictures, of = batch()
    of = [replace(t, landmarks=torch.zeros(len(t), 5, 3)) for t in of]
    with pytest.raises(ValueError, match=r"its objects have 5 landmarks, and model\.num_landmarks is 2"):
        MTCNN(num_classes=3, num_landmarks=2)(pictures, of)


@torch.no_grad()
def test_the_published_landmarks_come_out_of_the_detector():
    golden = next(g for g in GOLDEN["images"] if g["file"] == "mask_722.jpg")
    detector = MTCNN(num_classes=1, num_landmarks=5).eval()
    initialize(detector, f"mtcnn:{weights_folder()}", categories(1), {})
    image = torch.from_numpy(np.array(Image.open(image_folder() / golden["file"]).convert("RGB"))).permute(2, 0, 1)
    h, w = image.shape[1:]
    padded = torch.zeros(1, 3, h + 20, w + 12, dtype=torch.uint8)
    padded[0, :, :h, :w] = image
    (found,) = detector(Images(padded, (ImageMeta(1, golden["file"], (h, w), (h, w)),)))
    torch.testing.assert_close(found.landmarks, torch.tensor(golden["landmarks"]), rtol=0, atol=0.05)
    assert detector(images((10, 300)))[0].landmarks.shape == (0, 5, 2)
