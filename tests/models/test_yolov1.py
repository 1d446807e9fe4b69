"""YOLOv1 against the paper: coordinates, responsibility and every term of equation 3, computed by hand."""

import pytest
import torch

from detkit.matching import NEGATIVE, Selector
from detkit.matching.assigners import IGNORED
from detkit.models.heads.yolov1 import RawGrid, YOLOv1Head
from detkit.structures import FeatureSpec
from tests.models.builders import images, target

#: an image of 448 x 448 px, S = 7: cells of 64 px
SIZE, STRIDE = (448, 448), 64.0


SELECTOR = Selector(score_threshold=0.001)


def head(num_classes=2, channels=8, **options):
    return YOLOv1Head(
        in_spec=FeatureSpec((channels,), (STRIDE,)), num_classes=num_classes, selector=SELECTOR, **options
    )


def blank(num_images=1, grid=(7, 7), num_boxes=2, num_classes=2):
    return RawGrid(torch.zeros(num_images, *grid, num_boxes, 5), torch.zeros(num_images, *grid, num_classes))


# The object: centre (160, 96), 64 wide and 112 high: cell column 2, row 1, at (0.5, 0.5) in it.
BOX = [128.0, 40.0, 192.0, 152.0]
ROOT_W, ROOT_H = (64 / 448) ** 0.5, 0.5  # 112 / 448 = 1 / 4
CELL = 1 * 7 + 2


def test_the_papers_coordinates():
    truth = head().encode(torch.tensor([BOX]), torch.tensor([0]), torch.tensor([CELL]), (7, 7), images(SIZE))
    torch.testing.assert_close(truth, torch.tensor([[0.5, 0.5, ROOT_W, ROOT_H]]))
    predictors = torch.tensor([[[0.5, 0.5, ROOT_W, ROOT_H, 0.0]]])
    back = head().boxes_of(predictors, torch.tensor([0]), torch.tensor([CELL]), (7, 7), images(SIZE))
    torch.testing.assert_close(back, torch.tensor([[BOX]]))


def test_x_and_width_are_not_y_and_height():
    """On an image that is not square: 448 high, 896 wide."""
    box = torch.tensor([[0.0, 64.0, 224.0, 128.0]])  # centre (112, 96), w 1/4 of the width, h 1/7 of the height
    truth = head().encode(box, torch.tensor([0]), torch.tensor([1 * 14 + 1]), (7, 14), images((448, 896)))
    torch.testing.assert_close(truth, torch.tensor([[0.75, 0.5, 0.5, (1 / 7) ** 0.5]]))


def test_every_term_of_equation_3():
    """One object of class 1; the predictors of its cell say two boxes, all other cells a little confidence."""
    raw = blank()
    raw.boxes[..., 4] = 0.1
    raw.boxes[0, 1, 2, 0] = torch.tensor([0.5, 0.5, ROOT_W, ROOT_H / 2, 0.6])  # a quarter of the height: IoU 1/4
    raw.boxes[0, 1, 2, 1] = torch.tensor([0.25, 0.5, ROOT_W, ROOT_H, 0.3])  # 16 px to the left: IoU 48 / 80
    raw.classes[0, 1, 2] = torch.tensor([0.4, 0.7])
    losses = head().loss_from_raw(raw, images(SIZE), [target(BOX, labels=[1])])
    expected = {
        "xy": 5 * 0.25**2,
        "wh": 0.0,
        "obj": (0.3 - 48 / 80) ** 2,
        "noobj": 0.5 * (96 * 0.1**2 + 0.6**2),
        "cls": 0.4**2 + 0.3**2,
    }
    assert {name: term.item() for name, term in losses.terms.items()} == pytest.approx(expected, abs=1e-6)
    assert losses.stats["num_pos"] == 1
    assert losses.stats["num_collided"] == 0


def test_the_iou_is_what_the_confidence_learns_and_moves_no_box():
    raw = blank()
    raw.boxes[0, 1, 2, 0] = torch.tensor([0.5, 0.5, ROOT_W, ROOT_H / 2, 0.6])  # IoU 1/4
    raw.boxes.requires_grad_()
    head().loss_from_raw(raw, images(SIZE), [target(BOX, labels=[1])]).terms["obj"].backward()
    assert raw.boxes.grad[0, 1, 2, 0].tolist() == pytest.approx([0, 0, 0, 0, 2 * (0.6 - 0.25)])


def test_square_roots_weigh_small_boxes_more():
    def wh_loss(side):
        x1, y1 = 224 - side / 2, 224 - side / 2
        raw = blank()
        root = ((side + 20) / 448) ** 0.5  # both too large by 20 px
        raw.boxes[0, 3, 3, :, :4] = torch.tensor([0.5, 0.5, root, root])
        return head().loss_from_raw(raw, images(SIZE), [target([x1, y1, x1 + side, y1 + side])]).terms["wh"].item()

    def by_hand(side):
        return 5 * 2 * (((side + 20) / 448) ** 0.5 - (side / 448) ** 0.5) ** 2

    assert wh_loss(40) == pytest.approx(by_hand(40), rel=1e-4)
    assert wh_loss(300) == pytest.approx(by_hand(300), rel=1e-4)
    assert wh_loss(40) > 4 * wh_loss(300)


