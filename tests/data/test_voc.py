"""Pascal VOC's layout: its convention of pixels, and everything that can be wrong in it."""

import re

import numpy as np
import pytest

from detkit.data import CocoDataset, VocDataset
from detkit.data.sample import trainable_boxes
from tests.data.builders import annotation, image, write_coco, write_picture

SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def thing(name: str, xmin, ymin, xmax, ymax, difficult=0) -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox>{part}</object>"


def write_voc(root, files: dict[str, str], split: str = "train", lines: str | None = None, size: str = SIZE):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, objects in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        write_picture(root / "JPEGImages" / f"{stem}.jpg")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(files) if lines is None else lines)
    return root


def open_set(root, **options):
    return VocDataset(root=str(root), **options)


def refused(root, message: str, **options) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        open_set(root, **options)


def test_pixels_count_from_1_and_the_last_one_is_inside(tmp_path):
    write_voc(tmp_path, {"b": thing("dog", 1, 1, 64, 48), "a": thing("cat", 11, 6, 20, 15)})
    data = open_set(tmp_path)
    assert data.categories.names == ("cat", "dog")
    assert data.categories.ids == (1, 2)
    np.testing.assert_array_equal(data.truths[0].boxes, [[10, 5, 10, 10]])
    np.testing.assert_array_equal(data.truths[1].boxes, [[0, 0, 64, 48]])  # the whole image
    assert data.truths[1].area.tolist() == [64 * 48]
    assert [t.image_id for t in data.truths] == [1, 2]
    assert data.truths[0].file.endswith("JPEGImages/a.jpg")
    assert data.read(0).shape == (48, 64, 3)


def test_continuous_corners_on_request(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 0, 6.5, 20, 15)})
    np.testing.assert_array_equal(open_set(tmp_path, inclusive=False).truths[0].boxes, [[0, 6.5, 20, 8.5]])


def test_difficult_becomes_crowd(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9, difficult=1) + thing("cat", 2, 2, 9, 8)})
    data = open_set(tmp_path)
    assert data.truths[0].crowd.tolist() == [True, False]
    assert data.report.count("crowd or difficult boxes") == 1


def test_classes_are_those_of_all_splits(tmp_path):
    write_voc(tmp_path, {"a": thing("zebra", 2, 2, 9, 9)}, "val")
    write_voc(tmp_path, {"b": thing("cat", 2, 2, 9, 9)}, "train")
    assert open_set(tmp_path, split="train").categories == open_set(tmp_path, split="val").categories
    assert open_set(tmp_path).categories.names == ("cat", "zebra")


def test_classes_of_the_config_come_in_its_order(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)})
    data = open_set(tmp_path, classes=("dog", "cat"))
    assert data.categories.names == ("dog", "cat")
    assert data.truths[0].labels.tolist() == [1]


def test_the_same_records_as_from_coco(tmp_path):
    write_voc(tmp_path / "voc", {"1": thing("cat", 11, 6, 20, 15) + thing("dog", 60, 1, 70, 48), "2": ""})
    annotations = [annotation(1, 1, [10, 5, 10, 10], 1), annotation(2, 1, [59, 0, 11, 48], 2)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    write_coco(tmp_path / "coco", [image(1), image(2)], annotations, categories)
    voc, coco = open_set(tmp_path / "voc"), CocoDataset(root=str(tmp_path / "coco"))
    assert voc.categories == coco.categories
    for a, b in zip(voc.truths, coco.truths, strict=True):
        for name in ("boxes", "labels", "area", "crowd", "annotation_ids"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.image_id, a.size) == (b.image_id, b.size)
    assert [(f.problem, f.count) for f in voc.report.findings] == [(f.problem, f.count) for f in coco.report.findings]
    assert voc.report.count("boxes partly outside their image") == 1


def test_lists_of_single_classes_have_a_second_column(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": ""}, lines="a  1\nb -1\n\n")
    assert len(open_set(tmp_path)) == 2


def test_a_missing_or_zero_size_is_read_from_the_picture_and_counted(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)}, size="<size><width>0</width><height>0</height></size>")
    data = open_set(tmp_path)
    assert data.truths[0].size == (48, 64)
    assert data.report.count("XML files without a size") == 1
    assert data.read(0).shape == (48, 64, 3)


