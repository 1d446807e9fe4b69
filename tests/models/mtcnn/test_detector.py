"""MTCNN as a detector: its samples, its losses, what starts from published weights, and which stage missed what."""

import logging

import pytest
import torch

from detkit.app.assemble.init_from import initialize
from detkit.config import ConfigError
from detkit.matching import Fate, tracing
from detkit.matching.trace import NO_CLASS
from detkit.models import MTCNN
from detkit.models.mtcnn.crops import moved
from detkit.models.mtcnn.loss import box_targets, hardest_mean, stage_loss
from detkit.models.mtcnn.nets import Answers
from detkit.models.mtcnn.samples import NEGATIVE, PART, POSITIVE, UNUSED, Samples, draw_squares, label, sample
from detkit.structures import Categories, Target
from detkit.utils.seed import generator
from tests.models.builders import images, target
from tests.models.mtcnn.published import weights_folder
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
    chosen = sample(labelled, 40, 15, generator(1))
    assert [int((chosen.kinds == kind).sum()) for kind in (NEGATIVE, PART, POSITIVE)] == [24, 8, 8]
    assert set(range(15)) <= set(chosen.boxes[:, 0].tolist())
    again = sample(labelled, 40, 15, generator(1))
    assert torch.equal(again.boxes, chosen.boxes)
    assert not torch.equal(sample(labelled, 40, 15, generator(2)).boxes, chosen.boxes)


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
