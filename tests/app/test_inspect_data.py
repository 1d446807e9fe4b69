"""The inspect tool: its numbers, its files, and what it finds."""

import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from detkit.app.inspect.data import inspect, main, plot_classes, plot_sizes
from detkit.data import CocoDataset
from tests.data.builders import annotation, image, write_coco

FILES = {"report.json", "report.txt", "classes.png", "sizes.png", "boxes.png"}


@pytest.fixture
def root(tmp_path) -> Path:
    annotations = [
        annotation(1, 1, [1, 1, 9, 9]),
        annotation(2, 1, [2, 2, 40, 30], 7),
        annotation(3, 2, [0, 0, 100, 100], 7),
        annotation(4, 2, [5, 5, 0, 9]),
        annotation(5, 2, [5, 5, 9, 9], iscrowd=1),
    ]
    images = [image(1), image(2, 110, 120), image(3)]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "[red]cat$"}, {"id": 9, "name": "owl"}]
    return write_coco(tmp_path / "set", images, annotations, categories)


def test_numbers_and_files(root, tmp_path, capsys):
    numbers = inspect(CocoDataset(root=str(root)), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == numbers
    assert (numbers["num_images"], numbers["num_boxes"], numbers["num_trainable"]) == (3, 5, 4)
    assert numbers["classes"] == [
        {"name": "[red]cat$", "id": 3, "boxes": 2, "crowds": 1, "images": 2},
        {"name": "dog", "id": 7, "boxes": 2, "crowds": 0, "images": 2},
        {"name": "owl", "id": 9, "boxes": 0, "crowds": 0, "images": 0},
    ]
    assert numbers["object_sizes"] == {"small": 2, "medium": 1, "large": 1}
    assert numbers["boxes_per_image"] == {"least": 0, "median": 2.0, "mean": pytest.approx(5 / 3), "most": 3}
    assert numbers["image_width"]["most"] == 120
    assert (numbers["damaged"], numbers["dim"]) == ({}, {})
    text = (tmp_path / "out" / "report.txt").read_text()
    for line in (
        "boxes without area: 1 (not in training targets, kept for evaluation): annotation 4 of 2.png",
        "images without boxes: 1 (kept): 3.png",
        "classes without a box: owl",
        "objects: 2 small, 1 medium, 1 large",
        "boxes to train on: 4 of 5",
        "image width: 64 to 120 px, median 64; height: 48 to 110 px, median 48",
    ):
        assert line in text
    shown = capsys.readouterr().out
    assert "[red]cat$" in shown
    assert "images without boxes: 1 (kept): 3.png" in shown


def test_pictures_show_something(root, tmp_path):
    inspect(CocoDataset(root=str(root)), tmp_path)
    sheet = cv2.imread(str(tmp_path / "boxes.png"))
    assert sheet.shape == (367 + 12, 3 * 406 + 6, 3)  # as high as the highest, 120 x 110 px
    for name in ("classes.png", "sizes.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_damaged_images_are_found_and_left_out_of_the_sheet(root, tmp_path):
    file = root / "images" / "1.png"
    file.write_bytes(file.read_bytes()[:300])
    data = CocoDataset(root=str(root))
    numbers = inspect(data, tmp_path)
    assert list(numbers["damaged"]) == [str(file)]
    assert f"damaged: {file}: cut off or damaged" in (tmp_path / "report.txt").read_text()
    assert cv2.imread(str(tmp_path / "boxes.png")).shape[1] == 2 * 406 + 6


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_pictures_that_use_few_of_their_bits_are_named(tmp_path, ending):
    """12 bits in files of 16: of 4095 reading keeps 15. One that is bright, one of 8 bits and one that is black are not."""
    images = [image(i, file_name=f"{i}.{ending}") for i in range(1, 6)]
    root = write_coco(tmp_path / "set", images, [], pictures=False)
    (root / "images").mkdir()
    values = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    for i, (most, kind) in enumerate([(4095, "u2"), (1000, "u2"), (2**14, "u2"), (60, "u1"), (0, "u2")], start=1):
        picture = np.repeat((values * most).astype(kind)[..., None], 3 if i == 2 else 1, axis=2)
        assert cv2.imwrite(str(root / "images" / f"{i}.{ending}"), picture)
    data = CocoDataset(root=str(root))
    assert data.read(0).max() == 15
    numbers = inspect(data, tmp_path / "out")
    assert numbers["damaged"] == {}
    assert numbers["more_than_8_bits"] == 4
    assert numbers["dim"] == {str(root / "images" / f"{i}.{ending}"): bits for i, bits in ((1, 12), (2, 10))}
    text = (tmp_path / "out" / "report.txt").read_text()
    line = f"dim: 2 of 4 pictures of 16 bits use 12 of them at most (1.{ending} 12, 2.{ending} 10), and the upper 8 are"
    assert line in text
    assert "Write their values 16 times as large" in text


def test_without_any_box(tmp_path):
    data = CocoDataset(root=str(write_coco(tmp_path / "set", [image(1)], [])))
    assert inspect(data, tmp_path / "out")["object_sizes"] == {"small": 0, "medium": 0, "large": 0}
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES


def test_many_classes_are_cut_in_the_diagram():
    classes = [{"name": f"c{i}", "id": i, "boxes": i, "crowds": 0, "images": i} for i in range(1300)]
    classes[0]["boxes"] = 1_234_567
    axes = plot_classes(classes).axes[0]
    assert len(axes.patches) == 100
    assert axes.texts[0].get_text() == "1234567"
    assert axes.get_title() == f"{sum(range(1300)) + 1_234_567} boxes of 1300 classes, the 1200 rarest not shown"
    assert [label.get_text() for label in axes.get_yticklabels()[:2]] == ["c0", "c1299"]


def test_a_long_name_leaves_the_bars_their_room(recwarn):
    """It pushed the axes out of the figure, and its own beginning with them."""
    figure = plot_classes([{"name": "a very long name " * 12, "id": 1, "boxes": 3, "crowds": 0, "images": 3}])
    FigureCanvasAgg(figure).draw()
    assert not [str(w.message) for w in recwarn if "constrained_layout" in str(w.message)]
    (label,) = figure.axes[0].get_yticklabels()
    assert label.get_text().startswith("a very long name")
    assert label.get_window_extent().x0 >= 0


@pytest.mark.parametrize(("least", "most"), [(50, 50), (48, 53), (20, 90), (3, 250), (1, 5000)])
def test_the_figures_of_a_histogram_stand_apart(least, most):
    """Where all sizes lie within a decade its axis said 4.8 x 10^1, 4.9 x 10^1, ... over each other."""
    boxes = np.array([[0, 0, side, side] for side in np.geomspace(least, most, 20)])
    truth = SimpleNamespace(boxes=boxes, crowd=np.zeros(len(boxes), bool), size=(9000, 9000))
    figure = plot_sizes(SimpleNamespace(truths=[truth]))
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes[:2]:
        low, high = axes.get_xlim()
        majors = [t.label1 for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
        minors = [t.label1 for t in axes.xaxis.get_minor_ticks() if low <= t.get_loc() <= high]
        shown = [label for label in majors + minors if label.get_text()]
        assert len(shown) >= 2
        assert all(float(label.get_text()) > 0 for label in shown)
        ends = sorted((e.x0, e.x1) for e in (label.get_window_extent() for label in shown))
        assert all(one[1] < two[0] for one, two in pairwise(ends))


def run(monkeypatch, tmp_path, *arguments: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["inspect_data.py", *arguments])
    main()


def test_the_command(root, tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, "data=coco", f"data.root={root}")
    (folder,) = (tmp_path / "runs" / "inspect_data").iterdir()
    assert folder.name.startswith("coco_train_")
    assert {p.name for p in folder.iterdir()} == FILES
    assert str(folder) in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("data=coco", "data.root=ROOT", "split=test"),
            "error: split: the configuration has no data.test; it has train, val",
        ),
        (("data=coco", "data.root=ROOT", "data.trian.x=1"), "error: data.trian: no key 'trian'; did you mean 'train'?"),
        (("data=coco", "data.root=ROOT", "split=val"), "val.json: No such file or directory"),
    ],
)
def test_mistakes_are_told_in_one_line(root, tmp_path, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path, *(a.replace("ROOT", str(root)) for a in arguments))
    assert caught.value.code != 0
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.json"))