def test_a_picture_without_readable_header_is_only_needed_where_the_size_is(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": thing("cat", 2, 2, 9, 9)}, size="")
    file = tmp_path / "JPEGImages" / "a.jpg"
    file.write_bytes(b"")
    refused(tmp_path, f"unreadable images (1): {file}: the file is empty (0 bytes). Correct the file")
    data = open_set(tmp_path, on_missing="skip")
    assert [t.image_id for t in data.truths] == [2]
    assert data.report.count("unreadable images") == 1


def test_bad_objects_name_image_and_number(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9) + thing("cat", 2, "", 9, 9) + thing("cat", 2, 2, "inf", 9)})
    refused(
        tmp_path,
        "boxes that are not four finite numbers (2): object 2 of a: class 'cat', corners [2.0, nan, 9.0, 9.0]; "
        "object 3 of a: class 'cat', corners [2.0, 2.0, nan, 9.0]. Correct the file, or leave them out with "
        "on_bad_annotation=skip",
    )
    data = open_set(tmp_path, on_bad_annotation="skip")
    np.testing.assert_array_equal(data.truths[0].boxes, [[1, 1, 8, 8]])


def test_unknown_classes(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9) + thing("owl", 3, 3, 9, 9)})
    refused(tmp_path, "object 2 of a: class 'owl', corners [3.0, 3.0, 9.0, 9.0]. Known are cat. ", classes=("cat",))
    data = open_set(tmp_path, classes=("cat",), on_bad_annotation="skip")
    assert data.report.count("annotations of an unknown category") == 1
    assert len(data.truths[0]) == 1


def test_corners_in_the_wrong_order_and_outside_are_counted(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 9, 9, 2, 2) + thing("cat", 90, 90, 99, 99) + thing("cat", 2, 2, 9, 9)})
    data = open_set(tmp_path)
    assert data.report.count("boxes with a negative width or height") == 1
    assert data.report.count("boxes outside their image") == 1
    assert trainable_boxes(data.truths[0])[1].tolist() == [False, False, True]
    assert "object 2 of a: class 'cat', corners [90.0, 90.0, 99.0, 99.0]" in str(data.report)


def test_missing_parts(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": thing("cat", 2, 2, 9, 9)})
    listing = tmp_path / "ImageSets" / "Main" / "test.txt"
    refused(tmp_path, f"{listing}: No such file or directory; lists in that folder: train", split="test")
    (tmp_path / "Annotations" / "a.xml").unlink()
    refused(tmp_path, f"missing annotation files (1): {tmp_path / 'Annotations' / 'a.xml'}. Correct")
    data = open_set(tmp_path, on_missing="skip")
    assert data.report.count("missing annotation files") == 1
    assert len(data) == 1


def test_missing_pictures(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": ""})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    refused(tmp_path, f"missing image files (1): {tmp_path / 'JPEGImages' / 'a.jpg'}. Correct")
    assert open_set(tmp_path, on_missing="skip").report.count("missing image files") == 1


def test_a_name_listed_twice(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": ""}, lines="a\nb\na\n")
    refused(tmp_path, "duplicate image ids (1): id 1 (a).")
    data = open_set(tmp_path, on_bad_annotation="skip")
    assert [len(t) for t in data.truths] == [1, 0]


def test_broken_xml(tmp_path):
    write_voc(tmp_path, {"a": "<object>"})
    refused(tmp_path, f"{tmp_path / 'Annotations' / 'a.xml'}: not XML: mismatched tag: line 1")


def test_an_object_without_a_name(tmp_path):
    write_voc(tmp_path, {"a": "<object><bndbox/></object>"})
    refused(tmp_path, f"{tmp_path / 'Annotations' / 'a.xml'}: object 1 has no <name>")


def test_no_objects_at_all(tmp_path):
    write_voc(tmp_path, {"a": ""})
    refused(tmp_path, "no XML file has an object, so there are no classes")
    assert open_set(tmp_path, classes=("cat",)).report.count("images without boxes") == 1


def test_the_empty_list(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)}, lines="\n")
    refused(tmp_path, "train.txt: the data set is empty: no images")


def test_corners_of_0_prove_that_pixels_do_not_count_from_1(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 0, 0, 63, 47) + thing("cat", 5, 6, 9, 9)})
    report = open_set(tmp_path).report
    assert report.count("corners of 0, where VOC counts from 1") == 1
    assert "zero_based=true counts from 0, inclusive=false takes plain corners): object 1 of a: class 'cat'" in str(
        report
    )
    data = open_set(tmp_path, zero_based=True)
    np.testing.assert_array_equal(data.truths[0].boxes, [[0, 0, 64, 48], [5, 6, 5, 4]])
    assert data.truths[0].area.tolist() == [64 * 48, 20]
    assert data.report.findings == open_set(tmp_path, inclusive=False).report.findings == ()
    refused(tmp_path, "zero_based: inclusive=false takes the corners as they are", zero_based=True, inclusive=False)


