"""COCO files, sound and broken: what comes out, what is counted, and what each mistake is told as."""

import io
import json
import math
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools.coco import COCO

from detkit.data import CocoDataset
from detkit.data.sample import Sample, trainable_boxes
from detkit.structures import Categories
from tests.data.builders import CATEGORIES, annotation, coco_set, image, picture, write_coco


def open_set(root, **options):
    return CocoDataset(root=str(root), **options)


def error_of(root, **options) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        open_set(root, **options)
    return str(caught.value)


def write_json(tmp_path, content) -> str:
    path = tmp_path / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_records_are_the_file_s_own_numbers_sorted_by_image_id(tmp_path):
    write_coco(
        tmp_path,
        [image(9, 40, 60), image(4, 30, 50)],
        [
            annotation(1, 9, [1.5, 2.25, 10, 11], 7, area=55.5),
            annotation(2, 4, [0, 0, 5, 5], 3),
            annotation(3, 9, [3, 3, 4, 4], 3, iscrowd=1),
        ],
    )
    data = open_set(tmp_path)
    assert data.categories == Categories(names=("cat", "dog"), ids=(3, 7))
    assert [t.image_id for t in data.truths] == [4, 9]
    assert len(data) == len(data.truths) == 2
    first, second = data.truths
    assert (first.size, second.size) == ((30, 50), (40, 60))
    assert second.file == str(tmp_path / "images" / "9.png")
    np.testing.assert_array_equal(second.boxes, [[1.5, 2.25, 10, 11], [3, 3, 4, 4]])
    assert second.boxes.dtype == np.float64
    assert (second.labels.tolist(), second.area.tolist()) == ([1, 0], [55.5, 16])
    assert (second.crowd.tolist(), second.annotation_ids.tolist()) == ([False, True], [1, 3])
    np.testing.assert_array_equal(data.read(1), picture(40, 60, seed=9))


def test_truths_are_a_sequence(tmp_path):
    data = open_set(coco_set(tmp_path, 5))
    assert [t.image_id for t in data.truths[1:3]] == [2, 3]
    assert data.truths[-1].image_id == 5
    assert [t.image_id for t in reversed(data.truths)] == [5, 4, 3, 2, 1]
    with pytest.raises(IndexError):
        data.truths[5]


def test_a_file_name_may_lead_into_folders(tmp_path):
    write_coco(tmp_path, [image(1, file_name="a/b/1.png")], [])
    assert open_set(tmp_path).read(0).shape == (48, 64, 3)


def test_every_category_is_a_class_even_if_it_does_not_occur(tmp_path):
    categories = [{"id": i, "name": f"c{i}"} for i in (90, 5, 13)]
    write_coco(tmp_path, [image(1)], [annotation(1, 1, [0, 0, 9, 9], 13)], categories)
    data = open_set(tmp_path)
    assert data.categories.ids == (5, 13, 90)
    assert data.truths[0].labels.tolist() == [1]


def test_what_cannot_be_trained_on_is_counted_with_file_and_id_and_kept_for_the_evaluator(tmp_path):
    boxes = {
        11: [5, 5, 0, 10],  # no width
        12: [5, 5, -3, 10],  # negative
        13: [70, 5, 10, 10],  # outside
        14: [-20, -20, 10, 10],  # outside
        15: [50, 30, 40, 40],  # reaches over by 26 and 22 px
        16: [54.4, 10, 10, 10],  # reaches over by 0.4 px: not worth a word
        17: [1, 1, 8, 8],
    }
    write_coco(tmp_path, [image(1)], [annotation(i, 1, box) for i, box in boxes.items()])
    data = open_set(tmp_path)
    report = data.report
    assert report.count("boxes without area") == 1
    assert report.count("boxes with a negative width or height") == 1
    assert report.count("boxes outside their image") == 2
    assert report.count("boxes partly outside their image") == 1
    assert (report.num_boxes, report.num_trainable) == (7, 3)
    assert (
        "boxes outside their image: 2 (not in training targets, kept for evaluation): "
        "annotation 13 of 1.png: category 3, box [70, 5, 10, 10]; "
        "annotation 14 of 1.png: category 3, box [-20, -20, 10, 10]"
    ) in str(report)
    np.testing.assert_array_equal(data.truths[0].boxes, list(boxes.values()))
    corners, usable = trainable_boxes(data.truths[0])
    assert data.truths[0].annotation_ids[usable].tolist() == [15, 16, 17]
    np.testing.assert_array_equal(corners[usable], [[50, 30, 64, 48], [54.4, 10, 64, 20], [1, 1, 9, 9]])
    sample = Sample.from_truth(data.read(0), data.truths[0])
    assert len(sample.boxes) == report.num_trainable


