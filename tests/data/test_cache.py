"""The cache of images: the same batches with it and without, whoever shares it, and whatever became of its file."""

import logging
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest

from detkit.data import CocoDataset, HorizontalFlip, ImageCache, MixUp, ResizeFit, ResizeShortestEdge, pixels
from tests.data.builders import annotation, image, write_coco, write_picture
from tests.data.loaders import assert_same, evaluate, take, train

pytestmark = pytest.mark.usefixtures("no_orphans")

FIXED = (ResizeFit(size=40), HorizontalFlip())
DRAWN = (ResizeShortestEdge(short=(32, 40), long=80), HorizontalFlip())
MIXED = (ResizeFit(size=40), MixUp(p=1.0))


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Pictures that have just been made are kept, as old ones are."""
    monkeypatch.setattr(pixels, "SETTLED", -1.0)


@pytest.fixture
def reads(monkeypatch):
    """The files that are decoded in this process."""
    files, original = [], CocoDataset.read
    monkeypatch.setattr(CocoDataset, "read", lambda self, i: (files.append(self.truths[i].file), original(self, i))[1])
    return files


def cache(folder, gigabytes=0.01):
    return ImageCache(gigabytes=gigabytes, folder=str(folder))


@pytest.mark.parametrize("transforms", [FIXED, DRAWN, MIXED], ids=["fixed", "drawn", "mixed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_the_same_bits(data, tmp_path, transforms, num_workers):
    expected = take(train(data, transforms), 9)
    for _ in range(2):  # an empty file, and one that another has filled
        loader = train(data, transforms, cache=cache(tmp_path), num_workers=num_workers)
        assert_same(take(loader, 9), expected)
    assert_same(list(evaluate(data, FIXED[:1], cache=cache(tmp_path))), list(evaluate(data, FIXED[:1])))


@pytest.mark.parametrize(("transforms", "kept"), [(FIXED, (40, 30)), (DRAWN, (64, 48))], ids=["resized", "decoded"])
def test_the_second_epoch_decodes_nothing(data, tmp_path, reads, caplog, transforms, kept):
    caplog.set_level(logging.INFO)
    loader = train(data, transforms, cache=cache(tmp_path))
    take(loader, 3)
    assert len(reads) == 12
    take(loader, 3, start=3)
    assert len(reads) == 12
    how = "decoded and resized" if transforms is FIXED else "decoded"
    assert f"images are kept {how} in {tmp_path}/images.cache; all 12 take" in caplog.text
    told = [r.getMessage() for r in caplog.records if " came from " in r.getMessage()]
    assert [text.partition(" came")[0] for text in told] == [
        "image cache: 0.0% of 12 images", "image cache: 100.0% of 12 images",
    ]  # fmt: skip


def test_workers_count_what_they_found(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    take(train(data, FIXED, cache=cache(tmp_path)), 3)
    loader = train(data, FIXED, cache=cache(tmp_path), num_workers=2)
    take(loader, 3)
    assert "100.0% of" in caplog.text


def test_a_full_cache_keeps_what_it_has(data, tmp_path, reads):
    expected = take(train(data, FIXED), 6)
    reads.clear()
    room = 5 * ImageCache.size_of((40, 30)) + 64
    loader = train(data, FIXED, cache=cache(tmp_path, room / 1e9))
    assert_same(take(loader, 6), expected)
    assert len(reads) == 12 + 7
    assert (tmp_path / "images.cache").stat().st_size <= room


def test_too_small_a_bound_and_bad_folders_are_refused(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"cache\.gigabytes=1e-06 has no room for .*\.png, which at 40 x 29 px takes 3.58e-06 GB"
    ):
        train(data, FIXED, cache=cache(tmp_path, 1e-6))
    with pytest.raises(ValueError, match="gigabytes must be positive, not 0"):
        cache(tmp_path, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder .*file/below: .*: Not a directory"):
        cache(tmp_path / "file" / "below")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "images.cache").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"other/images\.cache is no image cache of this version: delete it"):
        cache(tmp_path / "other")


def test_another_picture_under_the_same_name_is_read_anew(tmp_path, reads):
    root = write_coco(tmp_path / "set", [image(1)], [annotation(1, 1, (1, 1, 9, 9))])
    loader = train(CocoDataset(root=str(root)), FIXED, batch_size=1, cache=cache(tmp_path / "cache"))
    before = take(loader, 1)[0].images.pixels
    write_picture(root / "images" / "1.png", seed=5)
    after = take(loader, 1)[0].images.pixels
    assert len(reads) == 2
    assert not (before == after).all()


def test_what_may_still_be_written_is_not_kept(tmp_path, reads, monkeypatch):
    root = write_coco(tmp_path / "set", [image(1)], [annotation(1, 1, (1, 1, 9, 9))])
    data = CocoDataset(root=str(root))
    monkeypatch.setattr(pixels, "SETTLED", 60.0)
    take(train(data, FIXED, batch_size=1, cache=cache(tmp_path / "cache")), 2)
    assert len(reads) == 2


def test_another_size_is_another_entry(data, tmp_path):
    for size in (40, 32):
        transforms = (ResizeFit(size=size), HorizontalFlip())
        assert_same(take(train(data, transforms, cache=cache(tmp_path)), 3), take(train(data, transforms), 3))


KEY, PICTURE = b"k" * 16, np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
OTHER = b"o" * 16


def test_half_an_entry_is_never_read(tmp_path):
    """Whoever dies between the pixels and the new end has left nothing; the next one writes there."""
    one, two = cache(tmp_path), cache(tmp_path)
    original = one._write

    def die(content, start):
        if start == 0:
            raise KeyboardInterrupt
        original(content, start)

    one._write = die
    with pytest.raises(KeyboardInterrupt):
        one.keep(KEY, PICTURE)
    assert two.find(KEY) is None
    two.keep(OTHER, PICTURE + 1)
    fresh = cache(tmp_path)
    assert fresh.find(KEY) is None
    np.testing.assert_array_equal(fresh.find(OTHER), PICTURE + 1)


def overwrite(path, start, content):
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(content)


def test_damage_is_a_miss_and_is_mended(tmp_path):
    one = cache(tmp_path)
    one.keep(KEY, PICTURE)
    one.keep(OTHER, PICTURE + 1)
    file = tmp_path / "images.cache"
    overwrite(file, 128, b"\0" * 32)  # pixels of the first
    assert one.find(KEY) is None
    one.keep(KEY, PICTURE)
    np.testing.assert_array_equal(cache(tmp_path).find(KEY), PICTURE)
    overwrite(file, 64, b"\0" * 32)  # its head: all behind it is lost, and written anew
    late = cache(tmp_path)
    assert late.find(OTHER) is None
    late.keep(OTHER, PICTURE + 2)
    np.testing.assert_array_equal(cache(tmp_path).find(OTHER), PICTURE + 2)
    one.find(b"?" * 16)
    np.testing.assert_array_equal(one.find(OTHER), PICTURE + 2)
    os.truncate(file, 130)
    assert late.find(OTHER) is None


@pytest.mark.parametrize("left", [0, 10])
def test_a_file_that_somebody_empties_is_filled_anew(tmp_path, left):
    """To make room, say, in the middle of a training."""
    one = cache(tmp_path)
    one.keep(KEY, PICTURE)
    os.truncate(tmp_path / "images.cache", left)
    assert one.find(KEY) is None
    one.keep(OTHER, PICTURE + 1)
    one.keep(KEY, PICTURE)
    for reader in (one, cache(tmp_path)):
        np.testing.assert_array_equal(reader.find(KEY), PICTURE)
        np.testing.assert_array_equal(reader.find(OTHER), PICTURE + 1)


def test_a_found_image_is_the_readers_own(tmp_path):
    one = cache(tmp_path)
    one.keep(KEY, PICTURE)
    one.find(KEY)[:] = 0
    np.testing.assert_array_equal(one.find(KEY), PICTURE)


def test_a_full_disk_is_told_once(tmp_path, caplog):
    one = cache(tmp_path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    one._write = full
    one.keep(KEY, PICTURE)
    one.keep(OTHER, PICTURE)
    assert caplog.text.count("No space left on device; no more images are kept") == 1
    assert one.find(KEY) is None


def _fill(path, number):
    one = pickle.loads(path)
    for i in range(100):
        one.keep((i % 60).to_bytes(16, "big"), np.full((3, 3 + i % 60, 3), i % 60, np.uint8))
        other = (i + 7 * number) % 60
        found = one.find(other.to_bytes(16, "big"))
        assert found is None or (found.shape == (3, 3 + other, 3) and (found == other).all())


def test_processes_that_write_at_once_keep_each_image_once(tmp_path):
    one = cache(tmp_path)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(pickle.dumps(one), n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    sizes = [ImageCache.size_of((3, 3 + i)) for i in range(60)]
    assert (tmp_path / "images.cache").stat().st_size == 64 + sum(sizes)
    for i in range(60):
        assert (one.find(i.to_bytes(16, "big")) == i).all()


def test_where_another_writes_for_long_the_image_is_left(tmp_path, monkeypatch):
    one, two = cache(tmp_path), cache(tmp_path)
    monkeypatch.setattr("detkit.data.cache._PATIENCE", 0.01)
    with one._alone() as alone:
        start = time.monotonic()
        two.keep(KEY, PICTURE)
    assert alone
    assert time.monotonic() - start < 1
    assert cache(tmp_path).find(KEY) is None
