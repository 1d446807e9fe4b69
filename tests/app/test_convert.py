"""``tools/convert.py``: there and back, what is lost on the way is told, and nothing is written over."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from detkit.app import convert
from detkit.config import ConfigError
from detkit.data import CocoDataset, VocDataset, YoloDataset
from detkit.data.writers import relative_names
from tests.app.tools import call
from tests.data.builders import annotation, coco_set, image, write_coco, write_picture

READERS = {
    "coco": lambda root: CocoDataset(root=str(root)),
    "voc": lambda root: VocDataset(root=str(root)),
    "yolo": lambda root: YoloDataset(root=str(root)),
}

#: How far a corner may be off, px in pictures of 40 x 56: VOC has whole ones, YOLO six decimals of the side.
EXACT = {"coco": 0.0, "voc": 0.5, "yolo": 1e-4}


@pytest.fixture
def source(tmp_path):
    """Images of two sizes in two folders, boxes with fractions, a crowd or two."""
    root = coco_set(tmp_path / "source")
    content = json.loads((root / "train.json").read_text())
    for record in content["images"]:
        old, new = record["file_name"], f"cam{record['id'] % 2}/{record['id']}.png"
        (root / "images" / new).parent.mkdir(exist_ok=True)
        shutil.move(root / "images" / old, root / "images" / new)
        record["file_name"] = new
    (root / "train.json").write_text(json.dumps(content))
    return CocoDataset(root=str(root))


def everything(data):
    return {"train": list(range(len(data)))}


def corners(truth, rows=slice(None)):
    boxes = truth.boxes[rows]
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_there_and_back(source, tmp_path, layout):
    losses = convert.convert(source, layout, everything(source), tmp_path / "there")
    there = READERS[layout](tmp_path / "there")
    convert.convert(there, "coco", everything(there), tmp_path / "back")
    back = READERS["coco"](tmp_path / "back")
    assert sorted(relative_names(back)) == sorted(relative_names(source))
    by_name = dict(zip(relative_names(back), back.truths, strict=True))
    furthest, num_boxes = 0.0, 0
    for name, truth in zip(relative_names(source), source.truths, strict=True):
        found = by_name[name]
        rows = ~truth.crowd if layout == "yolo" else np.ones(len(truth), bool)
        assert found.size == truth.size
        assert [back.categories.names[k] for k in found.labels] == [
            source.categories.names[k] for k in truth.labels[rows]
        ]
        assert found.crowd.tolist() == truth.crowd[rows].tolist()
        furthest = max(furthest, np.abs(corners(found) - corners(truth, rows)).max(initial=0.0))
        num_boxes += len(found)
        if layout == "coco":
            assert found.image_id == truth.image_id
            assert found.annotation_ids.tolist() == truth.annotation_ids.tolist()
            np.testing.assert_array_equal(found.boxes, truth.boxes)
            np.testing.assert_array_equal(found.area, truth.area)
    assert furthest <= EXACT[layout] + 1e-9
    assert losses.moved == pytest.approx(furthest)
    assert num_boxes > 10
    np.testing.assert_array_equal(there.read(0), source.read(relative_names(source).index(relative_names(there)[0])))


def test_what_is_lost_is_counted(tmp_path):
    boxes = [
        annotation(1, 1, [1, 1, 9, 9], iscrowd=1), annotation(2, 1, [50, 30, 40, 40]), annotation(3, 1, [70, 5, 9, 9]),
        annotation(4, 1, [1, 1, 0, 5]), annotation(5, 1, [2, 2, 20, 20], area=250), annotation(6, 1, [5, 5, 0.3, 0.3]),
    ]  # fmt: skip
    data = CocoDataset(root=str(write_coco(tmp_path / "set", [image(1)], boxes)))
    assert convert.convert(data, "coco", everything(data), tmp_path / "coco").describe() == []
    shared = [
        "boxes cut at the border of their image: 1", "boxes without area inside their image left out: 2",
        "areas of masks lost: the format has none: 1",
    ]  # fmt: skip
    voc = convert.convert(data, "voc", everything(data), tmp_path / "voc").describe()
    assert voc[:3] == shared
    assert voc[3:] == [
        "crowds written as difficult: 1", "classes without a box lost: no list names them: 1",
        "corners moved by up to 0.7 px, as the format rounds",
    ]  # fmt: skip
    yolo = convert.convert(data, "yolo", everything(data), tmp_path / "yolo").describe()
    assert [*shared, "crowds left out: the format has none: 1"] == yolo[:4]
    assert VocDataset(root=str(tmp_path / "voc")).truths[0].boxes.tolist() == [
        [1, 1, 9, 9], [50, 30, 14, 18], [2, 2, 20, 20], [5, 5, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("h", [48, 64], ids=["oblong", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_keep_their_pixels_where_exif_turns_the_picture(tmp_path, orientation, h):
    """YOLO's readers turn every picture; COCO's sizes may say that it was annotated as it lies."""
    data = CocoDataset(root=str(write_coco(tmp_path / "set", [image(1, h, 64)], [annotation(1, 1, [3, 5, 20, 11])])))
    pixels = np.random.default_rng(0).integers(0, 255, (h, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "set/images/1.png", exif=exif)

    def inside(dataset):
        x, y, w, h = dataset.truths[0].boxes[0].round(3).astype(int)
        return dataset.read(0)[y : y + h, x : x + w]

    losses = convert.convert(data, "yolo", everything(data), tmp_path / "yolo")
    found, is_turned = inside(YoloDataset(root=str(tmp_path / "yolo"))), orientation >= 5 and h == 48
    turned = {5: (0,), 6: (0, 1), 7: (0, 2, 1), 8: (0, 2)}.get(orientation, ()) if is_turned else ()
    back = found
    for step in turned[::-1]:
        back = (back.transpose(1, 0, 2), back[:, ::-1], back[::-1])[step]
    assert found.shape[:2] == ((20, 11) if is_turned else (11, 20))
    np.testing.assert_array_equal(back, inside(data))
    assert losses.counts["images whose boxes were turned as their EXIF orientation says"] == is_turned


@pytest.mark.parametrize("merge", [None, {"pet": ["cat", "dog"]}])
def test_other_keys_of_a_coco_file_are_kept(tmp_path, monkeypatch, capsys, merge):
    root = write_coco(
        tmp_path / "set",
        [image(1, license=3), image(2, coco_url="http://there", camera={"name": "left"})],
        [
            annotation(4, 2, [1, 1, 9, 9], segmentation=[[1, 1, 10, 1, 10, 10]], keypoints=[2, 3, 2, 0, 0, 0]),
            annotation(9, 1, [2, 2, 9, 9], 7, attributes={"occluded": True}),
        ],
        [{"id": 7, "name": "dog", "supercategory": "animal"},
         {"id": 3, "name": "cat", "keypoints": ["ear", "tail"], "skeleton": [[1, 2]]}],
    )  # fmt: skip
    before = json.loads((root / "train.json").read_text()) | {"info": {"year": 2026}, "licenses": [{"id": 3}]}
    (root / "train.json").write_text(json.dumps(before))
    more = [] if merge is None else ["merge={pet: [cat, dog]}"]
    call(
        convert.main, monkeypatch, capsys, "data=coco", f"data.root={root}", "to=coco", f"output={tmp_path / 'out'}",
        "into={train: 0.5, rest: 0.5}", *more,
    )  # fmt: skip
    parts = [json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in ("train", "rest")]
    for part in parts:
        assert (part["info"], part["licenses"]) == ({"year": 2026}, [{"id": 3}])
    for key, id_of in (("images", {1, 2}), ("annotations", {4, 9})):
        found = {record["id"]: record for part in parts for record in part[key]}
        assert set(found) == id_of
        for old in before[key]:
            new = found[old["id"]]
            assert {k: v for k, v in new.items() if k in old and k != "category_id"} == {
                k: v for k, v in old.items() if k != "category_id"
            }
    names = {record["name"]: record for record in parts[0]["categories"]}
    assert names["pet" if merge else "cat"]["skeleton"] == [[1, 2]]
    if not merge:
        assert names["dog"]["supercategory"] == "animal"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat", "cat "), "classes 'cat' and 'cat ' would be one, as VOC's files have no blanks around a name: merge={cat: ['cat', 'cat ']}"),
        (("cat", "a\x0bb"), "class 'a\\x0bb': has a character that XML cannot hold; merge={NAME: ['a\\x0bb']}"),
        (("cat", "a\rb"), "class 'a\\rb': has a character that XML cannot hold"),
        (("cat", "a\ud800b"), "class 'a\\ud800b': has a character that XML cannot hold"),
    ],
)  # fmt: skip
def test_classes_that_xml_cannot_hold_or_tell_apart_are_refused(tmp_path, names, words):
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    rows = [annotation(i, 1, [i, i, 9, 9], i) for i in (1, 2)]
    data = CocoDataset(root=str(write_coco(tmp_path / "set", [image(1)], rows, categories)))
    with pytest.raises(ConfigError, match=f"^to: {re.escape(words)}"):
        convert.convert(data, "voc", everything(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert.convert(data, "coco", everything(data), tmp_path / "out")
    assert CocoDataset(root=str(tmp_path / "out")).categories == data.categories


def test_a_class_that_loses_the_blanks_around_it_is_counted(tmp_path):
    root = write_coco(tmp_path / "set", [image(1)], [annotation(1, 1, [1, 1, 9, 9], 1)], [{"id": 1, "name": " cat"}])
    data = CocoDataset(root=str(root))
    losses = convert.convert(data, "voc", everything(data), tmp_path / "out")
    assert "names of classes without the blanks around them: 1" in losses.describe()


def test_names_with_signs_of_xml_and_yaml(tmp_path):
    categories = [{"id": 1, "name": 'a <b> & "c"'}, {"id": 2, "name": "yes: 007 \u00e9"}]
    rows = [annotation(1, 1, [1, 1, 9, 9], 1), annotation(2, 1, [2, 2, 9, 9], 2)]
    data = CocoDataset(root=str(write_coco(tmp_path / "set", [image(1, file_name="\u00e9 1.png")], rows, categories)))
    for layout in ("voc", "yolo"):
        convert.convert(data, layout, everything(data), tmp_path / layout)
        assert READERS[layout](tmp_path / layout).categories.names == data.categories.names


def test_the_tool_splits_and_tells(source, tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "source", tmp_path / "out"
    arguments = ["data=coco", f"data.root={root}", "to=yolo", f"output={out}", "into={train: 0.5, test: 0.5}"]
    output = call(convert.main, monkeypatch, capsys, *arguments, "group=folder")
    parts = [YoloDataset(root=str(out), images=f"images/{part}") for part in ("train", "test")]
    folders = [{name.split("/")[0] for name in os.listdir(out / "images" / part)} for part in ("train", "test")]
    assert sorted(map(sorted, folders)) == [["cam0"], ["cam1"]]
    counts = [sum((t.labels == 0).sum() for t in part.truths) for part in parts]
    row = next(line for line in output.splitlines() if " cat " in line)
    assert [int(n) for n in row.replace("\u2502", " ").split()[1:]] == counts
    num_crowds = sum(int(truth.crowd.sum()) for truth in source.truths)
    assert f"crowds left out: the format has none: {num_crowds}" in output
    assert f"next: python tools/inspect_data.py data=yolo data.root={out}" in output
    again = call(convert.main, monkeypatch, capsys, *arguments, code=2)
    assert f"output: {out} is there and not empty; nothing is written over: choose another folder" in again
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out"}


@pytest.fixture
def both(tmp_path):
    """A set in COCO's layout with a train and a val file of one folder, whose ids and other keys overlap."""
    root = write_coco(tmp_path / "both", [image(1, license=3), image(2)], [annotation(4, 2, [1, 1, 9, 9], 7)])
    train = json.loads((root / "train.json").read_text()) | {"info": {"year": 2025}}
    first = train["images"][0]
    shutil.copy(root / "images" / first["file_name"], root / "images" / "other.png")
    val = train | {"images": [first | {"file_name": "other.png", "license": 5}], "info": {"year": 2026}}
    val["annotations"] = [{**train["annotations"][0], "image_id": 1, "bbox": [2, 3, 4, 5]}]
    for name, content in (("train", train), ("val", val)):
        (root / f"{name}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo"])