def test_images_without_boxes_and_with_crowds_only_are_kept_and_counted(tmp_path):
    write_coco(tmp_path, [image(1), image(2), image(3)], [annotation(1, 2, [0, 0, 9, 9], iscrowd=1)])
    data = open_set(tmp_path)
    assert len(data) == 3
    assert data.report.count("images without boxes") == 2
    assert data.report.count("images with crowd boxes only") == 1
    assert data.report.count("crowd or difficult boxes") == 1
    assert "images without boxes: 2 (kept): 1.png; 3.png" in str(data.report)
    assert data.truths[1].crowd.tolist() == [True]


def test_a_box_given_twice_is_counted(tmp_path):
    same = [annotation(1, 1, [1, 1, 9, 9]), annotation(2, 1, [1, 1, 9, 9]), annotation(3, 1, [1, 1, 9, 9], 7)]
    data = open_set(write_coco(tmp_path, [image(1)], same))
    assert data.report.count("duplicate boxes") == 1
    assert len(data.truths[0]) == 3


def test_an_annotation_without_area_and_crowd_gets_width_times_height(tmp_path):
    bare = annotation(1, 1, [1, 1, 4, 5])
    del bare["area"], bare["iscrowd"]
    data = open_set(write_coco(tmp_path, [image(1)], [bare]))
    assert (data.truths[0].area.tolist(), data.truths[0].crowd.tolist()) == ([20], [False])
    assert data.report.count("annotations without an area") == 1


def test_two_thousand_boxes(tmp_path):
    many = [annotation(i, 1, [i % 40, i % 30, 5 + i % 7, 6]) for i in range(2000)]
    assert len(open_set(write_coco(tmp_path, [image(1)], many)).truths[0]) == 2000


def test_a_sound_file_has_nothing_to_report(tmp_path):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9])]))
    assert data.report.findings == ()
    assert str(data.report) == f"{tmp_path / 'train.json'}: images: 1, boxes: 1, classes: 2"
    assert data.report.to_dict()["num_trainable"] == 1


def test_class_names_that_are_one_but_for_case_and_blanks(tmp_path):
    names = ("Car", "bus", "car", "big dog", " bigdog", "bus stop")
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9], 0)], categories)
    (finding,) = open_set(tmp_path).report.findings
    assert (finding.problem, finding.count) == ("class names that differ by case or blanks alone", 2)
    assert finding.examples == ("'Car', 'car'", "'big dog', ' bigdog'")
    assert "convert merge=" in finding.consequence


