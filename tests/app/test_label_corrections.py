"""What a person's yes does to the annotation file, and how the table of findings is read."""

import csv
import json

import pytest

from detkit.app.labels.corrections import COLUMNS, NOTE, Correction, as_csv, correct, num_decided, read_accepted
from detkit.config import ConfigError
from detkit.evaluation.label_errors import Kind
from tests.data.builders import annotation, image

CONTENT = {
    "info": {"year": 2026},
    "licenses": [{"id": 1, "name": "CC0"}],
    "images": [image(1, license=1), image(2)],
    "annotations": [
        annotation(11, 1, [1, 2, 10, 12], segmentation=[[1, 2, 11, 2, 11, 14]], note="kept"),
        annotation(12, 1, [20, 2, 10, 12], segmentation=[[0, 0, 1, 1, 2, 2]], keypoints=[1, 1, 2], num_keypoints=1),
        annotation(13, 2, [3, 3, 9, 9], category_id=7, segmentation=[[3, 3, 12, 3, 12, 12]]),
        annotation(19, 2, [30, 3, 9, 9], iscrowd=1),
    ],
    "categories": [{"id": 7, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
}


def correction(kind, annotation_id=None, new_name=None, new_box=None, image_id=1, certainty=0.75):
    return Correction(kind, certainty, 0.5, None, "a.png", image_id, annotation_id, None, None, new_name, new_box)


def test_accepted_rows_are_corrected_and_nothing_else_is_touched():
    before = json.dumps(CONTENT)
    made = correct(
        CONTENT,
        [
            correction(Kind.MISPLACED, 12, "cat", (21.0, 2.5, 8.0, 11.0)),
            correction(Kind.WRONG_CLASS, 13, "cat", (0.0, 0.0, 1.0, 1.0), image_id=2),
            correction(Kind.SPURIOUS, 19, image_id=2),
            correction(Kind.MISSING, None, "dog", (40.0, 30.0, 5.0, 6.0)),
        ],
    )
    assert json.dumps(CONTENT) == before
    assert {key: made[key] for key in made if key != "annotations"} == {
        key: CONTENT[key] for key in CONTENT if key != "annotations"
    }
    right, moved, other_class, new = made["annotations"]
    assert right == CONTENT["annotations"][0]
    assert moved == {
        "id": 12, "image_id": 1, "bbox": [21.0, 2.5, 8.0, 11.0], "category_id": 3, "area": 88.0, "iscrowd": 0,
    }  # fmt: skip
    assert other_class == {**CONTENT["annotations"][2], "category_id": 3}, "its outline is as good as before"
    assert new == {
        "id": 20, "image_id": 1, "category_id": 7, "bbox": [40.0, 30.0, 5.0, 6.0], "area": 30.0, "iscrowd": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Kind.MISPLACED, Kind.WRONG_CLASS])
def test_what_a_person_changed_of_a_proposal_counts_whatever_its_kind(kind):
    """Both its class and its box, though each kind proposes but one of them; boxes in a table are rounded."""
    own = Correction(kind, 0.5, None, None, "a.png", 1, 12, "cat", (20, 2, 10, 12), "dog", (21.5, 2, 10, 12))
    (made,) = (one for one in correct(CONTENT, [own])["annotations"] if one["id"] == 12)
    assert (made["category_id"], made["bbox"], made.get("segmentation")) == (7, [21.5, 2, 10, 12], None)
    rounded = own._replace(new_box=(20.004, 1.996, 10.0, 12.0))
    (made,) = (one for one in correct(CONTENT, [rounded])["annotations"] if one["id"] == 12)
    assert ("segmentation" in made) == (kind is Kind.WRONG_CLASS)


def test_proposals_say_what_was_and_how_sure_they_are():
    made = correct(
        CONTENT, [correction(Kind.WRONG_CLASS, 13, "cat", (3, 3, 9, 9), 2), correction(Kind.DUPLICATE, 11)], scored=True
    )
    assert [a["id"] for a in made["annotations"]] == [12, 13, 19]
    was = {"bbox": [3, 3, 9, 9], "category_id": 7}
    assert made["annotations"][1][NOTE] == {"kind": "wrong class", "certainty": 0.75, "was": was}
    (gone,) = made[NOTE]["removed"]
    assert (gone["id"], gone[NOTE]) == (11, {"kind": "duplicate", "certainty": 0.75})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([correction(Kind.SPURIOUS, 99)], "the annotation file has no annotation 99"),
        ([correction(Kind.MISSING, None, "dog", (1, 1, 2, 2), image_id=5)], "has no image 5"),
        ([correction(Kind.MISSING, None, "cow", (1, 1, 2, 2))], "has no class 'cow', only dog, cat"),
        ([correction(Kind.SPURIOUS, 11), correction(Kind.WRONG_CLASS, 11, "dog", (1, 1, 2, 2))], "11 is to go by one"),
        ([correction(Kind.WRONG_CLASS, 11, "dog", (1, 1, 2, 2)), correction(Kind.SPURIOUS, 11)], "11 is to go by one"),
        ([correction(Kind.SPURIOUS, 11, image_id=2)], "annotation 11 is no None of image 2"),
        ([correction(Kind.SPURIOUS, 11)._replace(name="dog")], "annotation 11 is no dog of image 1: the cells of that"),
        ([correction(Kind.MISSING, None, "dog", (64, 1, 2, 2))], "64, 1, 2, 2 lie outside of image 1, 64 x 48 px"),
        ([correction(Kind.MISPLACED, 11, "cat", (1, -2, 2, 2))], "1, -2, 2, 2 lie outside of image 1"),
    ],
)
def test_corrections_that_fit_no_annotation(rows, message):
    with pytest.raises(ConfigError, match=message):
        correct(CONTENT, rows)


