"""Downloads against a server that misbehaves: what is asked for, what is kept, what is told."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import disk
import fetch
import pytest
from disk import FetchError
from rich.console import Console

from tests.datasets.conftest import SCRIPTS
from tests.datasets.server import FileServer

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def download(server: FileServer, folder: Path, path: str = "/a.zip", **options: Any) -> Path:
    console = Console(force_terminal=False, width=10_000)
    options = {"sha256": SHA256, "retries": 3, "backoff": 0.0, "timeout": 5.0, "console": console, **options}
    return fetch.download(server.url + path, folder / "a.zip", **options)


def leave_part(folder: Path, content: bytes, url: str, **note: object) -> None:
    """What an earlier, interrupted download would have left."""
    (folder / "a.zip.part").write_bytes(content)
    version = {"url": url, "etag": '"v1"', "last_modified": None, "size": len(CONTENT), **note}
    disk.write_json(folder / "a.zip.part.json", version)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_plain_download_is_recorded_and_not_repeated(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT)
    path = download(server, tmp_path / "new" / "folder", size=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == {"a.zip", "a.zip.json"}
    record = disk.read_json(path.parent / "a.zip.json")
    assert (record["sha256"], record["size"], record["etag"]) == (SHA256, len(CONTENT), '"v1"')
    assert record["url"] == server.url + "/a.zip"
    assert download(server, tmp_path / "new" / "folder") == path
    assert len(server.seen) == 1


def test_md5_is_enough(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT)
    assert download(server, tmp_path, sha256=None, md5=MD5.upper()).read_bytes() == CONTENT
    server.add("/a.zip", OTHER)
    with pytest.raises(FetchError, match=f"md5 is {hashlib.md5(OTHER).hexdigest()} instead of {MD5}"):
        download(server, tmp_path / "b", sha256=None, md5=MD5)


def test_cut_connections_are_continued_and_only_the_rest_is_asked_for(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("/a.zip", CONTENT, cuts=[100_000, 50_000])
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [(s.range, s.if_range, s.status, s.num_bytes) for s in server.seen] == [
        (None, None, 200, 100_000),
        ("bytes=100000-", '"v1"', 206, 50_000),
        ("bytes=150000-", '"v1"', 206, 150_000),
    ]
    assert "the connection ended at 100.0 kB of 300.0 kB; trying again" in capsys.readouterr().out


def test_a_later_call_goes_on_from_the_part(server: FileServer, tmp_path: Path) -> None:
    file = server.add("/a.zip", CONTENT, cuts=[100_000, 0, 0, 0])
    with pytest.raises(FetchError) as caught:
        download(server, tmp_path)
    assert names(tmp_path) == {"a.zip.part", "a.zip.part.json"}
    assert "gave up after" in str(caught.value)
    assert f"100.0 kB are kept in {tmp_path / 'a.zip.part'}" in str(caught.value)
    file.cuts.clear()
    server.seen.clear()
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [(s.range, s.num_bytes) for s in server.seen] == [("bytes=100000-", 200_000)]
    assert names(tmp_path) == {"a.zip", "a.zip.json"}


def test_progress_starts_the_count_of_tries_anew(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, cuts=[40_000] * 7)
    assert download(server, tmp_path, retries=2).read_bytes() == CONTENT
    assert len(server.seen) == 8


def test_a_server_that_cuts_without_knowing_ranges_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, ranges=False, cuts=[100_000] * 20)
    with pytest.raises(FetchError, match="gave up after 3 tries"):
        download(server, tmp_path)


def test_server_without_ranges_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, ranges=False, cuts=[100_000])
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [(s.range, s.status) for s in server.seen] == [(None, 200), ("bytes=100000-", 200)]


@pytest.mark.parametrize("checksum", [SHA256, None])
@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("change", ["etag", "last_modified", "size"])
def test_halves_of_two_versions_are_not_joined(
    server: FileServer, tmp_path: Path, checksum: str | None, if_range: bool, change: str
) -> None:
    old = {"etag": '"v0"'} if change == "etag" else {"etag": None, "last_modified": "Sun, 05 Nov 2017 10:00:00 GMT"}
    if change == "size":
        old = {"size": len(CONTENT) + 1}
    leave_part(tmp_path, OTHER[:100_000], server.url + "/a.zip", **old)
    server.add("/a.zip", CONTENT, etag='"v1"' if change != "last_modified" else None, if_range=if_range)
    assert download(server, tmp_path, sha256=checksum).read_bytes() == CONTENT
    assert server.seen[0].range == "bytes=100000-"
    assert server.seen[-1].status == 200


def test_weak_etag_is_no_promise_of_equal_bytes(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, etag='W/"v1"', last_modified=None, cuts=[100_000])
    assert download(server, tmp_path, sha256=None).read_bytes() == CONTENT
    assert [s.range for s in server.seen] == [None, None]


def test_without_a_version_only_a_checksum_allows_to_go_on(server: FileServer, tmp_path: Path) -> None:
    nameless = {"etag": None, "last_modified": None}
    server.add("/a.zip", CONTENT, **nameless, cuts=[100_000])
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [(s.range, s.if_range) for s in server.seen] == [(None, None), ("bytes=100000-", None)]


def test_answer_that_begins_elsewhere_is_not_joined(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, cuts=[100_000], off_by=1)
    assert download(server, tmp_path, sha256=None).read_bytes() == CONTENT
    assert [s.status for s in server.seen] == [200, 206, 200]


def test_another_home_with_a_file_of_another_size(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_part(tmp_path, OTHER[:100_000], "http://elsewhere.invalid/a.zip", size=len(CONTENT) + 1)
    server.add("/a.zip", CONTENT)
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [s.status for s in server.seen] == [206, 200]
    assert "the remote file has changed" in capsys.readouterr().out


def test_wrong_join_is_found_by_the_checksum_and_done_again(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_part(tmp_path, OTHER[:100_000], server.url + "/a.zip")
    server.add("/a.zip", CONTENT)
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [s.status for s in server.seen] == [206, 200]
    assert "starting over" in capsys.readouterr().out


def test_complete_part_needs_no_request(server: FileServer, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT, server.url + "/a.zip")
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert server.seen == []


@pytest.mark.parametrize("note", ["", "[1]", '{"url": 1'])
def test_part_with_a_broken_note_starts_over(server: FileServer, tmp_path: Path, note: str) -> None:
    leave_part(tmp_path, OTHER[:100_000], server.url + "/a.zip")
    (tmp_path / "a.zip.part.json").write_text(note)
    server.add("/a.zip", CONTENT)
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [s.range for s in server.seen] == [None]


def test_part_beyond_a_shorter_new_file(server: FileServer, tmp_path: Path) -> None:
    leave_part(tmp_path, OTHER[:200_000], server.url + "/a.zip", etag=None, size=None)
    server.add("/a.zip", CONTENT[:150_000], etag=None, last_modified=None)
    sha256 = hashlib.sha256(CONTENT[:150_000]).hexdigest()
    assert download(server, tmp_path, sha256=sha256).read_bytes() == CONTENT[:150_000]
    assert [s.status for s in server.seen] == [416, 200]


def test_another_home_goes_on_with_the_same_part(server: FileServer, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT[:100_000], "http://elsewhere.invalid/a.zip", etag='"other"')
    server.add("/a.zip", CONTENT)
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [(s.range, s.if_range) for s in server.seen] == [("bytes=100000-", None)]
    assert disk.read_json(tmp_path / "a.zip.json")["url"] == server.url + "/a.zip"


def test_wrong_checksum_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", OTHER)
    with pytest.raises(FetchError) as caught:
        download(server, tmp_path, size=len(OTHER))
    message = str(caught.value)
    assert names(tmp_path) == set()
    assert len(server.seen) == 1
    for part in (server.url, f"its sha256 is {hashlib.sha256(OTHER).hexdigest()} instead of {SHA256}", "By hand: get "):
        assert part in message
    assert f"put it at {tmp_path / 'a.zip'}" in message


def test_wrong_size_is_refused_before_the_bytes_so_far_are_given_up(server: FileServer, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT[:100_000], server.url + "/a.zip")
    server.add("/a.zip", b"<html>please log in</html>", etag='"page"', content_type="text/html")
    with pytest.raises(FetchError, match=r"it has 26 bytes \(text/html\) instead of 300000"):
        download(server, tmp_path, size=len(CONTENT))
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:100_000]


def test_web_page_instead_of_the_file(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", b"<!DOCTYPE html><p>please log in", framing="chunked")
    with pytest.raises(FetchError, match=r"it has 31 bytes instead of 300000 \(it is a web page: a login"):
        download(server, tmp_path, size=len(CONTENT))
    assert names(tmp_path) == set()


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_answers_without_a_length(server: FileServer, tmp_path: Path, framing: str) -> None:
    server.add("/a.zip", CONTENT, framing=framing)
    assert download(server, tmp_path, sha256=None).read_bytes() == CONTENT


def test_cut_chunked_answer_is_noticed(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, framing="chunked", cuts=[100_000])
    assert download(server, tmp_path, sha256=None).read_bytes() == CONTENT
    assert [s.range for s in server.seen] == [None, "bytes=100000-"]


def test_cut_answer_without_a_length_is_noticed_by_the_expected_size(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, framing="close", cuts=[100_000])
    assert download(server, tmp_path, sha256=None, size=len(CONTENT)).read_bytes() == CONTENT


def test_answer_longer_than_expected_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, framing="close")
    with pytest.raises(FetchError, match="it is longer than 1000 bytes"):
        download(server, tmp_path, size=1000)
    assert names(tmp_path) == set()


def test_redirects_keep_the_range(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", b"", redirect="/moved.zip")
    server.add("/moved.zip", CONTENT, cuts=[100_000])
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [s.range for s in server.seen if s.path == "/moved.zip"] == [None, "bytes=100000-"]


def test_server_errors_are_tried_again(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("/a.zip", CONTENT, errors=[500, 503])
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert [s.status for s in server.seen] == [500, 503, 200]
    assert "a.zip: the server answered 503 Service Unavailable; trying again in 0 s" in capsys.readouterr().out


def test_waits_grow_and_heed_the_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    server.add("/a.zip", CONTENT, errors=[500] * 4)
    with pytest.raises(FetchError, match="gave up after 4 tries"):
        download(server, tmp_path, retries=4, backoff=1.0)
    assert waits == [1.0, 2.0, 4.0]
    waits.clear()
    server.add("/a.zip", CONTENT, errors=[429], retry_after="7")
    download(server, tmp_path, backoff=1.0)
    server.add("/a.zip", CONTENT, errors=[429], retry_after="86400")
    download(server, tmp_path / "b", backoff=1.0)
    assert waits == [7.0, fetch.MAX_WAIT]


def test_not_found_is_told_at_once(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        download(server, tmp_path)
    assert f"{server.url}/a.zip: cannot be had: the server answered 404 Not Found" in str(caught.value)
    assert f"By hand: get {server.url}/a.zip" in str(caught.value)
    assert len(server.seen) == 1


def test_unreachable_host_is_told_with_what_to_do(tmp_path: Path) -> None:
    with FileServer() as gone:
        pass
    with pytest.raises(FetchError) as caught:
        download(gone, tmp_path, retries=2)
    message = str(caught.value)
    assert f"{gone.url}/a.zip: gave up after 2 tries: no connection to 127.0.0.1:" in message
    assert "Connection refused" in message
    assert f"put it at {tmp_path / 'a.zip'} and run the same command again" in message
    assert "http_proxy" in message


def test_server_that_leaves_the_connection_open(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("/a.zip", CONTENT, linger=6.0)
    assert download(server, tmp_path, timeout=3.0).read_bytes() == CONTENT
    assert "trying again" not in capsys.readouterr().out


def test_silent_server_times_out(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT, pause=0.6)
    with pytest.raises(FetchError, match="timed out"):
        download(server, tmp_path, retries=1, timeout=0.2)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "host/a.zip"])
def test_only_http(url: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="must begin with http:// or https://"):
        fetch.download(url, tmp_path / "a.zip")


def test_url_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not a URL"):
        fetch.download("http://127.0.0.1:80 80/a b", tmp_path / "a.zip")


def test_file_that_is_there_is_checked_and_never_replaced(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT)
    (tmp_path / "a.zip").write_bytes(OTHER)
    with pytest.raises(FetchError, match="Remove it to download it anew"):
        download(server, tmp_path)
    assert (tmp_path / "a.zip").read_bytes() == OTHER
    (tmp_path / "a.zip").write_bytes(CONTENT)  # put there by hand
    download(server, tmp_path)
    assert disk.read_json(tmp_path / "a.zip.json")["sha256"] == SHA256
    assert server.seen == []


def test_without_a_published_checksum_the_first_download_counts(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT)
    download(server, tmp_path, sha256=None)
    download(server, tmp_path, sha256=None)
    (tmp_path / "a.zip").write_bytes(OTHER)
    with pytest.raises(FetchError, match=f"sha256 is {hashlib.sha256(OTHER).hexdigest()} instead of {SHA256}"):
        download(server, tmp_path, sha256=None)


def test_too_little_space_is_told_before_the_first_byte(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("/a.zip", CONTENT)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(0, 0, disk.SPACE_RESERVE + 299_999))
    with pytest.raises(FetchError, match=r"downloading a.zip needs 300.0 kB .* but 64.3 MB are free"):
        download(server, tmp_path)
    assert not (tmp_path / "a.zip.part").exists()
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(0, 0, disk.SPACE_RESERVE + 300_000))
    download(server, tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_disk_that_fills_while_writing(server: FileServer, tmp_path: Path) -> None:
    server.add("/a.zip", CONTENT)
    task = fetch._Download(server.url + "/a.zip", tmp_path / "a.zip", disk.Expected(), 5.0, Console(quiet=True))
    task.part = Path("/dev/full")
    with pytest.raises(FetchError, match="/dev/full: the disk is full"):
        task._receive(task._open({}), None, fetch.Meter(Console(quiet=True), ""))


def test_interrupt_keeps_the_part_and_says_how_to_go_on(server: FileServer, tmp_path: Path) -> None:
    file = server.add("/a.zip", CONTENT, pause=0.3)  # five blocks of 64 KiB, 1.5 s in all
    program = f"""
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.path.append({str(SCRIPTS)!r})
        from pathlib import Path
        from archives import run
        from fetch import download
        sys.exit(run(lambda: download({server.url + "/a.zip"!r}, Path({str(tmp_path / "a.zip")!r}), sha256={SHA256!r})))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    part = tmp_path / "a.zip.part"
    deadline = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out = child.communicate(timeout=10)[0]
    kept = part.stat().st_size
    assert child.returncode == 130
    assert 0 < kept < len(CONTENT)
    assert f"are in {part}; the same command goes on from there." in out
    file.pause = 0.0
    assert download(server, tmp_path).read_bytes() == CONTENT
    assert server.seen[-1].range == f"bytes={kept}-"


def test_log_file_gets_a_line_for_each_tenth(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("/a.zip", CONTENT, pause=0.01)
    download(server, tmp_path)
    out = capsys.readouterr().out
    assert "a.zip: 100 % of 300.0 kB" in out
    assert 2 <= out.count(" % of ") <= 10


def test_terminal_gets_a_bar(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("/a.zip", CONTENT)
    download(server, tmp_path, console=Console(force_terminal=True, width=120))
    assert "300.0/300.0 kB" in capsys.readouterr().out