BAD_ANNOTATIONS = {
    "NaN": (
        annotation(8, 1, [1, 2, math.nan, 4]),
        "boxes that are not four finite numbers (1): annotation 8 of 1.png: category 3, box [1, 2, nan, 4]. ",
    ),
    "infinite": (
        annotation(8, 1, [1, 2, 3, math.inf]),
        "boxes that are not four finite numbers (1): annotation 8 of 1.png: category 3, box [1, 2, 3, inf]. ",
    ),
    "beyond any picture": (
        annotation(8, 1, [10, 10, 1e300, 1e300], area=9),
        "boxes with a number beyond 1e+09 px (1): annotation 8 of 1.png: category 3, box [10, 10, 1e+300, 1e+300]. ",
    ),
    "three numbers": (
        annotation(8, 1, [1, 2, 3]),
        "boxes that are not four finite numbers (1): annotation 8 of 1.png: category 3, box [1, 2, 3]. ",
    ),
    "text": (
        annotation(8, 1, [1, 2, 3, "4"]),
        "boxes that are not four finite numbers (1): annotation 8 of 1.png: category 3, box [1, 2, 3, '4']. ",
    ),
    "unknown category": (
        annotation(8, 1, [1, 2, 3, 4], 99),
        "annotations of an unknown category (1): annotation 8 of 1.png: category 99, box [1, 2, 3, 4]. "
        "Known are 3, 7. ",
    ),
    "category as text": (
        annotation(8, 1, [1, 2, 3, 4], "cat"),
        "annotations of an unknown category (1): annotation 8 of 1.png: category 'cat', box [1, 2, 3, 4]. "
        "Known are 3, 7. ",
    ),
    "unknown image": (
        annotation(8, 55, [1, 2, 3, 4]),
        "annotations of an unknown image (1): annotation 8 of image id 55: category 3, box [1, 2, 3, 4]. ",
    ),
    "id given twice": (
        annotation(9, 1, [5, 5, 3, 3]),
        "duplicate annotation ids (1): annotation 9 of 1.png: category 3, box [5, 5, 3, 3]. ",
    ),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_bad_annotations_are_an_error_that_names_them_or_are_left_out_and_counted(tmp_path, case):
    bad, told = BAD_ANNOTATIONS[case]
    write_coco(tmp_path, [image(1)], [bad, annotation(9, 1, [1, 1, 9, 9])])
    advice = "Correct the file, or leave them out with on_bad_annotation=skip"
    assert error_of(tmp_path) == f"{tmp_path / 'train.json'}: {told}{advice}"
    data = open_set(tmp_path, on_bad_annotation="skip")
    np.testing.assert_array_equal(data.truths[0].boxes, [[1, 1, 9, 9]])
    assert data.report.num_boxes == 1
    (finding,) = data.report.findings
    assert (finding.count, finding.consequence) == (1, "left out")
    assert told.startswith(f"{finding.problem} (1): {finding.examples[0]}. ")


def test_only_the_first_cases_are_named(tmp_path):
    write_coco(tmp_path, [image(1)], [annotation(i, 1, [1, 1, 2, 2], 99) for i in range(5)])
    message = error_of(tmp_path)
    assert "annotations of an unknown category (5): annotation 0 of" in message
    assert message.count("annotation ") == 3
    assert "box [1, 1, 2, 2]; ..." in message


def test_duplicate_image_ids(tmp_path):
    write_coco(tmp_path, [image(1), image(1, file_name="other.png")], [annotation(1, 1, [1, 1, 9, 9])])
    assert "duplicate image ids (1): id 1 (1.png). Correct the file" in error_of(tmp_path)
    data = open_set(tmp_path, on_bad_annotation="skip")
    assert [t.file for t in data.truths] == [str(tmp_path / "images" / "other.png")]
    assert len(data.truths[0]) == 1  # as pycocotools: the last record of an id counts


def test_missing_image_files(tmp_path):
    write_coco(tmp_path, [image(1), image(2)], [annotation(1, 1, [1, 1, 9, 9]), annotation(2, 2, [2, 2, 9, 9])])
    file = tmp_path / "images" / "1.png"
    file.unlink()
    assert error_of(tmp_path) == (
        f"{tmp_path / 'train.json'}: missing image files (1): {file}. "
        "Correct the file, or leave them out with on_missing=skip"
    )
    data = open_set(tmp_path, on_missing="skip")
    assert [t.image_id for t in data.truths] == [2]
    np.testing.assert_array_equal(data.truths[0].boxes, [[2, 2, 9, 9]])
    assert data.report.count("missing image files") == 1


def test_an_image_folder_that_is_not_there(tmp_path):
    write_coco(tmp_path, [image(1)], [], pictures=False)
    assert f"missing image files (1): {tmp_path / 'images' / '1.png'}" in error_of(tmp_path)
    assert "none of its 1 images is there" in error_of(tmp_path, on_missing="skip")


def test_the_empty_data_set(tmp_path):
    write_coco(tmp_path, [], [])
    assert error_of(tmp_path) == f"{tmp_path / 'train.json'}: the data set is empty: no images"


WHOLE = {"images": [image(1)], "annotations": [annotation(1, 1, [1, 1, 9, 9])], "categories": CATEGORIES}


def without(part: str, key: str):
    return {**WHOLE, part: [{k: v for k, v in WHOLE[part][0].items() if k != key}]}


NOT_COCO = {
    "no JSON": ("{'images'", "not JSON: Expecting property name enclosed in double quotes"),
    "empty file": ("", "not JSON: Expecting value"),
    "a list": ([1], "not a COCO file: an object with images, annotations and categories is needed"),
    "no images": ({"annotations": []}, "not a COCO file: it has no 'images', only ['annotations']"),
    "no annotations": ({"images": []}, "not a COCO file: it has no 'annotations', only ['images']"),
    "no categories": (
        {"images": [], "annotations": []},
        "not a COCO file: it has no 'categories', only ['annotations', 'images']",
    ),
    "images no list": ({**WHOLE, "images": {"1": {}}}, "not a COCO file: 'images' must be a list of objects"),
    "image without id": (without("images", "id"), "not a COCO file: images[0] has no 'id'"),
    "image without height": (without("images", "height"), "not a COCO file: images[0] has no 'height'"),
    "image without file": (without("images", "file_name"), "not a COCO file: images[0] has no 'file_name'"),
    "annotation without bbox": (without("annotations", "bbox"), "not a COCO file: annotations[0] has no 'bbox'"),
    "annotation without id": (without("annotations", "id"), "not a COCO file: annotations[0] has no 'id'"),
    "category without name": (without("categories", "name"), "not a COCO file: categories[0] has no 'name'"),
    "id as text": ({**WHOLE, "images": [image("7")]}, "images[0]: 'id' must be a whole number, not '7'"),
    "size 0": ({**WHOLE, "images": [image(1, 0, 9)]}, "image '1.png': width 9 and height 0 must be positive"),
    "empty categories": ({**WHOLE, "categories": []}, "a data set needs at least one category"),
    "category id twice": (
        {**WHOLE, "categories": [CATEGORIES[0], {"id": 7, "name": "x"}]},
        "category id given more than",
    ),
    "category name twice": (
        {**WHOLE, "categories": [CATEGORIES[0], {"id": 1, "name": "dog"}]},
        "category name given more",
    ),
}


@pytest.mark.parametrize("case", NOT_COCO)
def test_files_that_are_not_coco_are_told_so(tmp_path, case):
    content, reason = NOT_COCO[case]
    path = write_json(tmp_path, content)
    assert error_of(tmp_path).startswith(f"{path}: {reason}")


def test_no_file(tmp_path):
    assert error_of(tmp_path) == f"{tmp_path / 'train.json'}: No such file or directory"


def test_whole_numbers_written_as_floats_are_taken(tmp_path):
    write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9], 3.0)])
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"][0] |= {"width": 64.0, "height": 48.0}
    write_json(tmp_path, content)
    data = open_set(tmp_path)
    assert data.truths[0].size == (48, 64)
    assert data.truths[0].labels.tolist() == [0]