ROWS = [
    Correction(
        Kind.MISPLACED, 0.8125, -0.25, 0.5, "a,b.png", 1, 12, "cat", (20, 2, 10, 12), "cat", (21.25, 2.5, 8.0, 11.0)
    ),
    Correction(Kind.SPURIOUS, 0.5, 0.0, None, "a,b.png", 2, 19, "cat", (30, 3, 9, 9), None, None),
    Correction(Kind.MISSING, 0.5, 1.0, None, "a,b.png", 1, None, None, None, "dog", (40, 30, 5, 6)),
]


def edited(path, accept, **cells):
    """The table of ``ROWS`` with ``accept`` in that column, and other cells changed in the first row."""
    rows = list(csv.DictReader(as_csv(ROWS).removeprefix("\ufeff").splitlines()))
    for row, word in zip(rows, accept, strict=True):
        row["accept"] = word
    rows[0].update(cells)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_what_is_accepted_is_read_as_it_was_written(tmp_path):
    assert read_accepted(edited(tmp_path / "a.csv", ["", "no", "0"])) == ([], 3)
    accepted, count = read_accepted(edited(tmp_path / "a.csv", ["yes", "X", " 1 "]))
    assert [one.where for one in accepted] == [f"apply: {tmp_path / 'a.csv'}, line {n}" for n in (2, 3, 4)]
    assert ([one._replace(where="apply") for one in accepted], count) == (ROWS, 3)
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["y", "", ""], new_class="dog", new_x="3.5"))
    assert (one.new_name, one.new_box) == ("dog", (3.5, 2.5, 8.0, 11.0)), "a person may change the proposal"
    german = (tmp_path / "a.csv").read_text().replace(",", ";").replace("a;b", "a,b").replace("3.5", "3,5")
    (tmp_path / "german.csv").write_text("\ufeff" + german)
    assert read_accepted(tmp_path / "german.csv") == (
        [one._replace(where=f"apply: {tmp_path / 'german.csv'}, line 2")],
        3,
    )
    (tmp_path / "a.csv").write_text((tmp_path / "a.csv").read_text() + "," * (len(COLUMNS) - 1) + "\n\nyes\n")
    with pytest.raises(ConfigError, match=r"line 7: kind must be one of .*, not ''"):
        read_accepted(tmp_path / "a.csv")  # the rows before are what spreadsheets leave, and hold nothing


OWN = (30.0, 3.0, 9.0, 9.0)


@pytest.mark.parametrize("kind", [Kind.SPURIOUS, Kind.DUPLICATE])
@pytest.mark.parametrize(
    ("cells", "name", "box"),
    [
        ({"new_class": "dog"}, "dog", OWN),
        ({"new_x": "31,5", "new_h": "8"}, "cat", (31.5, 3, 9, 8)),
        (dict(zip(COLUMNS[-5:], ("dog", "1", "2", "3", "4"), strict=True)), "dog", (1, 2, 3, 4)),
        ({"new_class": " "}, None, None),
    ],
)
def test_a_box_goes_only_where_nothing_is_proposed(tmp_path, kind, cells, name, box):
    """What a person fills in counts, whatever the finding is about; the rest is the label's."""
    row = {"kind": kind.value, "annotation_id": "13", "image_id": "2", **dict(zip("xywh", OWN, strict=True)), **cells}
    proposed = dict.fromkeys(COLUMNS[-5:], "")
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], **proposed | row))
    assert (one.new_name, one.new_box) == (name, box)
    made = [a for a in correct(CONTENT, [one._replace(name="dog")])["annotations"] if a["id"] == 13]
    assert len(made) == (name is not None)
    for label in made:
        assert label["category_id"] == (7 if name == "dog" else 3)
        assert label["bbox"] == ([3, 3, 9, 9] if box == OWN else [*box]), "one that was not moved is the file's"


def test_what_is_empty_of_another_proposal_is_the_labels(tmp_path):
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], **dict.fromkeys(COLUMNS[-4:], "")))
    assert (one.new_name, one.new_box, one.is_moved) == ("cat", (20, 2, 10, 12), False)


