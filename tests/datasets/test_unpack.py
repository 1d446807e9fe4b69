"""Archives, good and hostile: nothing outside the folder, and all or nothing."""

from __future__ import annotations

import io
import os
import random
import shutil
import tarfile
import zipfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import disk
import pytest
import unpack as unpacking
from disk import FetchError
from rich.console import Console
from unpack import is_unpacked, unpack

from tests.datasets.archive_files import Files, make_tar, make_zip

QUIET = Console(quiet=True)
FILES: Files = {"top/a.txt": b"first", "top/deep/b.txt": b"second" * 1000, "c.txt": b""}

pack = pytest.mark.parametrize("pack", [make_zip, make_tar])
Pack = Callable[[Files], bytes]


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The archive, the folder to unpack into, the record."""
    return tmp_path / "archive", tmp_path / "data", tmp_path / "records" / "archive.json"


Place = tuple[Path, Path, Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def hostile_zip(name: str, mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.txt", "good")
        info = zipfile.ZipInfo("x")
        info.filename = name  # as it is: the constructor cleans some names
        info.external_attr = mode << 16
        archive.writestr(info, "bad")
    return buffer.getvalue()


def hostile_tar(name: str, kind: bytes = tarfile.REGTYPE, goal: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("good.txt"), io.BytesIO())
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, goal
        archive.addfile(info)
    return buffer.getvalue()


@pack
def test_unpacks_all_and_records_it(place: Place, pack: Pack) -> None:
    archive, target, record = place
    archive.write_bytes(pack(FILES))
    assert not is_unpacked(target, record)
    assert unpack(archive, target, record, "abc", QUIET) == 3
    assert contents(target) == FILES
    assert is_unpacked(target, record)
    assert is_unpacked(target, record, "abc")
    assert not is_unpacked(target, record, "def")


def test_compressed_tar_and_folders(place: Place) -> None:
    archive, target, record = place
    with tarfile.open(archive, "w:gz") as file:
        folder = tarfile.TarInfo("./top")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        info = tarfile.TarInfo("./top/a.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"first"))
    assert unpack(archive, target, record, "", QUIET) == 1
    assert contents(target) == {"top/a.txt": b"first"}
    assert is_unpacked(target, record)


@pack
@pytest.mark.parametrize("loss", ["gone", "shorter", "folder"])
def test_loss_of_a_file_is_noticed(place: Place, pack: Pack, loss: str) -> None:
    archive, target, record = place
    archive.write_bytes(pack(FILES))
    unpack(archive, target, record, "", QUIET)
    if loss == "gone":
        (target / "c.txt").unlink()
    elif loss == "shorter":
        (target / "top/a.txt").write_bytes(b"f")
    else:
        shutil.rmtree(target / "top" / "deep")
    assert not is_unpacked(target, record)
    unpack(archive, target, record, "", QUIET)
    assert contents(target) == FILES


@pack
def test_what_is_there_stays(place: Place, pack: Pack) -> None:
    archive, target, record = place
    (target / "top/deep").mkdir(parents=True)
    (target / "top/mine.txt").write_bytes(b"mine")
    (target / "top/deep/b.txt").write_bytes(b"old")
    archive.write_bytes(pack(FILES))
    unpack(archive, target, record, "", QUIET)
    assert contents(target) == {**FILES, "top/mine.txt": b"mine"}


NAMES = ("../evil.txt", "top/../../evil.txt", "{folder}/evil.txt", "..\\evil.txt", "C:/evil.txt", "..", "top/..")


@pytest.mark.parametrize("name", NAMES)
def test_paths_out_of_the_folder_are_refused(place: Place, name: str) -> None:
    archive, target, record = place
    name = name.format(folder=target.parent)
    for content in (hostile_zip(name), hostile_tar(name)):
        archive.write_bytes(content)
        with pytest.raises(FetchError) as caught:
            unpack(archive, target, record, "", QUIET)
        assert str(caught.value).startswith(f"{archive}: member {name!r} leads out of the folder; nothing was unpacked")
        assert contents(target.parent) == {"archive": content}
        assert not is_unpacked(target, record)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (hostile_zip("link", 0o120777), "is a link"),
        (hostile_tar("link", tarfile.SYMTYPE, "/etc"), "is a link"),
        (hostile_tar("link", tarfile.SYMTYPE, "good.txt"), "is a link"),
        (hostile_tar("link", tarfile.LNKTYPE, "../../evil.txt"), "is a link"),
        (hostile_tar("device", tarfile.CHRTYPE), "is not a regular file"),
        (hostile_tar("pipe", tarfile.FIFOTYPE), "is not a regular file"),
    ],
)
def test_links_and_devices_are_refused(place: Place, content: bytes, why: str) -> None:
    archive, target, record = place
    archive.write_bytes(content)
    with pytest.raises(FetchError, match=f"^{archive}: member '(link|device|pipe)' {why}; nothing was unpacked"):
        unpack(archive, target, record, "", QUIET)
    assert contents(target) == {}


def test_setuid_and_other_modes_are_not_taken_over(place: Place) -> None:
    archive, target, record = place
    archive.write_bytes(hostile_zip("a.sh", 0o104777))
    unpack(archive, target, record, "", QUIET)
    assert not os.stat(target / "a.sh").st_mode & 0o7111


@pack
def test_truncated_archive_leaves_nothing(place: Place, pack: Pack) -> None:
    archive, target, record = place
    whole = pack({"a.txt": os.urandom(50_000), "b.txt": os.urandom(50_000)})
    archive.write_bytes(whole[:60_000])
    with pytest.raises(FetchError, match="Remove it to have it downloaded again"):
        unpack(archive, target, record, "", QUIET)
    assert contents(target) == {}
    assert not is_unpacked(target, record)


def test_flipped_byte_in_a_zip_is_found_or_harmless(tmp_path: Path) -> None:
    files = {"a.txt": bytes(random.Random(0).choices(b"abc", k=1500))}
    whole = make_zip(files)
    num_found = 0
    for at in range(len(whole)):
        archive, target = tmp_path / f"archive{at}", tmp_path / f"data{at}"
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            unpack(archive, target, tmp_path / "record", "", QUIET)
        except FetchError as error:
            assert str(archive) in str(error)  # noqa: PT017
            assert contents(target) == {}
            num_found += 1
        else:
            assert list(contents(target).values()) == list(files.values())
    assert num_found > len(whole) / 2


@pytest.mark.parametrize("content", [b"", b"<html>", make_zip({}), make_tar({})])
def test_no_archive_at_all(place: Place, content: bytes) -> None:
    archive, target, record = place
    archive.write_bytes(content)
    with pytest.raises(FetchError, match=r"neither a zip nor a tar archive|there are no files in it"):
        unpack(archive, target, record, "", QUIET)


@pack
@pytest.mark.parametrize("moment", ["while writing", "while moving", "before the record"])
def test_interrupted_unpacking_is_redone(
    place: Place, pack: Pack, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, target, record = place
    archive.write_bytes(pack(FILES))
    name = {"while writing": "_write_file", "while moving": "_move_into", "before the record": "write_json"}[moment]
    real, calls = getattr(unpacking, name), []

    def interrupt(*args: object) -> None:
        calls.append(args)
        if moment != "while writing" or len(calls) == 2:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            unpack(archive, target, record, "", QUIET)
    assert not is_unpacked(target, record)
    assert contents(target) == (FILES if moment == "before the record" else {})
    assert unpack(archive, target, record, "", QUIET) == 3
    assert contents(target) == FILES
    assert is_unpacked(target, record)


def test_killed_unpacking_is_cleaned_up(place: Place) -> None:
    archive, target, record = place
    archive.write_bytes(make_zip(FILES))
    (target / ".unpacking-archive").mkdir(parents=True)
    (target / ".unpacking-archive/old.txt").write_bytes(b"old")
    unpack(archive, target, record, "", QUIET)
    assert contents(target) == FILES
    assert not (target / ".unpacking-archive").exists()


@pack
def test_too_little_space_is_told_before_writing(place: Place, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target, record = place
    archive.write_bytes(pack(FILES))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(0, 0, disk.SPACE_RESERVE + 6004))
    with pytest.raises(FetchError, match=r"unpacking archive needs 6.0 kB"):
        unpack(archive, target, record, "", QUIET)
    assert contents(target) == {}