def test_the_same_annotations_as_pycocotools_reads(tmp_path):
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-20, 60, (60, 4)).round(1).tolist()
    annotations = [
        annotation(i, int(rng.integers(1, 9)), box, (3, 7)[i % 2], iscrowd=int(i % 9 == 0))
        for i, box in enumerate(boxes)
    ]
    data = open_set(write_coco(tmp_path, [image(i) for i in range(1, 9)], annotations))
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "train.json"))
    for truth in data.truths:
        expected = coco.loadAnns(coco.getAnnIds(imgIds=[truth.image_id]))
        assert truth.annotation_ids.tolist() == [a["id"] for a in expected]
        np.testing.assert_array_equal(truth.boxes, np.reshape([a["bbox"] for a in expected], (-1, 4)))
        assert [data.categories.ids[k] for k in truth.labels] == [a["category_id"] for a in expected]
        assert truth.crowd.tolist() == [bool(a["iscrowd"]) for a in expected]
        assert truth.area.tolist() == [a["area"] for a in expected]


def test_all_kinds_of_faults_are_told_at_once(tmp_path):
    annotations = [
        annotation(1, 1, [1, 1, 9, 9]),
        annotation(2, 1, [1, 2, math.nan, 4]),
        annotation(3, 1, [1, 1, 9, 9], 99),
        annotation(4, 5, [1, 1, 9, 9]),
        annotation(5, 1, [1, 1, 0, 9]),
    ]
    write_coco(tmp_path, [image(1), image(2)], annotations)
    (tmp_path / "images" / "2.png").unlink()
    first, *others = error_of(tmp_path).split("\n  ")
    assert first.startswith(f"{tmp_path / 'train.json'}: missing image files (1): ")
    starts = ("annotations of an unknown image (1)", "boxes that are not", "annotations of an unknown category (1)")
    assert [line.startswith(s) for line, s in zip(others, (*starts, "boxes without area: 1"), strict=True)] == [
        True
    ] * 4


