"""YOLO's layout."""

import re

import numpy as np
import pytest
from PIL import Image

from detkit.data import YoloDataset
from tests.data.builders import write_picture


def write_yolo(root, labels: dict[str, str | None], names: str | None = "names: [cat, dog]\n", part: str = "train"):
    for stem, text in labels.items():
        write_picture(root / "images" / part / f"{stem}.png")
        if text is not None:
            (root / "labels" / part).mkdir(parents=True, exist_ok=True)
            (root / "labels" / part / f"{stem}.txt").write_text(text)
    if names is not None:
        (root / "data.yaml").write_text(names)
    return root


def open_set(root, **options):
    return YoloDataset(root=str(root), **options)


def refused(root, message: str, **options) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_set(root, **options)


def test_centres_and_sizes_relative_to_the_image(tmp_path):
    write_yolo(tmp_path, {"b": "1 0.5 0.5 1 1\n", "a": "0 0.5 0.25 0.25 0.5\n\n1 0.125 0.5 0.25 0.25\n"})
    data = open_set(tmp_path)
    assert data.categories.names == ("cat", "dog")
    assert data.categories.ids == (0, 1)
    np.testing.assert_array_equal(data.truths[0].boxes, [[24, 0, 16, 24], [0, 18, 16, 12]])
    np.testing.assert_array_equal(data.truths[1].boxes, [[0, 0, 64, 48]])
    assert data.truths[0].labels.tolist() == [0, 1]
    assert data.truths[0].area.tolist() == [16 * 24, 16 * 12]
    assert [t.annotation_ids.tolist() for t in data.truths] == [[1, 2], [3]]
    assert [t.image_id for t in data.truths] == [1, 2]
    assert data.read(0).shape == (48, 64, 3)


def test_without_a_label_file_or_with_an_empty_one_there_is_no_object(tmp_path):
    data = open_set(write_yolo(tmp_path, {"a": None, "b": "", "c": "0 0.5 0.5 0.1 0.1"}))
    assert [len(t) for t in data.truths] == [0, 0, 1]
    assert data.report.count("images without a label file") == 1
    assert data.report.count("images without boxes") == 2


