"""The figures of docs/performance.md are of what they say: the parts that are timed, not the times."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import nms

from benchmarks import inference, loading, models, scaling, shares, tool, training
from benchmarks.timing import clock_for
from detkit.app.cli.composer import Composer
from detkit.data import CocoDataset
from detkit.ops import roi_align
from tests.data.builders import coco_set

CPU = torch.device("cpu")


SMALL = (96, 120)


def test_the_convolutions_and_products_are_those_of_the_step():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(32, 1))
    model[0].weight.requires_grad_(False)
    calls = models.heavy_calls(lambda: model(torch.zeros(1, 3, 4, 4)).sum().backward())
    aten = torch.ops.aten
    forward, backward = aten.convolution.default, aten.convolution_backward.default
    linear = [aten.addmm.default, aten.mm.default, aten.mm.default]
    assert [call.op for call in calls] == [forward, forward, *linear, backward, backward]
    assert [tuple(call.arguments[0].shape) for call in calls[:2]] == [(1, 3, 4, 4), (1, 4, 4, 4)]
    assert [call.arguments[-1] for call in calls[-2:]] == [[True, True, True], [False, False, True]]
    again = models.heavy_calls(lambda: models.replay(calls))
    assert [call.op for call in again] == [call.op for call in calls]


@pytest.mark.parametrize(("name", "sides"), [("yolov1", 2), pytest.param("retinanet", 3, marks=pytest.mark.slow)])
def test_a_step_and_a_prediction_are_timed_on_each_side(name, sides, monkeypatch):
    layouts = []
    made = training.recipe_detector

    def watched_detector(name):
        detector = made(name)
        detector.register_forward_pre_hook(
            lambda _, inputs: layouts.append(inputs[0].pixels.is_contiguous(memory_format=torch.channels_last))
        )
        return detector

    monkeypatch.setattr(training, "recipe_detector", watched_detector)
    steps = dict(
        training.benchmark_training(CPU, 1, 1, clock_for(CPU, 1), name, bf16=True, channels_last=True, size=SMALL)
    )
    for asked in ("detkit, bf16", "detkit, channels last", "detkit, channels last, bf16"):
        assert steps.pop(asked)[0] > 0
    assert set(layouts) == {False, True}
    predicted = inference.benchmark_inference(name, 1, 1, CPU, 1, SMALL)
    for times in (steps, predicted):
        assert list(times) == ["torchvision", "detkit", "its convolutions and products"][3 - sides :]
        assert all(seconds > 0 for seconds, *_ in times.values())


@pytest.mark.parametrize(
    ("name", "sides"), [("flow", 2), ("faster_rcnn_c4", 2), pytest.param("coco_r50", 3, marks=pytest.mark.slow)]
)
def test_other_recipes_take_a_step_and_predict(name, sides):
    steps = training.benchmark_training(CPU, 1, 1, clock_for(CPU, 1), name, size=SMALL)
    predicted = inference.benchmark_inference(name, 1, 1, CPU, 1, SMALL)
    for times in (steps, predicted):
        assert list(times) == ["torchvision", "detkit", "its convolutions and products"][3 - sides :]


def test_images_of_any_size_are_padded_for_detkit_alone():
    batch, targets = training.made_images(2, (100, 133), 3, CPU)
    assert batch.padded_size == (128, 160)
    assert batch.sizes == [(100, 133)] * 2
    assert batch.pixels[:, :, 100:].sum() == batch.pixels[:, :, :, 133:].sum() == 0
    assert [tuple(p.shape) for p in training.unpadded(batch)] == [(3, 100, 133)] * 2
    assert all((t.boxes[:, 2:] <= torch.tensor([133, 100])).all() for t in targets)


def test_rfcn_and_its_neighbour_differ_in_the_second_stage_alone():
    rfcn, neighbour = (Composer()(*models.RECIPES[name]).cfg.model for name in ("rfcn", "faster_rcnn_c4"))
    assert neighbour.backbone == rfcn.backbone
    assert neighbour.neck == rfcn.neck
    rpn = [{k: v for k, v in m.head.rpn.items() if k != "box_loss"} for m in (rfcn, neighbour)]
    assert rpn[0] == rpn[1]
    assert neighbour.head.roi.sampler == rfcn.head.roi.sampler


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["training", "--batch", "1"], ["training step of yolov1, 1 images of 128 x 96 px", "detkit"]),
        (["training", "--batch", "1", "--profile"], ["1 images of 128 x 96 px", "convolutions, backward"]),
        (["inference", "--batch", "1"], ["yolov1, 1 of 128 x 96 px, predicted", "its convolutions"]),
    ],
    ids=["training", "profile", "inference"],
)
def test_size_and_batch_are_those_of_the_command(arguments, told, capsys):
    own = ["--models", "yolov1", "--size", "96", "128", "--repeats", "1", "--device", "cpu"]
    tool.main([*arguments, *own])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(words in shown for words in told), shown


def test_a_size_without_room_for_the_boxes_is_refused(capsys):
    with pytest.raises(SystemExit):
        tool.main(["training", "--size", "64", "128"])
    assert "--size" in capsys.readouterr().err


def test_time_goes_to_the_outermost_operation_that_has_a_kind():
    conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 2)
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 7, 8]])
    where = torch.zeros(2, dtype=torch.int64)

    def step():
        x = conv(torch.rand(1, 3, 16, 16))
        pooled = roi_align(x, boxes, where, output_size=(2, 2), scale=1.0)
        (linear(x.flatten(1)).sum() + pooled.sum()).backward()
        nms(boxes, torch.rand(2), 0.5)
        torch.rand(4).clone()
        time.sleep(0.01)

    found = {share.kind: share for share in shares.shares_of(step, 3, CPU)}
    assert {kind: share.calls for kind, share in found.items() if kind not in ("copies", shares.REST)} == {
        "convolutions, forward": 1,
        "convolutions, backward": 1,
        "products of matrices, both ways": 2,
        "NMS": 1,
        "pooling of regions, forward": 1,
        "pooling of regions, backward": 1,
    }
    assert found["copies"].calls >= 1
    assert found[shares.REST].seconds >= 0.01, "Python's time too"
    table = shares.shares_table([shares.Share("NMS", 0.03, 4.0), shares.Share(shares.REST, 0.01, 0.0)], "title")
    assert [list(column.cells) for column in table.columns] == [
        ["NMS", shares.REST], ["30.0", "10.0"], ["75.0%", "25.0%"], ["4", ""],
    ]  # fmt: skip


def test_every_way_of_loading_gives_the_same_boxes_and_sizes(tmp_path, monkeypatch):
    dataset = CocoDataset(root=str(coco_set(tmp_path)))
    monkeypatch.setattr("detkit.data.pixels.SETTLED", -1.0)
    seen = []
    monkeypatch.setattr(loading, "_take", lambda batches, n: seen.append([next(batches) for _ in range(n)]))
    rows = loading.benchmark_loading(dataset, 24, 1, 0.01)
    assert [row.name for row in rows] == ["torchvision v2", "detkit", "detkit, cached", "decoding alone"]
    assert all(row.num_images == 12 and row.alone[0] > 0 for row in rows)
    assert all(row.beside[0] > 0 for row in rows[:3])
    peers = sorted(len(boxes) for _, boxes_of_images in seen[0] for boxes in boxes_of_images)
    ours = sorted(len(target) for batch in seen[2] for target in batch.targets)
    assert ours == peers
    sizes = {(32, 64), (64, 32), (64, 64)}  # lying, upright, and both in a batch
    assert {batch.images.padded_size for batch in seen[2]} | {tuple(p.shape[2:]) for p, _ in seen[0]} <= sizes
    table = loading.loading_table(rows, 24)
    assert next(iter(table.columns[2].cells)) == "1.00"


def test_exponents_are_those_of_the_law():
    values = [1, 10, 100]
    fitted, last = scaling.exponents(values, [5.0 * v**1.5 for v in values])
    assert (fitted, last) == (pytest.approx(1.5), pytest.approx(1.5))
    fitted, last = scaling.exponents(values, [100.0 + v for v in values])
    assert 0 < fitted < last < 1


@pytest.mark.parametrize("what", ["training step", "prediction", "evaluation"])
def test_each_row_has_as_much_as_it_says(what, monkeypatch):
    monkeypatch.setattr(scaling, "_SIZE", (96, 128))
    monkeypatch.setitem(scaling._USUAL, "pixels", 96 * 128)
    seen = []
    original = scaling.synthetic_set, scaling.made_images
    monkeypatch.setattr(
        scaling,
        "synthetic_set",
        lambda **o: (seen.append(o["num_categories"]), original[0](**o | {"num_images": 5}))[1],
    )
    monkeypatch.setattr(scaling, "made_images", lambda *o: (seen.append(o[4]), original[1](*o))[1])
    point = scaling.measure(what, "classes", 7, 1)
    assert seen == [7]
    assert point.seconds > 0


@pytest.mark.parametrize("what", ["training step", "prediction", "evaluation"])
def test_boxes_are_what_the_row_says(what, monkeypatch):
    """7 objects to learn from, 7 regions that all come out, and 7 objects and as many detections in each image."""
    monkeypatch.setattr(scaling, "_SIZE", (96, 128))
    monkeypatch.setitem(scaling._USUAL, "pixels", 96 * 128)
    seen = []
    original = scaling.synthetic_set, scaling.made_images, scaling.recipe_detector

    def made_set(**amounts):
        made = original[0](**amounts | {"num_images": 20})
        seen.append((len(made.results) / 20, round(sum(map(len, made.truths)) / 20)))
        return made

    def detector(*arguments):
        model = original[2](*arguments)
        if what == "prediction":
            model.register_forward_hook(lambda _, __, out: seen.append([len(found) for found in out]))
        return model

    def images(*arguments):
        made = original[1](*arguments)
        if what == "training step":
            seen.append([len(target.boxes) for target in made[1]])
        return made

    for name, stub in (("synthetic_set", made_set), ("made_images", images), ("recipe_detector", detector)):
        monkeypatch.setattr(scaling, name, stub)
    scaling.measure(what, "boxes", 7, 1)
    expected = {"training step": [7], "prediction": [7], "evaluation": (7, pytest.approx(7, abs=2))}
    assert seen[0] == expected[what]
    assert {row.what for row in scaling.ROWS if row.axis == "boxes"} == set(expected)


def test_what_grows_faster_than_its_input_is_marked():
    row = scaling.Row("evaluation", "boxes", (1, 10, 100))
    points: list[scaling.Point | None] = [scaling.Point(1, 100), scaling.Point(10, 1000), scaling.Point(200, 10000)]
    table = scaling.scaling_table([(row, points)])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[5:7] == ["1.15*", "1.30*"], "in time: log10(200) / 2, and log10(20)"
    assert cells[8:] == ["1.00", "1.00"], "in memory"
    assert str(table.caption) == "* grows faster than its input: the exponent is above 1.1"


def test_a_killed_point_is_told_and_the_plot_has_the_others(tmp_path):
    rows = [scaling.Row("training step", "boxes", (1, 10)), scaling.Row("prediction", "classes", (1, 10))]
    measured = [
        (rows[0], [scaling.Point(1.0, 2**20), scaling.Point(10.0, 2**20)]),
        (rows[1], [scaling.Point(1.0, 9), None]),
    ]
    table = scaling.scaling_table(measured)
    assert list(table.columns[4].cells) == ["1,000 to 10,000", "killed: not enough memory?"]
    assert next(iter(table.columns[5].cells)) == "1.00"
    scaling.draw_scaling(measured, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_process_times_itself_where_it_does_all_the_work():
    clock = clock_for(CPU, 1)
    before = clock()
    np.linalg.norm(np.ones(10))
    assert clock() - before < 1
    assert clock_for(CPU, None) is not clock