REPEATED = {
    ", 2 <bndbox>": lambda text: text.replace("<part>", "<bndbox><xmin>4</xmin></bndbox><part>"),
    ", 2 <name>": lambda text: text.replace("<part>", "<name>dog</name><part>"),
    ", 2 <xmin>": lambda text: text.replace("<xmin>2", "<xmin>3</xmin><xmin>2"),
}


@pytest.mark.parametrize("told", REPEATED)
def test_what_an_object_has_twice_is_not_dropped(tmp_path, told):
    write_voc(tmp_path, {"a": thing("cat", 20, 20, 29, 29) + REPEATED[told](thing("cat", 2, 2, 9, 9))})
    with pytest.raises(ValueError, match=r"objects that have an element twice \(1\): object 2 of a: .*" + told):
        open_set(tmp_path)
    assert len(open_set(tmp_path, on_bad_annotation="skip").truths[0]) == 1


@pytest.mark.parametrize(("flag", "crowd"), [("1", True), (" true ", True), ("False", False), ("0", False)])
def test_words_for_difficult(tmp_path, flag, crowd):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9, difficult=flag)})
    assert open_set(tmp_path).truths[0].crowd.tolist() == [crowd]


@pytest.mark.parametrize("flag", ["yes", "2", "", "Unspecified"])
def test_difficult_that_is_no_flag(tmp_path, flag):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9, difficult=flag)})
    refused(tmp_path, f"<difficult> that is no flag (1): object 1 of a: class 'cat', corners [2.0, 2.0, 9.0, 9.0], difficult '{flag}'. A flag is")  # fmt: skip


@pytest.mark.parametrize(
    "lines", ["my photo\r\nx 1\r\n\r\n", "\ufeffmy photo\nx 1", "my photo  1\nx 1 -1\n", "my photo  0\n  x 1  1"]
)
def test_names_with_spaces_in_lists(tmp_path, lines):
    write_voc(tmp_path, {"my photo": thing("cat", 2, 2, 9, 9), "x 1": ""})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(lines.encode())
    assert [t.file.rpartition("/")[2] for t in open_set(tmp_path).truths] == ["my photo.jpg", "x 1.jpg"]


def test_subfolders_and_other_spellings_of_names(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)}, lines="cam\\e\u0301\n")
    for folder, ending in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (tmp_path / folder / "cam").mkdir()
        (tmp_path / folder / f"a.{ending}").rename(tmp_path / folder / "cam" / f"\u00e9.{ending}")
    data = open_set(tmp_path)
    assert data.read(0).shape == (48, 64, 3)
    assert len(data.truths[0]) == 1


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "utf-16", "utf-8-sig", "iso-8859-1", "windows-1251"])
def test_xml_in_the_encoding_that_it_declares(tmp_path, encoding):
    name = {"iso-8859-1": "\u00e9t\u00e9", "windows-1251": "\u043a\u043e\u0442"}.get(encoding, "\u732b")
    write_voc(tmp_path, {"a": ""})
    declared = f"<?xml version='1.0' encoding='{encoding.removesuffix('-sig')}'?>"
    text = f"{declared}<annotation>{SIZE}{thing(name, 2, 2, 9, 9)}</annotation>"
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert open_set(tmp_path).categories.names == (name,)


@pytest.mark.parametrize("declared", ["utf-8", "klingon", "gbk"])
def test_xml_in_another_encoding_than_it_declares_names_the_file(tmp_path, declared):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9), "b": thing("cat", 2, 2, 9, 9)})
    text = f"<?xml version='1.0' encoding='{declared}'?><annotation><x>".encode() + b"\xff</x></annotation>"
    (tmp_path / "Annotations" / "b.xml").write_bytes(text)
    refused(tmp_path, f"unreadable annotation files (1): {tmp_path / 'Annotations' / 'b.xml'}: not XML: ")
    assert len(open_set(tmp_path, on_bad_annotation="skip")) == 1


def test_a_list_in_another_encoding_names_the_file(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)})
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    listing.write_bytes(b"\xe9\n")
    refused(tmp_path, f"{listing}: 'utf-8' codec can't decode byte 0xe9")


def test_xml_of_another_kind(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 2, 2, 9, 9)})
    (tmp_path / "Annotations" / "a.xml").write_text(f"<all><annotation>{thing('cat', 2, 2, 9, 9)}</annotation></all>")
    refused(tmp_path, "a.xml: not VOC's XML: the outermost element is <all>, not <annotation>")


def test_shares_of_the_image_taken_for_pixels(tmp_path):
    write_voc(tmp_path, {"a": thing("cat", 0.1, 0.2, 0.4, 0.6) + thing("cat", 2, 2, 9, 9)})
    for inclusive in (True, False):
        assert open_set(tmp_path, inclusive=inclusive).report.count("boxes within the first pixel") == 1
