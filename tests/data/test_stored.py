"""The table in the cache: shared, never stale, never in the way."""

import errno
import json
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from detkit.data import CocoDataset
from detkit.data.datasets import coco, stored
from detkit.data.datasets.stored import cache_folder
from detkit.data.datasets.table import Strings, TruthTable
from detkit.utils.lock import claim
from tests.data.builders import annotation, coco_set, image, write_coco
from tests.data.test_coco_columns import assert_same


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of its own, that takes small files and files of this moment."""
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "SMALLEST", 0)
    monkeypatch.setattr(stored, "SETTLED", -1.0)
    return tmp_path / "cache"


@pytest.fixture
def parsed(monkeypatch) -> list[Path]:
    """The files that were parsed, one by one."""
    found = []
    read = coco.read_columns
    monkeypatch.setattr(coco, "read_columns", lambda path: found.append(path) or read(path))
    return found


def open_set(root, **options) -> CocoDataset:
    return CocoDataset(root=str(root), **options)


def tables(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/table"))


def test_the_second_opening_maps_what_the_first_has_written(tmp_path, cache, parsed, monkeypatch):
    root = coco_set(tmp_path / "data")
    content = json.loads((root / "train.json").read_text())
    content["annotations"].append(annotation(99, 1, [70, 5, 10, 10]))  # something to report
    (root / "train.json").write_text(json.dumps(content))
    first, second = open_set(root), open_set(root)
    assert len(parsed) == len(tables(cache)) == 1
    assert isinstance(second.truths, TruthTable)
    assert first.truths.stored == second.truths.stored is not None, "the builder, too, has the mapped pages only"
    monkeypatch.setattr(stored, "SMALLEST", 10**9)
    plain = open_set(root)
    assert plain.truths.stored is None
    assert_same(second, plain)
    assert second.report.findings
    second.truths.boxes[:] = 0  # as writable as any, and nobody else's
    assert_same(open_set(root), plain)


def test_a_small_file_is_not_worth_it(tmp_path, cache, parsed, monkeypatch):
    monkeypatch.setattr(stored, "SMALLEST", 10**6)
    root = coco_set(tmp_path / "data")
    assert open_set(root).truths.stored is None
    assert not cache.exists()


@pytest.mark.parametrize("how", ["content", "time", "replaced"])
def test_a_changed_file_is_read_anew(tmp_path, cache, parsed, how):
    """Also one that has its size, and its time set back."""
    root = write_coco(tmp_path / "data", [image(1)], [annotation(1, 1, [1, 1, 9, 9])])
    path = root / "train.json"
    old = os.stat(path)
    open_set(root)
    text = path.read_text().replace("[1, 1, 9, 9]", "[1, 1, 8, 8]")
    if how == "replaced":
        (root / "new.json").write_text(text)
        os.utime(root / "new.json", ns=(old.st_atime_ns, old.st_mtime_ns))
        os.replace(root / "new.json", path)
    else:
        path.write_text(text)
    if how == "time":
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert open_set(root).truths[0].boxes.tolist() == [[1, 1, 8, 8]]
    assert open_set(root).truths[0].boxes.tolist() == [[1, 1, 8, 8]]
    assert len(parsed) == 2
    assert len(tables(cache)) == 1, "in the place of the old one"


def test_a_file_of_this_moment_is_not_kept(tmp_path, cache, parsed, monkeypatch):
    """It may be written once more within the same tick of the clock."""
    root = coco_set(tmp_path / "data")
    monkeypatch.setattr(stored, "SETTLED", 2.0)
    assert open_set(root).truths.stored is None
    assert not tables(cache)
    monkeypatch.setattr(stored.time, "time", lambda now=time.time: now() + 3)
    assert open_set(root).truths.stored is not None


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, cache, monkeypatch):
    root = coco_set(tmp_path / "data")
    read = coco.read_columns

    def slow(path):
        found = read(path)
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(coco, "read_columns", slow)
    assert open_set(root).truths.stored is None
    assert not tables(cache)


def test_a_picture_that_has_gone_is_told_of(tmp_path, cache, parsed):
    root = coco_set(tmp_path / "data")
    open_set(root)
    (root / "images" / "3.png").unlink()
    with pytest.raises(ValueError, match=r"missing image files \(1\): .*3\.png"):
        open_set(root)
    assert len(open_set(root, on_missing="skip")) == 11
    assert open_set(root, on_missing="skip").truths.stored is None, "it may come back"
    (root / "images" / "3.png").touch()
    assert len(open_set(root, on_missing="skip")) == len(open_set(root)) == 12
    assert len(parsed) == 5


def test_names_in_another_form_are_looked_for_each_time(tmp_path, cache):
    root = write_coco(tmp_path / "data", [image(1, file_name="e\u0301.png")], [])
    path = root / "train.json"
    path.write_text(path.read_text().replace("e\\u0301", "\\u00e9"))
    assert open_set(root).truths.stored is None
    (root / "images" / "\u00e9.png").touch()
    data = open_set(root)
    assert (data.truths[0].file, data.truths.stored is not None) == (str(root / "images" / "\u00e9.png"), True)


def test_what_is_refused_is_refused_each_time(tmp_path, cache, parsed):
    root = write_coco(tmp_path / "data", [image(1)], [annotation(1, 1, [1, 1, 9, 9], 99)])
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown category"):
            open_set(root)
    assert len(open_set(root, on_bad_annotation="skip").truths.labels) == 0
    with pytest.raises(ValueError, match="unknown category"):
        open_set(root)  # the table of the lenient one is not the strict one's


@pytest.mark.parametrize("other", ["images", "code", "folder"])
def test_what_decides_the_table_is_part_of_its_name(tmp_path, cache, parsed, other, monkeypatch):
    root = coco_set(tmp_path / "data")
    open_set(root)
    options = {}
    if other == "images":
        (root / "more").symlink_to(root / "images")
        options = {"images": "more"}
    elif other == "code":
        monkeypatch.setattr(stored, "_code", lambda: "of another version")
    else:
        monkeypatch.chdir(tmp_path)
        root = Path("data")
    data = open_set(root, **options)
    assert len(parsed) == len(tables(cache)) == 2
    assert data.truths[0].file == str(root / options.get("images", "images") / "1.png")


@pytest.mark.parametrize("damage", ["flip", "cut", "cut short", "empty", "other", "head"])
def test_a_damaged_table_is_made_anew(tmp_path, cache, parsed, damage):
    root = coco_set(tmp_path / "data")
    whole = open_set(root)
    (table,) = tables(cache)
    content = bytearray(table.read_bytes())
    if damage in ("flip", "head"):
        content[-70 if damage == "flip" else 40] ^= 1
    table.unlink()  # not in place: what is mapped is another's
    cut = {"cut": content[:-64], "cut short": content[:16]}
    table.write_bytes({**cut, "empty": b"", "other": b"something else" * 99}.get(damage, content))
    again = open_set(root)
    assert_same(again, whole)
    assert len(parsed) == 2
    assert again.truths.stored is not None
    open_set(root)
    assert len(parsed) == 2


@pytest.mark.parametrize("what", ["no folder", "no room", "no lock"])
def test_without_a_cache_it_works(tmp_path, cache, parsed, what, monkeypatch):
    root = coco_set(tmp_path / "data")
    if what == "no folder":
        cache.write_text("a file lies there")
    else:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(stored, "atomic_write" if what == "no room" else "claim", full)
    assert len(open_set(root)) == len(open_set(root)) == 12
    assert len(parsed) == 2
    assert not cache.is_dir() or not tables(cache)


def test_of_several_at_once_one_parses(tmp_path, cache, monkeypatch):
    root = coco_set(tmp_path / "data")
    calls, read, found = [], coco.read_columns, []

    def slow(path):
        calls.append(path)
        time.sleep(0.3)
        return read(path)

    monkeypatch.setattr(coco, "read_columns", slow)
    threads = [threading.Thread(target=lambda: found.append(open_set(root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len({data.truths.stored for data in found}) == 1
    assert len(found) == 4


def test_one_that_waits_too_long_reads_for_itself(tmp_path, cache, parsed, monkeypatch):
    monkeypatch.setattr(stored, "PATIENCE", 0.2)
    root = coco_set(tmp_path / "data")
    open_set(root)
    (table,) = tables(cache)
    table.unlink()
    with claim(table.parent):
        assert open_set(root).truths.stored is None
    assert len(parsed) == 2


def test_to_another_process_the_place_is_sent_or_all_where_that_has_gone(tmp_path, cache):
    root = coco_set(tmp_path / "data")
    data = open_set(root)
    sent = pickle.dumps(data.truths)
    assert len(sent) < 400
    assert_same(with_truths(data, pickle.loads(sent)), data)
    (table,) = tables(cache)
    table.rename(table.with_name("elsewhere"))
    whole = pickle.dumps(data.truths)
    assert len(whole) > 1000
    assert_same(with_truths(data, pickle.loads(whole)), data)
    with pytest.raises(ValueError, match="the table has gone from the cache"):
        pickle.loads(sent)
    os.utime(root / "train.json")
    open_set(root)  # another one in its place
    assert len(pickle.dumps(data.truths)) == len(whole)


def with_truths(data: CocoDataset, truths: TruthTable) -> CocoDataset:
    other = CocoDataset.__new__(CocoDataset)
    other.categories, other.report, other.truths = data.categories, data.report, truths
    return other


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DETKIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/detkit/tables"),
        ({"HOME": "/c"}, "/c/.cache/detkit/tables"),
    ],
)
def test_where_the_cache_lies(variables, expected, monkeypatch):
    for name in ("DETKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_strings():
    texts = ["", "a", "\u00e9t\u00e9", "", "\udcff.png", "z"]
    found = Strings.of(texts)
    assert list(found) == texts
    assert (found[-1], found[1:3], len(found)) == ("z", texts[1:3], 6)
    with pytest.raises(IndexError):
        found[6]
    assert list(Strings.of([])) == []
    np.testing.assert_array_equal(Strings.of(["ab", "c"]).ends, [2, 3])