def test_all_kinds_of_broken_records_are_told_at_once(tmp_path):
    content = {
        "images": [image(1), image(2, height="48"), image(3, file_name=7)],
        "annotations": [annotation(1, "1", [1, 1, 9, 9]), {"id": 2, "image_id": 2}, annotation(3, 2, [1, 1, 9, 9])],
        "categories": [*CATEGORIES, {"id": 4, "name": 7}, {"id": 5, "name": True}, {"id": 6, "name": None}],
    }
    path = write_json(tmp_path, content)
    assert error_of(tmp_path).split("\n  ")[:6] == [
        f"{path}: categories[2]: 'name' must be text, not 7 (and 2 more)",
        "images[1]: 'height' must be a whole number, not '48'",
        "images[2]: 'file_name' must be text, not 7",
        "annotations[0]: 'image_id' must be a whole number, not '1'",
        "not a COCO file: annotations[1] has no 'bbox'",
        "not a COCO file: annotations[1] has no 'category_id'",
    ]
    assert "unknown image" not in error_of(tmp_path)  # image 2 is there, only broken


@pytest.mark.parametrize("flag", [0, 1, True, False, "0", "1", "true", "False", " 1 ", 1.0])
def test_flags_that_are_some(tmp_path, flag):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9], iscrowd=flag)]))
    assert data.truths[0].crowd.tolist() == [str(flag).strip().lower() in ("1", "true", "1.0")]


def test_numbers_that_are_too_large_for_any(tmp_path):
    write_coco(tmp_path, [image(1)], [annotation(4, 1, [1, 1, 9, 10**400], area=1)])
    assert "boxes that are not four finite numbers (1): annotation 4 of 1.png: " in error_of(tmp_path)
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, [1, 1, 9, 8], area=10**400)]))
    assert data.truths[0].area.tolist() == [72]
    assert data.report.count("annotations without an area") == 1


@pytest.mark.parametrize("flag", ["yes", "", 2, -1, 2**63, 0.5, None, [], [0], {}, "01", math.nan])
def test_flags_that_are_none(tmp_path, flag):
    write_coco(tmp_path, [image(1)], [annotation(1, 1, [1, 1, 9, 9]), annotation(8, 1, [2, 2, 9, 9], iscrowd=flag)])
    assert (
        f"iscrowd that is no flag (1): annotation 8 of 1.png: category 3, box [2, 2, 9, 9], iscrowd {flag!r}. "
        "A flag is one of 0, 1, true, false. Correct"
    ) in error_of(tmp_path)
    assert open_set(tmp_path, on_bad_annotation="skip").report.num_boxes == 1


@pytest.mark.parametrize("category", ["3", True, None, [3], 3.5])
def test_a_category_that_is_no_number_is_shown_as_it_stands(tmp_path, category):
    categories = [{"id": 1, "name": "a"}, {"id": 3, "name": "b"}]
    write_coco(tmp_path, [image(1)], [annotation(8, 1, [1, 2, 3, 4], category)], categories)
    assert f"annotation 8 of 1.png: category {category!r}, box [1, 2, 3, 4]. Known are 1, 3. " in error_of(tmp_path)


