"""Files that are whole or not there. That a kill leaves a good file is tested with checkpoints."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detkit.utils.files import JsonList, atomic_write, named, output_folder, write_picture


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_bytes_text_and_functions(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.bin", b"\x00\x01")
    atomic_write(str(tmp_path / "b.txt"), "Müller\n")
    given: list[Path] = []

    def write(path: Path) -> None:
        given.append(path)
        path.write_text("c")

    atomic_write(tmp_path / "c.json", write)
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\x01"
    assert (tmp_path / "b.txt").read_bytes() == "Müller\n".encode()
    assert (tmp_path / "c.json").read_text() == "c"
    assert given[0].suffix == ".json", "writers choose the format by it"
    assert given[0].parent == tmp_path, "a rename is atomic within one file system only"
    assert names(tmp_path) == ["a.bin", "b.txt", "c.json"]


def test_the_old_content_can_stay(tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        atomic_write(tmp_path / "new", content, keep=tmp_path / "old")
    assert ((tmp_path / "new").read_bytes(), (tmp_path / "old").read_bytes()) == (b"3", b"2")
    assert names(tmp_path) == ["new", "old"]


def test_the_old_content_stays_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    test_the_old_content_can_stay(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync", "link", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*args: Any) -> None:
        raise full

    if failing in ("fsync", "replace"):
        monkeypatch.setattr(os, failing, fail)
    elif failing == "link":  # and the copy that replaces it
        monkeypatch.setattr(os, "link", fail)
        monkeypatch.setattr("shutil.copyfile", fail)

    def half(tmp: Path) -> None:
        tmp.write_bytes(b"ne")
        if failing == "write":
            raise full

    with pytest.raises(OSError, match="No space left on device"):
        atomic_write(path, half, keep=tmp_path / "kept")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_file_and_folder_are_forced_to_the_disk_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        done.append("fsync " + ("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"))
        fsync(handle)

    def watched_replace(source: Path, target: Path) -> None:
        done.append(f"name {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    atomic_write(tmp_path / "x", b"1")
    assert done == ["fsync file", "name x", "fsync folder"]


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = platform.node()
    stale = tmp_path / f".last.{host}-{dead.stdout.strip()}-12ab34cd.new.pt"
    living = tmp_path / f".last.{host}-{os.getpid()}-12ab34cd.new.pt"
    elsewhere = tmp_path / f".last.another-host-{dead.stdout.strip()}-12ab34cd.new.pt"
    other_file = tmp_path / f".best.{host}-{dead.stdout.strip()}-12ab34cd.new.pt"
    for path in (stale, living, elsewhere, other_file):
        path.touch()
    atomic_write(tmp_path / "last.pt", b"1")
    assert set(names(tmp_path)) == {living.name, elsewhere.name, other_file.name, "last.pt"}


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        atomic_write(tmp_path / "gone" / "x", b"1")


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the hidden one that is written first, and not none."""
    for write in (atomic_write, write_picture):
        with pytest.raises(FileNotFoundError) as caught:
            write(tmp_path / "gone" / "x.png", b"1")
        assert caught.value.filename == str(tmp_path / "gone" / "x.png")
    monkeypatch.setattr(os, "replace", full)
    for write in (atomic_write, write_picture):
        with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / 'x.png'}'"):
            write(tmp_path / "x.png", b"1")
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="a message of its own"), named("x"):
        raise OSError("a message of its own")


def test_a_list_of_json_is_whole_after_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("what was there before, which is longer")
    rows = JsonList(path)
    told: list[Any] = []
    assert json.loads(path.read_text()) == told
    for more in ([], [{"a": "ü\n"}], [1, 2.5], [], [None]):
        rows.extend(more)
        told += more
        assert json.loads(path.read_text()) == told
    assert len(rows) == 4
    rows.close()
    assert json.loads(path.read_text()) == told
    assert names(tmp_path) == ["rows.json"]


def test_a_list_of_json_keeps_its_rows_where_the_next_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half of them, so that the end of the list is overwritten already."""
    rows = JsonList(tmp_path / "rows.json")
    rows.extend([{"image_id": 1}])
    pwrite, room = os.pwrite, [7]

    def until_full(file: int, content: bytes, place: int) -> int:
        if len(content) <= 3:
            return pwrite(file, content, place)
        if not room:
            full()
        return pwrite(file, content[: room.pop()], place)

    monkeypatch.setattr(os, "pwrite", until_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*rows.json'"):
        rows.extend([{"image_id": 2}, {"image_id": 3}])
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"image_id": 1}]
    assert len(rows) == 1
    monkeypatch.undo()
    with pytest.raises(ValueError, match="JSON"):
        rows.extend([float("nan")])
    rows.extend([{"image_id": 4}])
    rows.close()
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"image_id": 1}, {"image_id": 4}]


def test_a_folder_for_results_is_made_and_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with output_folder(tmp_path / "a" / "b") as folder:
        assert folder.is_dir()
    assert names(folder) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError) as caught, output_folder(path):
            pass
        assert caught.value.filename == str(path)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device"), output_folder(tmp_path / "c" / "d"):
        pass
    assert names(tmp_path) == ["a", "file"], "what it made for nothing is gone"


def test_a_folder_stays_where_there_is_something_in_it_or_was_before(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def work(name: str) -> None:
        with output_folder(tmp_path / name) as folder:
            if name == "a/b":
                (folder / "result").touch()
            raise KeyboardInterrupt

    for name in ("empty", "a/b", "c/d"):
        with pytest.raises(KeyboardInterrupt):
            work(name)
    assert names(tmp_path) == ["a", "empty"]
    assert (tmp_path / "a" / "b" / "result").exists()