def test_sizes_follow_exif_orientation(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 1 1", "b": "0 0.5 0.5 1 1"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "train" / "a.png", exif=exif)
    data = open_set(tmp_path)
    assert [t.size for t in data.truths] == [(64, 48), (48, 64)]
    np.testing.assert_array_equal(data.truths[0].boxes, [[0, 0, 48, 64]])
    assert data.read(0).shape == (64, 48, 3)


@pytest.mark.parametrize("names", ["names: {0: cat, 1: dog}", "nc: 2\nnames:\n- cat\n- dog"])
def test_names_of_data_yaml(tmp_path, names):
    assert open_set(write_yolo(tmp_path, {"a": ""}, names)).categories.names == ("cat", "dog")


def test_names_of_classes_txt_and_of_the_config(tmp_path):
    write_yolo(tmp_path, {"a": ""}, names=None)
    refused(tmp_path, f"{tmp_path}: none of data.yaml, classes.txt, obj.names is there to tell the class names")
    (tmp_path / "classes.txt").write_text("owl\nemu\n\n")
    assert open_set(tmp_path).categories.names == ("owl", "emu")
    assert open_set(tmp_path, classes=("gnu",)).categories.names == ("gnu",)


def test_other_folders(tmp_path):
    deep = {"images": "images/x/images", "classes": ("cat",)}
    write_picture(tmp_path / "images" / "x" / "images" / "a.png")
    refused(tmp_path, f"{tmp_path / 'images' / 'x' / 'labels'}: no such folder of label files", **deep)
    write_picture(tmp_path / "train" / "images" / "a.png")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")
    data = open_set(tmp_path, images="train/images", classes=("cat",))
    np.testing.assert_array_equal(data.truths[0].boxes, [[16, 12, 32, 24]])
    refused(tmp_path, "images='train/pictures' has no part called 'images'", images="train/pictures", classes=("cat",))
    (tmp_path / "train" / "images").rename(tmp_path / "train" / "pictures")
    data = open_set(tmp_path, images="train/pictures", labels="train/labels", classes=("cat",))
    assert len(data.truths[0]) == 1


NO_BOX = "boxes that are not four finite numbers (1): line 2 of a: {}. "
NO_CLASS = "annotations of an unknown category (1): line 2 of a: {}. Known are 0, 1. "
BAD_LINES = {
    "0 0.5 0.5 0.1": NO_BOX,
    "0 0.5 0.5 0.1 0.1 0.9": NO_BOX,
    "0 0.5 nan 0.1 0.1": NO_BOX,
    "0 0.5 x 0.1 0.1": NO_BOX,
    "0 0.5 0.5 1e300 1e300": "boxes with a number beyond 1e+09 px (1): line 2 of a: {}. ",
    "2 0.5 0.5 0.1 0.1": NO_CLASS,
    "-1 0.5 0.5 0.1 0.1": NO_CLASS,
    "0.5 0.5 0.5 0.1 0.1": NO_CLASS,
    "1e99 0.5 0.5 0.1 0.1": NO_CLASS,
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_lines_name_file_and_line(tmp_path, line):
    write_yolo(tmp_path, {"a": f"1 0.5 0.5 0.2 0.2\n{line}\n"})
    told = BAD_LINES[line].format(repr(line))
    refused(tmp_path, f"{told}Correct the file, or leave them out with on_bad_annotation=skip")
    data = open_set(tmp_path, on_bad_annotation="skip")
    assert data.truths[0].labels.tolist() == [1]
    assert sum(f.count for f in data.report.findings) == 1


def test_boxes_without_area_and_outside_are_counted(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0 0.1\n0 1.5 0.5 0.1 0.1\n0 0.9 0.5 0.4 0.4\n0 0.5 0.5 -0.1 0.1"})
    report = open_set(tmp_path).report
    assert report.count("boxes without area") == 1
    assert report.count("boxes outside their image") == 1
    assert report.count("boxes partly outside their image") == 1
    assert report.count("boxes with a negative width or height") == 1
    assert (report.num_boxes, report.num_trainable) == (4, 1)


def test_a_label_file_without_an_image(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": "0 0.5 0.5 0.1 0.1"})
    (tmp_path / "images" / "train" / "b.png").unlink()
    refused(tmp_path, f"label files without an image (1): {tmp_path / 'labels' / 'train' / 'b.txt'}. Correct the file")
    data = open_set(tmp_path, on_missing="skip")
    assert len(data) == 1
    assert data.report.count("label files without an image") == 1


def test_an_unreadable_image(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": "0 0.5 0.5 0.1 0.1"})
    file = tmp_path / "images" / "train" / "a.png"
    file.write_bytes(b"nothing")
    refused(tmp_path, f"unreadable images (1): {file}: not a readable image")
    data = open_set(tmp_path, on_missing="skip")
    assert [t.file for t in data.truths] == [str(tmp_path / "images" / "train" / "b.png")]


def test_two_pictures_with_one_label_file(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    write_picture(tmp_path / "images" / "train" / "a.bmp")
    refused(tmp_path, "a.bmp and a.png would have the same annotations")


def test_missing_folders_and_the_empty_set(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    refused(tmp_path, f"{tmp_path / 'images' / 'val'}: no such folder", images="images/val", labels="labels/train")
    (tmp_path / "images" / "val").mkdir()
    refused(tmp_path, f"{tmp_path / 'labels' / 'val'}: no such folder of label files", images="images/val")
    (tmp_path / "labels" / "val").mkdir()
    refused(tmp_path, "the data set is empty: no images", images="images/val")


@pytest.mark.parametrize("names", ["names: 3", "classes: [a]", "names: {1: a, 2: b}", "[", "names: []"])
def test_names_that_are_none(tmp_path, names):
    refused(write_yolo(tmp_path, {"a": ""}, names), f"{tmp_path / 'data.yaml'}: ")


def test_subfolders_are_part_of_the_names(tmp_path):
    labels = {"a": "0 0.5 0.5 0.1 0.1", "cam1/a": "1 0.5 0.5 0.1 0.1", "cam2/x/b": "0 0.5 0.5 0.1 0.1"}
    for stem in labels:
        (tmp_path / "labels" / "train" / stem).parent.mkdir(parents=True, exist_ok=True)
    write_yolo(tmp_path, labels)
    data = open_set(tmp_path)
    assert [t.file.partition("train/")[2] for t in data.truths] == ["a.png", "cam1/a.png", "cam2/x/b.png"]
    assert [t.labels.tolist() for t in data.truths] == [[0], [1], [0]]
    (tmp_path / "images" / "train" / "cam1" / "a.png").unlink()
    (tmp_path / "labels" / "train" / "cam2" / "x" / "b.txt").unlink()
    refused(tmp_path, f"label files without an image (1): {tmp_path / 'labels' / 'train' / 'cam1' / 'a.txt'}")
    assert "images without a label file: 1 (taken as empty): cam2/x/b" in str(
        open_set(tmp_path, on_missing="skip").report
    )


def test_links_are_followed_once_and_hidden_folders_counted(tmp_path):
    write_yolo(tmp_path, {"a": ""})
    folder = tmp_path / "images" / "train"
    write_picture(tmp_path / "elsewhere" / "b.png")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "back").symlink_to(folder)
    write_picture(folder / ".thumbnails" / "a.png")
    (folder / "c.heic").write_bytes(b"x")
    report = open_set(tmp_path).report
    assert report.num_images == 2
    assert f"hidden folders: 1 (left out): {folder / '.thumbnails'}" in str(report)
    assert f"files of unknown kind: 1 (left out): {folder / 'c.heic'}" in str(report)


def test_names_in_another_unicode_form_and_endings_in_capitals(tmp_path):
    write_yolo(tmp_path, {"\u00e9": "0 0.5 0.5 0.1 0.1"})
    folder = tmp_path / "labels" / "train"
    (folder / "\u00e9.txt").rename(folder / "e\u0301.TXT")
    assert len(open_set(tmp_path).truths[0]) == 1


def test_of_a_polygon_the_box_round_it_is_taken(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.25 0.5 0.5 0.25 0.75 1.0\n1 0.5 0.5 0.5 0.5\n0 .1 .1 .4 .1 .4 .5 .1 .5"})
    data = open_set(tmp_path)
    np.testing.assert_allclose(data.truths[0].boxes, [[16, 12, 32, 36], [16, 12, 32, 24], [6.4, 4.8, 19.2, 19.2]])
    assert "polygons: 2 (the box round each is taken): line 1 of a: " in str(data.report)


def test_keypoints_are_no_polygon_where_data_yaml_tells_of_them(tmp_path):
    write_yolo(tmp_path, {"a": "0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.6 0.6 0"}, "names: [cat]\nkpt_shape: [2, 3]\n")
    data = open_set(tmp_path)
    np.testing.assert_array_equal(data.truths[0].boxes, [[16, 12, 32, 24]])
    assert [f.problem for f in data.report.findings] == ["boxes with keypoints"]
    (tmp_path / "data.yaml").write_text("names: [cat]\nkpt_shape: 2\n")
    refused(tmp_path, f"{tmp_path / 'data.yaml'}: 'kpt_shape' must be two whole numbers")


@pytest.mark.parametrize("line", ["0 30 20 10 10", "0 10 10 40 10 40 50 10 50"])
def test_pixels_where_shares_stand(tmp_path, line):
    report = open_set(write_yolo(tmp_path, {"a": line})).report
    assert report.count("numbers above 2, where shares of the image stand") == 1
    assert f"these look like px): line 1 of a: {line!r}" in str(report)


@pytest.mark.parametrize(
    "names",
    [
        "names: [yes, 007, null, 1.0, 1e3, ~, 2024-01-01, 'on']",
        "names: {0: yes, 1: 007, 2: null, 3: 1.0, 4: 1e3, 5: ~, 6: 2024-01-01, 7: on}",
        "\ufeffnames:\r\n- yes\r\n- 007\r\n- null\r\n- 1.0\r\n- 1e3\r\n- ~\r\n- 2024-01-01\r\n- on\r\n",
    ],
)
def test_names_are_the_text_that_stands_in_the_file(tmp_path, names):
    data = open_set(write_yolo(tmp_path, {"a": ""}, names))
    assert data.categories.names == ("yes", "007", "null", "1.0", "1e3", "~", "2024-01-01", "on")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("names: {0: cat, 0: dog}", "'names' must be a list of class names, or a mapping from 0, 1, ... to them"),
        ("names: [[cat]]", "'names' must be a list of class names"),
        ("names: [cat, '']", "the name of class 1 is empty"),
        ("names: [cat, dog, cat]", "class names given more than once: cat"),
        ("names: [cat]\nnames: [dog]", "'names' stands there 2 times"),
    ],
)
def test_names_that_would_vanish(tmp_path, names, told):
    refused(write_yolo(tmp_path, {"a": ""}, names), f"{tmp_path / 'data.yaml'}: {told}")


def test_a_number_of_classes_that_contradicts_the_names(tmp_path):
    for said in ("3", "many"):
        told = f"{tmp_path / 'data.yaml'}: 'nc' says {said}, and 'names' has 2 classes: cat, dog"
        refused(write_yolo(tmp_path, {"a": ""}, f"nc: {said}\nnames: [cat, dog]"), told)


@pytest.mark.parametrize(
    ("said", "is_told"),
    [
        ("train: images/train", False),
        ("train: ../train/images\nval: ./images/train/", False),
        ("path: /elsewhere\ntrain: images/train", False),
        ("path: ..\ntrain: set/images/train", False),
        ("train: ../images/train", False),
        ("train: train.txt", False),
        ("path: .", False),
        ("train: images/other", True),
        ("path: /elsewhere\ntrain: images/new\nval: [images/val, images/more]", True),
    ],
)
def test_folders_of_data_yaml_that_are_not_the_one_that_is_read(tmp_path, said, is_told):
    root = write_yolo(tmp_path / "set", {"a": "0 0.5 0.5 0.5 0.5"}, f"{said}\nnames: [cat, dog]")
    found = [f for f in open_set(root).report.findings if f.problem.startswith("data.yaml")]
    assert len(found) == is_told
    if is_told:
        assert found[0].problem == "data.yaml names other folders of images than images/train"
        assert found[0].examples[0] == f"train: {said.split('train: ')[1].splitlines()[0]}"


def test_an_empty_line_among_names_would_shift_the_classes(tmp_path):
    write_yolo(tmp_path, {"a": ""}, names=None)
    (tmp_path / "classes.txt").write_bytes("\ufeffowl\r\nemu\r\n\r\n".encode())
    assert open_set(tmp_path).categories.names == ("owl", "emu")
    (tmp_path / "classes.txt").write_text("owl\n\nemu\n")
    refused(tmp_path, f"{tmp_path / 'classes.txt'}: the name of class 1 is empty")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_label_files_with_a_byte_order_mark(tmp_path, encoding):
    write_yolo(tmp_path, {"a": "", "b": ""})
    file = tmp_path / "labels" / "train" / "a.txt"
    file.write_bytes("1 0.5 0.5 0.5 0.5\r\n".encode(encoding))
    assert open_set(tmp_path).truths[0].labels.tolist() == [1]
    file.write_bytes(b"1 0.5 0.5 0.5 0.5 \xe9")
    refused(tmp_path, f"unreadable label files (1): {file}: cannot be read: 'utf-8' codec can't decode")
    assert [len(t) for t in open_set(tmp_path, on_bad_annotation="skip").truths] == [0, 0]