@pytest.mark.parametrize("sides", [("0.00", "12.00"), ("10", "-12")])
def test_a_label_without_area_can_be_corrected(tmp_path, sides):
    """It is among what is found; only what is proposed must have area."""
    own = dict(zip("wh", sides, strict=True))
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], **own))
    assert one.new_box == ROWS[0].new_box
    gone = {"kind": "no object", **dict.fromkeys(COLUMNS[-5:], "")}
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], **own | gone))
    assert one.new_box is None
    with pytest.raises(ConfigError, match="line 2: new_w and new_h must be above 0"):
        read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], **own, new_w=own["w"], new_h=own["h"]))


@pytest.mark.parametrize("text", ["9007199254740993", " 9007199254740993 ", "9007199254740993,0", "9007199254740993."])
def test_large_ids_keep_all_their_digits(tmp_path, text):
    (one,), _ = read_accepted(edited(tmp_path / "a.csv", ["yes", "", ""], annotation_id=text))
    assert one.annotation_id == 2**53 + 1


@pytest.mark.parametrize(
    ("encoding", "delimiter"),
    [("utf-8", ","), ("utf-8-sig", ";"), ("utf-8", "\t"), ("utf-16", "\t"), ("utf-16", ";")],
)
def test_what_spreadsheets_save_is_read(tmp_path, encoding, delimiter):
    rows = [one._replace(file="größe, b.png") for one in ROWS]
    assert as_csv(rows).startswith("\ufeff"), "spreadsheets take what has none for their own encoding"
    (tmp_path / "a.csv").write_text(as_csv(rows).replace("\n,", "\nyes,"), encoding="utf-8")
    table = list(csv.reader((tmp_path / "a.csv").open(encoding="utf-8-sig", newline="")))
    with (tmp_path / "b.csv").open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\r\n").writerows(table)
    for name in ("a.csv", "b.csv"):
        assert [one._replace(where="apply") for one in read_accepted(tmp_path / name)[0]] == rows


def test_another_encoding_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_text(as_csv([ROWS[0]._replace(file="größe.png")])[1:], encoding="cp1252")
    with pytest.raises(ConfigError, match=r"a\.csv: is not in UTF-8: let the spreadsheet save it as CSV UTF-8$"):
        read_accepted(tmp_path / "a.csv")


def test_one_new_box_in_two_rows_is_refused(tmp_path):
    """As after pasting a line twice; another class, image or place is another object."""
    new = ROWS[2]
    others = [
        new._replace(new_name="cat"),
        new._replace(image_id=2),
        new._replace(new_box=(40, 30, 5, 7)),
        ROWS[1],
        ROWS[1],
    ]
    (tmp_path / "a.csv").write_text(as_csv([new, *others]).replace("\n,", "\nyes,"), encoding="utf-8")
    assert len(read_accepted(tmp_path / "a.csv")[0]) == 6
    (tmp_path / "a.csv").write_text(as_csv([new, *others, new]).replace("\n,", "\nyes,"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.csv, line 8: the new dog of image 1 is that of line 2$"):
        read_accepted(tmp_path / "a.csv")


def test_a_no_is_a_decision_too(tmp_path):
    assert num_decided(edited(tmp_path / "a.csv", ["", " ", ""])) == 0
    assert num_decided(edited(tmp_path / "a.csv", ["no", "maybe", ""])) == 2


@pytest.mark.parametrize(
    ("accept", "cells", "message"),
    [
        ("maybe", {}, r"a\.csv, line 2: accept must be one of yes, y, 1, true, x, no, n, .* or empty, not 'maybe'"),
        ("yes", {"kind": "odd"}, "line 2: kind must be one of missing, no object, .*, not 'odd'"),
        ("yes", {"new_w": "wide"}, "line 2: new_w must be a number, not 'wide'"),
        ("yes", {"new_w": "0"}, "line 2: new_w and new_h must be above 0, not 0 and 11"),
        ("yes", dict.fromkeys(COLUMNS[-5:], ""), "line 2: misplaced needs new_class, new_x, new_y, new_w, new_h"),
        ("yes", {"kind": "no object", "x": ""}, "line 2: no object needs x, y, w, h, as the table had them"),
        (
            "yes",
            {"kind": "missing", "annotation_id": "", "new_x": "", **dict.fromkeys("xywh", "")},
            "missing needs new_",
        ),
        (
            "yes",
            {"annotation_id": "1.5"},
            "line 2: annotation_id must be a whole number, with all its digits, not '1.5'",
        ),
        ("yes", {"annotation_id": "9.0072E+15"}, "annotation_id must be a whole number, with all its .* not '9.0072E"),
        ("yes", {"image_id": "one"}, "image_id must be a whole number, with all its digits, not 'one'"),
        ("yes", {"annotation_id": ""}, "line 2: misplaced needs image_id and annotation_id"),
    ],
)
def test_cells_that_say_nothing(tmp_path, accept, cells, message):
    with pytest.raises(ConfigError, match=message):
        read_accepted(edited(tmp_path / "a.csv", [accept, "", ""], **cells))


def test_a_table_that_is_none(tmp_path):
    (tmp_path / "a.csv").write_text("accept,kind\n")
    with pytest.raises(ConfigError, match=r"a\.csv: has no column certainty, loss_gain, "):
        read_accepted(tmp_path / "a.csv")