def test_all_splits_stay_what_they_are(both, tmp_path, monkeypatch, capsys, layout):
    out, back = tmp_path / "out", tmp_path / "back"
    said = ("merge={animal: [dog]}", "split=all")
    call(convert.main, monkeypatch, capsys, "data=coco", f"data.root={both}", *said, f"to={layout}", f"output={out}")
    again = (f"data={layout}", f"data.root={out}", "split=all", f"to={layout}", f"output={back}")
    call(convert.main, monkeypatch, capsys, *again)
    splits = {"coco": "annotations={}.json", "voc": "split={}", "yolo": "images=images/{}"}
    key, _, value = splits[layout].partition("=")
    for root in (out, back):
        cls = {"coco": CocoDataset, "voc": VocDataset, "yolo": YoloDataset}[layout]
        train, val = (cls(root=str(root), **{key: value.format(split)}) for split in ("train", "val"))
        assert [os.path.basename(t.file) for t in train.truths] == ["1.png", "2.png"]
        assert [os.path.basename(t.file) for t in val.truths] == ["other.png"]
        assert sorted(path.name for path in root.rglob("*.png")) == ["1.png", "2.png", "other.png"]
        assert [t.boxes.round(3).tolist() for t in val.truths] == [[[2, 3, 4, 5]]]
        assert [t.boxes.round(3).tolist() for t in train.truths] == [[], [[1, 1, 9, 9]]]
        assert "animal" in train.categories.names
        assert not list(root.glob("images/*/train"))
    if layout == "coco":
        content = [json.loads((back / f"{split}.json").read_text()) for split in ("train", "val")]
        assert [part["info"]["year"] for part in content] == [2025, 2026]
        assert [part["images"][0]["license"] for part in content] == [3, 5]