def test_bad_annotations_name_the_culprit(root, tmp_path, monkeypatch, capsys):
    write_coco(root, [image(1)], [annotation(17, 1, [1, 2, math.nan, 4])])
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "data=coco", f"data.root={root}")
    assert "annotation 17 of 1.png: category 3, box [1, 2, nan, 4]" in capsys.readouterr().err


@pytest.mark.parametrize("check", ["true", "false"])
def test_the_report_is_told_before_pictures_are_drawn_that_none_may_be(root, tmp_path, monkeypatch, capsys, check):
    write_coco(root, [image(1)], [annotation(1, 1, [1, 2, 9, 9])])
    (root / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "data=coco", f"data.root={root}", f"check_images={check}")
    out, err = capsys.readouterr()
    assert "boxes to train on: 1 of 1" in out
    assert ("damaged: " in out) == (check == "true")
    assert ("no image can be read" if check == "true" else "1.png: not a readable image") in err


def test_help_names_the_data_sets_and_keys(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path, "--help")
    assert caught.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "data: bccd, coco, coco2017, shapes" in shown
    assert "check_images=true" in shown
    assert not (tmp_path / "runs").exists()


def test_a_jpeg_that_is_damaged_inside_is_named(tmp_path):
    root = write_coco(tmp_path / "set", [image(1, file_name="1.jpg"), image(2, file_name="2.jpg")], [])
    file = root / "images" / "1.jpg"
    content = file.read_bytes()
    half = len(content) // 2 + 100
    file.write_bytes(content[:half] + content[half + (len(content) - half) // 2 :])
    assert CocoDataset(root=str(root)).read(0).shape == (48, 64, 3)  # decoders say nothing
    numbers = inspect(CocoDataset(root=str(root)), tmp_path / "out")
    assert list(numbers["damaged"]) == [str(file)]
    assert f"damaged: {file}: damaged inside: Corrupt JPEG data" in (tmp_path / "out" / "report.txt").read_text()


def test_a_refused_data_set_is_inspected_all_the_same(root, tmp_path, monkeypatch, capsys):
    bad = [
        annotation(17, 1, [1, 2, math.nan, 4]),
        annotation(18, 1, [1, 2, 3, 4], "3"),
        annotation(19, 2, [1, 1, 9, 9]),
    ]
    write_coco(root, [image(1), image(2)], bad)
    (root / "images" / "2.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path, "data=coco", f"data.root={root}")
    assert caught.value.code != 0
    shown = capsys.readouterr()
    assert "boxes that are not four finite numbers: 1 (left out): annotation 17 of 1.png" in shown.out
    assert f"damaged: {root / 'images' / '2.png'}: not a readable image" in shown.out
    for told in (
        "four finite numbers (1): annotation 17",
        "unknown category (1): annotation 18 of 1.png: category '3'",
    ):
        assert told in shown.err
    (folder,) = (tmp_path / "runs" / "inspect_data").iterdir()
    assert {p.name for p in folder.iterdir()} == FILES