AREAS = [(-5, "negative areas"), (0.79, "areas that do not fit"), (1000, "areas that do not fit"), (0.08, "areas that do not fit"), (0, "areas that do not fit")]  # fmt: skip


@pytest.mark.parametrize(("area", "problem"), AREAS)
def test_areas_that_no_mask_in_the_box_has(tmp_path, area, problem):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, [1, 1, 20, 20], area=area)]))
    (finding,) = data.report.findings
    assert finding.problem.startswith(problem)
    assert finding.examples == (f"annotation 4 of 1.png: category 3, box [1, 1, 20, 20], area {area:g}",)
    assert data.truths[0].area.tolist() == [area]  # the evaluator sees the file's own


@pytest.mark.parametrize(
    ("box", "area"),
    [([1, 1, 40, 40], 4), ([1, 1, 20, 20], 15), ([1, 1, 20, 20], 400.1), ([3, 3, 1, 1], 5), ([3, 3, 2, 2], 0.5)],
)
def test_areas_of_thin_and_small_masks_are_no_finding(tmp_path, box, area):
    assert not open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, box, area=area)])).report.findings


def test_an_area_that_is_text_is_shown(tmp_path):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, [1, 1, 4, 5], area="20")]))
    assert data.truths[0].area.tolist() == [20]
    assert "annotations without an area: 1 (width times height is used): annotation 4 of 1.png" in str(data.report)
    assert "area '20'" in str(data.report)


@pytest.mark.parametrize("box", [[0.15, 0.2, 0.3, 0.4], [0, 0, 1, 1], [0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.03, 0.02]])
def test_boxes_in_shares_of_the_image(tmp_path, box):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, box), annotation(5, 1, [1, 1, 9, 9])]))
    assert data.report.count("boxes within the first pixel") == 1
    assert f"annotation 4 of 1.png: category 3, box {box}" in str(data.report)


@pytest.mark.parametrize("box", [[0, 0, 2, 1], [5.2, 0.1, 0.5, 0.5], [0, 0, 64, 48], [-3, -3, 10, 10]])
def test_boxes_in_pixels_are_taken_for_no_shares(tmp_path, box):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, box)]))
    assert not data.report.count("boxes within the first pixel")


@pytest.mark.parametrize("written", ["sub/\u00e9t\u00e9.png", "sub\\\u00e9t\u00e9.png", "sub\\e\u0301te\u0301.png"])
@pytest.mark.parametrize("on_disk", ["sub/\u00e9t\u00e9.png", "sub/e\u0301te\u0301.png"])
def test_names_in_another_unicode_form_or_with_back_slashes_are_found(tmp_path, written, on_disk):
    write_coco(tmp_path, [image(1, file_name=on_disk)], [])
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"][0]["file_name"] = written
    write_json(tmp_path, content)
    data = open_set(tmp_path)
    assert data.truths[0].file == str(tmp_path / "images" / on_disk)
    assert data.read(0).shape == (48, 64, 3)


@pytest.mark.parametrize("written", ["A.PNG", "a.jpg", "C:\\data\\images\\a.png", "x/a.png", "a .png"])
def test_the_nearest_name_is_told(tmp_path, written):
    write_coco(tmp_path, [image(1, file_name="a.png"), image(2, file_name="b.png")], [])
    content = json.loads((tmp_path / "train.json").read_text())
    content["images"][0]["file_name"] = written
    write_json(tmp_path, content)
    assert f"{tmp_path / 'images' / written} (there is {tmp_path / 'images' / 'a.png'})" in error_of(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_with_a_byte_order_mark_or_in_utf_16(tmp_path, encoding):
    write_coco(tmp_path, [image(1)], [])
    path = tmp_path / "train.json"
    path.write_bytes(path.read_text().encode(encoding))
    assert len(open_set(tmp_path)) == 1


def test_a_share_of_the_box_that_is_too_small(tmp_path):
    data = open_set(write_coco(tmp_path, [image(1)], [annotation(4, 1, [1, 1, 40, 40], area=2)]))
    assert data.report.count("areas that do not fit their box") == 1
