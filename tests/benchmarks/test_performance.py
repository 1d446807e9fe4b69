"""The figures of docs/performance.md are of what they say: the parts that are timed, not the times."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import inference, loading, models, scaling, training
from benchmarks.timing import clock_for
from detkit.data import CocoDataset
from tests.data.builders import coco_set

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training, "SIZE", (96, 128))


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
def test_a_step_and_a_prediction_are_timed_on_each_side(small, name, sides, monkeypatch):
    layouts = []
    made = training.bccd_detector

    def watched_detector(name):
        detector = made(name)
        detector.register_forward_pre_hook(
            lambda _, inputs: layouts.append(inputs[0].pixels.is_contiguous(memory_format=torch.channels_last))
        )
        return detector

    monkeypatch.setattr(training, "bccd_detector", watched_detector)
    steps = dict(training.benchmark_training(CPU, 1, 1, clock_for(CPU, 1), name, bf16=True, channels_last=True))
    for asked in ("detkit, bf16", "detkit, channels last", "detkit, channels last, bf16"):
        assert steps.pop(asked)[0] > 0
    assert set(layouts) == {False, True}
    predicted = inference.benchmark_inference(name, 1, 1, CPU, 1)
    for times in (steps, predicted):
        assert list(times) == ["torchvision", "detkit", "its convolutions and products"][3 - sides :]
        assert all(seconds > 0 for seconds, *_ in times.values())


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
    original = scaling.synthetic_set, scaling.made_images, scaling.bccd_detector

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

    for name, stub in (("synthetic_set", made_set), ("made_images", images), ("bccd_detector", detector)):
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
