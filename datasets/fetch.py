"""Download a file so that it is there whole and checked, or not at all.

HTTP by the standard library. The bytes so far lie in FILE.part, and FILE.part.json says which version of the remote
file they belong to; a later call asks the server for the rest only (RFC 9110, sections 13.1.5 and 14), and never joins
the halves of two versions. When the content is right it takes its name, and FILE.json records what it is.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from disk import CHUNK, Expected, FetchError, find_mismatch, hash_file, read_json, require_space, write_json
from progress import Meter, say
from rich.console import Console
from rich.filesize import decimal

#: Answers after which asking again can help: time-outs, too many requests, a server that is starting or overloaded.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

#: The longest wait before another try, in seconds, whatever the doubling or the server's Retry-After say.
MAX_WAIT = 60.0


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    retries: int = 5,
    backoff: float = 1.0,
    timeout: float = 60.0,
    console: Console | None = None,
) -> Path:
    """Bring ``url`` to ``path``, going on from FILE.part, and return ``path``; nothing is asked for if it is there.

    Where no checksum is given, a file that is there is compared with the record (FILE.json) of its download.

    Args:
        size: bytes; lets a full disk be noticed before the start, and a short file even without a checksum.
        retries: tries without a new byte before giving up; each new byte starts the count anew.
        backoff: seconds before the second try, doubled for each further one.
        timeout: seconds of silence after which a connection counts as dead.

    Raises:
        FetchError: no answer, a refusal, a wrong content, or a full disk; names the URL and what to do by hand.
        KeyboardInterrupt: after saying where the bytes so far are.
    """
    console = console or Console()
    expected = Expected(sha256, md5, size)
    if urlsplit(url).scheme not in ("http", "https"):
        raise FetchError(f"{url!r}: not a URL to download from: it must begin with http:// or https://")
    if path.exists():
        _check_present(url, path, expected, console)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    task = _Download(url, path, expected, timeout, console)
    try:
        task.retrieve(retries, backoff)
        problem = find_mismatch(task.part, expected, console)
        if problem and not task.in_one_piece:
            say(console, f"{path.name}: put together from pieces, and {problem}; starting over")
            task.discard()
            task.retrieve(retries, backoff)
            problem = find_mismatch(task.part, expected, console)
    except KeyboardInterrupt:
        say(console, f"Stopped. {decimal(task.num_bytes)} are in {task.part}; the same command goes on from there.")
        raise
    if problem:
        hint = _describe_page(task.part)
        task.discard()
        raise FetchError(f"{url}: not the file it should be: {problem}{hint}. Nothing was kept.\n{_by_hand(url, path)}")
    task.finish()
    return path


def _check_present(url: str, path: Path, expected: Expected, console: Console) -> None:
    record = read_json(_beside(path, ".json"))
    if not expected.has_checksum:
        expected = Expected(record.get("sha256"), None, expected.size or record.get("size"))
    if problem := find_mismatch(path, expected, console):
        raise FetchError(f"{path}: not the file that {url} should give: {problem}. Remove it to download it anew")
    if not record:
        _write_record(path, path, {"url": None}, expected, console)


def _write_record(path: Path, content: Path, version: Mapping[str, Any], expected: Expected, console: Console) -> None:
    """Record what ``path`` is; ``content`` is the file as it is checked already, so its SHA-256 may be known."""
    sha256 = expected.sha256.lower() if expected.sha256 else hash_file(content, "sha256", console)
    write_json(_beside(path, ".json"), {**version, "size": content.stat().st_size, "sha256": sha256})


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _by_hand(url: str, path: Path) -> str:
    return (
        f"By hand: get {url} in any other way (a browser, another machine), put it at {path} and run the same command "
        "again. Behind a proxy, set http_proxy and https_proxy"
    )


def _describe_page(path: Path) -> str:
    with open(path, "rb") as stream:
        start = stream.read(256).lstrip().lower()
    return " (it is a web page: a login or a proxy in between?)" if start.startswith((b"<!doctype", b"<html")) else ""


class _RetryError(Exception):
    """One try failed in a way that another may not; ``wait`` is the server's wish, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Download:
    """One file on its way: FILE.part, and the version of the remote file that it is the beginning of."""

    def __init__(self, url: str, path: Path, expected: Expected, timeout: float, console: Console) -> None:
        self.url, self.path, self.expected, self.timeout, self.console = url, path, expected, timeout, console
        self.part, self.note = _beside(path, ".part"), _beside(path, ".part.json")
        self.in_one_piece = False  # whether all bytes came in one answer, so that nothing can be joined wrongly

    @property
    def num_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        """Forget the bytes so far. The part goes first: a note may never be of other bytes than the part's."""
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the part its name, after its bytes are on the disk."""
        version = {**read_json(self.note), "url": self.url}
        _write_record(self.path, self.part, version, self.expected, self.console)
        with open(self.part, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)

    def retrieve(self, retries: int, backoff: float) -> None:
        """Ask until the part is complete; raise FetchError after ``retries`` tries in a row without a new byte."""
        furthest, failures = self.num_bytes, 0
        reasons: list[str] = []
        with Meter(self.console, self.path.name) as meter:
            while not self._is_complete():
                try:
                    self._try_once(meter)
                except _RetryError as failure:
                    reasons.append(str(failure))
                    failures = 1 if self.num_bytes > furthest else failures + 1
                    furthest = max(furthest, self.num_bytes)
                    if failures >= retries:
                        raise self._failure(f"gave up after {len(reasons)} tries", reasons[-3:]) from None
                    wait = min(MAX_WAIT, max(failure.wait, backoff * 2 ** (failures - 1)))
                    say(self.console, f"{self.path.name}: {reasons[-1]}; trying again in {wait:.3g} s")
                    time.sleep(wait)

    def _is_complete(self) -> bool:
        """Whether all promised bytes are there; where no number was promised, whether the answer came to its end."""
        note = read_json(self.note)
        total = note.get("size") if self.expected.size is None else self.expected.size
        if total is not None and self.num_bytes > total:
            self.discard()  # a part of something else
        return self.part.exists() and (self.num_bytes == total or bool(note.get("ended")))

    def _try_once(self, meter: Meter) -> None:
        """One request, and its answer as far as it comes. Raises _RetryError or FetchError unless that is the end."""
        offset = self.num_bytes
        conditions = self._conditions(offset)
        with closing(self._open(conditions)) as answer:
            version = _version(self.url, answer)
            self._check_offer(answer, version)
            if answer.status == 206:
                self._check_continues(answer, version, offset if conditions else None)
            else:  # the whole file: a first request, a changed file, or a server that knows no ranges
                self.discard()
                offset = 0
                write_json(self.note, version)
            self.in_one_piece = answer.status != 206
            length = answer.getheader("Content-Length")
            missing = int(length) if length and length.isdigit() else None
            total = version["size"] if self.expected.size is None else self.expected.size
            require_space(self.path.parent, max(0, (total or 0) - offset), f"downloading {self.path.name}")
            meter.begin(offset, total)
            # A chunked answer tells its end; one that just stops tells nothing, which has to do where no size is known.
            tells_end = missing is None and (answer.chunked or total is None)
            self._receive(answer, missing, meter)
        if tells_end:
            write_json(self.note, {**version, "ended": True})
        elif total is not None and self.num_bytes < total:
            raise _RetryError(f"the connection ended at {decimal(self.num_bytes)} of {decimal(total)}")
        elif total is not None and self.num_bytes > total:
            self.discard()
            raise self._failure("not the file it should be", [f"it is longer than {total} bytes"])

    def _conditions(self, offset: int) -> dict[str, str]:
        """Headers that ask for the rest if it is of the same version; none when that cannot be made sure."""
        note = read_json(self.note)
        if not offset or not note:
            return {}
        ask = {"Range": f"bytes={offset}-"}
        validator = note.get("etag") or note.get("last_modified")
        if note.get("url") == self.url and validator:
            return {**ask, "If-Range": validator}
        # From another host, or without a version to compare: only a checksum could tell a wrong join.
        return ask if self.expected.has_checksum else {}

    def _open(self, conditions: Mapping[str, str]) -> HTTPResponse:
        headers = {"User-Agent": "detkit-datasets", **conditions}
        try:
            return urlopen(Request(self.url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            error.close()
            if error.code == 416:  # the part is longer than the file is now
                self.discard()
                raise _RetryError("the remote file has changed") from error
            reason = f"the server answered {error.code} {error.reason}"
            if error.code in TRANSIENT:
                raise _RetryError(reason, _retry_after(error)) from error
            raise self._failure("cannot be had", [reason]) from error
        except URLError as error:
            reason = f"no connection to {urlsplit(self.url).netloc}: {error.reason}"
            if isinstance(error.reason, ssl.SSLCertVerificationError) or not isinstance(error.reason, OSError):
                raise self._failure("cannot be had", [reason]) from error
            raise _RetryError(reason) from error
        except (InvalidURL, ValueError) as error:
            raise FetchError(f"{self.url!r}: not a URL: {error}") from error
        except (OSError, HTTPException) as error:
            raise _RetryError(f"the connection broke: {_name(error)}") from error

    def _check_offer(self, answer: HTTPResponse, version: Mapping[str, Any]) -> None:
        """Refuse a file of another size before the bytes so far are given up for it."""
        offered, wanted = version["size"], self.expected.size
        if wanted is not None and offered is not None and offered != wanted:
            kind = answer.getheader("Content-Type", "unknown type")
            raise self._failure("not the file it should be", [f"it has {offered} bytes ({kind}) instead of {wanted}"])

    def _check_continues(self, answer: HTTPResponse, version: Mapping[str, Any], offset: int | None) -> None:
        """Raise _RetryError, for a new start, unless the answer goes on where the part ends, in the same version."""
        note = read_json(self.note)
        found = re.match(r"bytes (\d+)-", answer.getheader("Content-Range", ""))
        same = found is not None and offset == int(found[1])
        for key in ("size", "etag", "last_modified") if note.get("url") == self.url else ("size",):
            same = same and (not note.get(key) or not version[key] or note[key] == version[key])
        if not same:
            self.discard()
            raise _RetryError("the remote file has changed")

    def _receive(self, answer: HTTPResponse, missing: int | None, meter: Meter) -> None:
        """Append the body to the part, at most ``missing`` bytes: some servers leave the connection open after them."""
        try:
            with open(self.part, "ab") as stream:
                while missing is None or missing > 0:
                    chunk = _read(answer, CHUNK if missing is None else min(CHUNK, missing))
                    if not chunk:
                        return
                    stream.write(chunk)
                    missing = None if missing is None else missing - len(chunk)
                    meter.advance(len(chunk))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise FetchError(
                f"{self.part}: the disk is full. Make room and run the same command again: it goes on from there"
            ) from error

    def _failure(self, what: str, reasons: list[str]) -> FetchError:
        kept = f"\n{decimal(self.num_bytes)} are kept in {self.part}, to go on from" if self.num_bytes else ""
        return FetchError(f"{self.url}: {what}: {'; '.join(reasons)}.{kept}\n{_by_hand(self.url, self.path)}")


def _read(answer: HTTPResponse, count: int) -> bytes:
    try:
        return answer.read1(count)
    except (OSError, HTTPException) as error:
        raise _RetryError(f"the connection broke: {_name(error)}") from error


def _version(url: str, answer: HTTPResponse) -> dict[str, Any]:
    """What tells one version of the remote file from another: a strong ETag, the date, the size of the whole."""
    etag = answer.getheader("ETag")
    total = answer.getheader("Content-Range", "").rpartition("/")[2]
    size = total if answer.status == 206 else answer.getheader("Content-Length", "")
    return {
        "url": url,
        "etag": etag if etag and not etag.startswith("W/") else None,  # a weak one promises no equal bytes
        "last_modified": answer.getheader("Last-Modified"),
        "size": int(size) if size.isdigit() else None,
    }


def _retry_after(error: HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