def test_splits_of_other_classes_and_new_parts_of_all_are_refused(both, tmp_path, monkeypatch, capsys):
    said = ("data=coco", f"data.root={both}", "split=all", "to=yolo", f"output={tmp_path / 'out'}")
    told = call(convert.main, monkeypatch, capsys, *said, "into={a: 0.5, b: 0.5}", code=2)
    assert "into: says new parts of one of them, and split=all keeps those that there are" in told
    content = json.loads((both / "val.json").read_text())
    content["categories"][0]["name"] = "horse"
    (both / "val.json").write_text(json.dumps(content))
    told = call(convert.main, monkeypatch, capsys, *said, code=2)
    assert "split: val has other classes than train: " in told
    assert "horse" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("merge", "joined", "ids"),
    [
        ("{pet: [dog, cat]}", {"cat": "pet", "dog": "pet"}, {"pet": 3}),
        ("{beast: [dog]}", {"cat": "cat", "dog": "beast"}, {"cat": 3, "beast": 7}),
        ("{dog: [cat, dog]}", {"cat": "dog", "dog": "dog"}, {"dog": 3}),
    ],
)
def test_classes_are_merged(source, tmp_path, monkeypatch, capsys, merge, joined, ids):
    """A new class stands where the first of its old ones stood; boxes, crowds and numbers stay."""
    start = ("data=coco", f"data.root={tmp_path / 'source'}", "to=coco", f"output={tmp_path / 'out'}")
    call(convert.main, monkeypatch, capsys, *start, f"merge={merge}")
    there = CocoDataset(root=str(tmp_path / "out"))
    assert dict(zip(there.categories.names, there.categories.ids, strict=True)) == ids
    for before, after in zip(source.truths, there.truths, strict=True):
        names = [joined[source.categories.names[k]] for k in before.labels]
        assert [there.categories.names[k] for k in after.labels] == names
        np.testing.assert_array_equal(after.boxes, before.boxes)
        np.testing.assert_array_equal(after.crowd, before.crowd)
        np.testing.assert_array_equal(after.annotation_ids, before.annotation_ids)


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("{pet: [cat, cow]}", "merge.pet: the data has no class 'cow', but cat, dog"),
        ("{pet: [cat], beast: [cat]}", "merge.beast: 'cat' is in pet already"),
        ("{dog: [cat]}", "merge.dog: there is such a class already: list it too, or choose another name"),
        ("{pet: []}", "merge.pet: is of no class: list those that it joins"),
    ],
)
def test_classes_that_cannot_be_merged_are_named(source, tmp_path, monkeypatch, capsys, merge, message):
    start = ("data=coco", f"data.root={tmp_path / 'source'}", "to=voc", f"output={tmp_path / 'out'}")
    assert message in call(convert.main, monkeypatch, capsys, *start, f"merge={merge}", code=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "into", "override"),
    [
        ("coco", "{test: 1}", "data.train.annotations=test.json"),
        ("voc", "{test: 1}", "data.train.split=test"),
        ("yolo", "{test: 1}", "data.train.images=images/test"),
        ("coco", "null", ""),
    ],
)
def test_the_next_command_reads_what_was_written(source, tmp_path, monkeypatch, capsys, layout, into, override):
    out = tmp_path / "out"
    start = ("data=coco", f"data.root={tmp_path / 'source'}", f"to={layout}", f"output={out}", f"into={into}")
    output = call(convert.main, monkeypatch, capsys, *start, "pictures=link")
    assert f"next: python tools/inspect_data.py data={layout} data.root={out} {override}".rstrip() in output
    pictures = list(out.rglob("*.png"))
    assert len(pictures) == 12
    assert all(path.is_symlink() and path.exists() for path in pictures)
    again = ("to=coco", f"output={tmp_path / 'again'}", f"data={layout}", f"data.root={out}")
    call(convert.main, monkeypatch, capsys, *again, *([override] if override else []))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("to=null",), "to: must be given: one of coco, voc, yolo"),
        (("to=pascal",), "to: must be one of 'coco', 'voc', 'yolo' or null, not 'pascal'"),
        (("output=null",), "output: must be given: the folder to write"),
        (("group=folder",), "group: says which images stay together in a split, and into says no parts"),
        (("into={a: 0.5, b: 0.6}",), "into: the shares must add up to 1, not 1.1"),
        (("into={a: 0.5, b: 0.5}", "group=(.*)_frame"), "group: '(.*)_frame' does not match cam1/1.png (and 11 more)"),
        (("split=val",), "val.json: No such file or directory"),
        (("splitt=val",), "splitt: no key 'splitt'; did you mean 'split'?"),
    ],
)
def test_mistakes_get_one_clear_line(source, tmp_path, monkeypatch, capsys, overrides, message):
    start = ("data=coco", f"data.root={tmp_path / 'source'}", "to=voc", f"output={tmp_path / 'out'}")
    keys = {o.split("=")[0] for o in overrides}
    start = [o for o in start if o.split("=")[0] not in keys]
    assert message in call(convert.main, monkeypatch, capsys, *start, *overrides, code=2)
    assert not (tmp_path / "out").exists()


