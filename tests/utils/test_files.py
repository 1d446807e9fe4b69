"""Files that are whole or not there. That a kill leaves a good file is tested with checkpoints."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from detkit.utils.files import atomic_write, remove_if_empty


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


def test_many_may_remove_an_empty_folder_at_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    start = threading.Barrier(8)

    def remove(folder: Path) -> None:
        start.wait()
        remove_if_empty(folder)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for i in range(100):
                folder = tmp_path / f"empty{i}"
                folder.mkdir()
                list(pool.map(remove, [folder, kept] * 4))
                assert names(tmp_path) == ["kept"]
    finally:
        sys.setswitchinterval(interval)
    assert names(kept) == ["file"]