def test_without_overlap_the_nearest_predictor_is_responsible():
    raw = blank()
    raw.boxes[0, 1, 2, 0] = torch.tensor([9.0, 9.0, 0.1, 0.1, 1.0])
    raw.boxes[0, 1, 2, 1] = torch.tensor([0.5, 0.5, 0.0, 0.0, 1.0])
    losses = head().loss_from_raw(raw, images(SIZE), [target(BOX)])
    assert losses.terms["xy"].item() == pytest.approx(0)
    assert losses.terms["wh"].item() == pytest.approx(5 * (ROOT_W**2 + ROOT_H**2))
    assert losses.terms["noobj"].item() == pytest.approx(0.5), "the other one learns to be silent"


def test_of_two_centres_in_one_cell_the_larger_object_stays():
    small, large = [150.0, 86.0, 160.0, 96.0], BOX
    for objects in ((small, large), (large, small)):
        assignment = head().assign([(7, 7)], images(SIZE), [target(*objects, labels=[0, 1])])[0]
        assert assignment.matched[CELL] == objects.index(large)
        assert int(assignment.positive.sum()) == 1
        losses = head().loss_from_raw(blank(), images(SIZE), [target(*objects, labels=[0, 1])])
        assert losses.stats["num_collided"] == 1
        assert losses.terms["cls"].item() == pytest.approx(1.0), "one object, one class"


def test_a_centre_beyond_the_last_cell_belongs_to_it():
    """Maps may be rounded down: 100 x 130 px on 1 x 2 cells of 64 px, and a centre at (129, 99)."""
    assignment = head().assign([(1, 2)], images((100, 130)), [target([128.0, 98.0, 130.0, 100.0])])[0]
    assert assignment.matched.tolist() == [NEGATIVE, 0]


def test_crowds_and_padding_take_no_part():
    pair = images((448, 448), (256, 448))
    crowd = target([0.0, 0.0, 128.0, 64.0], ignore=[True])
    assignments = head().assign([(7, 7)], pair, [crowd, target()])
    first, second = (a.matched.view(7, 7) for a in assignments)
    assert (first[0, :2] == IGNORED).all()
    assert (first[0, 2:] == NEGATIVE).all()
    assert (second[:4] == NEGATIVE).all()
    assert (second[4:] == IGNORED).all()
    raw = blank(2)
    raw.boxes[..., 4] = 1.0
    losses = head().loss_from_raw(raw, pair, [crowd, target()])
    assert losses.terms["noobj"].item() == pytest.approx(0.5 * 2 * (49 - 2 + 28) / 2)


def test_scores_are_class_times_confidence():
    raw = blank()
    raw.boxes[0, 1, 2, 1] = torch.tensor([0.5, 0.5, ROOT_W, -ROOT_H, 0.8])  # a negative root has a square too
    raw.classes[0, 1, 2] = torch.tensor([0.25, 0.5])
    found = head().decode(raw, images(SIZE))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([BOX, BOX]))
    torch.testing.assert_close(found.scores, torch.tensor([0.4, 0.2]))
    assert found.labels.tolist() == [1, 0]


def test_the_fully_connected_head_names_the_size_to_set():
    full = head(hidden=16, grid_size=(7, 7))
    assert full([torch.zeros(2, 8, 7, 7)]).boxes.shape == (2, 7, 7, 2, 5)
    with pytest.raises(
        ValueError, match=r"grid of 7 x 7 cells, that is for images of 448 x 448 px, not for 5 x 7 cells"
    ):
        full([torch.zeros(2, 8, 5, 7)])
    with pytest.raises(ValueError, match="hidden and grid_size go together"):
        head(hidden=16)
    with pytest.raises(ValueError, match="num_convs is for the convolutional form"):
        head(hidden=16, grid_size=(7, 7), num_convs=2)


def test_fully_connected_outputs_stand_in_their_own_cell():
    """Cell (row 1, column 2) of every output map is one row of the last layer, not a transposed one."""
    full = head(hidden=4, grid_size=(7, 7), dropout=0.0)
    last = full.predict_cells[4]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[4 * 49 + CELL] = 0.9  # output 4 is the confidence of the first predictor
    raw = full([torch.randn(1, 8, 7, 7)])
    assert raw.boxes[0, 1, 2, 0, 4].item() == pytest.approx(0.9)
    assert raw.boxes.abs().sum().item() == pytest.approx(0.9)


def test_the_papers_network_has_24_convolutions_and_a_7_x_7_grid():
    from detkit.models.backbones import Darknet24

    network = Darknet24(width=1)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 24
    assert [c.out_channels for c in convolutions] == [
        1, 3, 2, 4, 4, 8, *[4, 8] * 4, 8, 16, *[8, 16] * 2, 16, 16, 16, 16,
    ]  # fmt: skip
    maps = network(torch.zeros(1, 3, 448, 448))
    assert maps[-1].shape == (1, 16, 7, 7)


def test_an_infinite_confidence_in_a_crowd_or_the_padding_takes_no_part():
    pair = images((448, 448), (256, 448))
    crowd = target([0.0, 0.0, 128.0, 64.0], ignore=[True])
    raw = blank(2)
    raw.boxes[..., 4] = 1.0
    raw.boxes[0, 0, :2, :, 4] = raw.boxes[1, 4:, :, :, 4] = torch.inf
    raw.boxes.requires_grad_()
    term = head().loss_from_raw(raw, pair, [crowd, target()]).terms["noobj"]
    assert term.item() == pytest.approx(0.5 * 2 * (49 - 2 + 28) / 2)
    term.backward()
    assert raw.boxes.grad.isfinite().all()


@pytest.mark.parametrize("name", ["lambda_coord", "lambda_noobj"])
def test_factors_that_train_backwards_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 on, not -1.0"):
        head(**{name: -1.0})