def test_pictures_that_would_share_their_annotations(tmp_path):
    root = write_coco(tmp_path / "set", [image(1, file_name="a.png"), image(2, file_name="a.jpg")], [])
    data = CocoDataset(root=str(root))
    with pytest.raises(ConfigError, match=r"to: a\.png and a\.jpg would have the same annotation file; to=coco can"):
        convert.convert(data, "voc", everything(data), tmp_path / "out")
    convert.convert(data, "coco", everything(data), tmp_path / "out")
    assert len(CocoDataset(root=str(tmp_path / "out"))) == 2


@pytest.mark.parametrize("is_linked", [False, True])
def test_two_images_of_one_file(tmp_path, is_linked):
    """With the same boxes in two records, say: the picture is written once, into whichever part."""
    root = write_coco(
        tmp_path / "set", [image(1, file_name="a.png"), image(2, file_name="a.png")], [annotation(1, 2, [2, 3, 9, 8])]
    )
    data = CocoDataset(root=str(root))
    convert.convert(data, "coco", {"train": [0], "val": [1]}, tmp_path / "out", is_linked=is_linked)
    assert [p.is_symlink() for p in (tmp_path / "out" / "images").iterdir()] == [is_linked]
    assert [len(t) for t in CocoDataset(root=str(tmp_path / "out"), annotations="val.json").truths] == [1]


def test_pictures_that_would_be_one_file(tmp_path):
    """Names are written in one form, so the second would take the place of the first."""
    names = "\u00e9.png", "e\u0301.png"
    root = write_coco(tmp_path / "set", [image(i, file_name=name) for i, name in enumerate(names, start=1)], [])
    data = CocoDataset(root=str(root))
    if len(set((root / "images").iterdir())) < 2:
        pytest.skip("the file system takes both names for one")
    with pytest.raises(ConfigError, match=r"to: .*\\xe9\.png' and .*e\\u0301\.png' would be one file: "):
        convert.convert(data, "coco", everything(data), tmp_path / "out")


@pytest.mark.parametrize("layout", ["voc", "yolo"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.jfif", "has none of the endings .jpg"), ("a", "has none"), (".old/a.png", "lies in a hidden folder")],
)
def test_pictures_that_would_not_be_found(tmp_path, layout, name, reason):
    root = write_coco(tmp_path / "set", [image(1), image(2, file_name=name)], [], pictures=False)
    for record in ("1.png", name):
        write_picture(tmp_path / "made.png")
        (root / "images" / record).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made.png").rename(root / "images" / record)
    data = CocoDataset(root=str(root))
    with pytest.raises(
        ConfigError, match=f"to: '{re.escape(name)}' {reason}.*, so {layout} would not find it; to=coco"
    ):
        convert.convert(data, layout, everything(data), tmp_path / "out")
    convert.convert(data, "coco", everything(data), tmp_path / "out")
    assert len(CocoDataset(root=str(tmp_path / "out"))) == 2


def test_a_name_that_begins_with_a_blank_is_none_for_vocs_lists(tmp_path):
    data = CocoDataset(
        root=str(write_coco(tmp_path / "set", [image(1, file_name=" a.png")], [annotation(1, 1, [2, 3, 9, 8])]))
    )
    with pytest.raises(ConfigError, match=r"to: ' a\.png' has a blank at an end of its name, so voc would not find it"):
        convert.convert(data, "voc", everything(data), tmp_path / "out")
    convert.convert(data, "yolo", everything(data), tmp_path / "out")
    assert relative_names(READERS["yolo"](tmp_path / "out")) == [" a.png"]


def test_a_full_disk_leaves_nothing_and_names_the_file(source, tmp_path, monkeypatch):
    copied = []

    def fill(old, new):
        copied.append(new)
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))

    monkeypatch.setattr("detkit.data.writers.shutil.copyfile", fill)
    with pytest.raises(OSError, match="No space left on device") as caught:
        convert.convert(source, "voc", everything(source), tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out" / "JPEGImages" / "cam1" / "3.png")
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_an_empty_folder_is_taken_and_a_full_one_is_not(source, tmp_path):
    (tmp_path / "out").mkdir()
    convert.convert(source, "coco", everything(source), tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(ConfigError, match="is there and not empty"):
        convert.convert(source, "voc", everything(source), tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before
    assert os.stat(tmp_path / "out").st_mode & 0o777 == 0o755
