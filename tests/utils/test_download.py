"""Files from the web: what keeps one from being fetched is an OSError that names the URL."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from detkit.utils.download import checksum, local_copy

ZEROS = "#sha256=" + "0" * 64


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/my file.pt", "URL can't contain control characters"),
        ("http://127.0.0.1:port/a.pt", "nonnumeric port"),
        ("http://127.0.0.1:1/a.pt", "Connection refused"),
        ("http://127.0.0.1:1/\u00fc.pt", "ascii"),
        ("file:///nowhere/a.pt", "No such file or directory"),
    ],
)
def test_what_cannot_be_fetched_is_an_oserror_that_names_the_url(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"^{url}: .*{words}"):
        local_copy(url + ZEROS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_address_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^http://\[::1/a\.pt: Invalid IPv6 URL"):
        local_copy(f"http://[::1/a.pt{ZEROS}", tmp_path)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"good day\r\n\r\n", "good day"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n99\r\nabc", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc", "its checksum is"),
    ],
)
def test_a_broken_answer_names_the_url(answer: bytes, words: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.pt"
        with pytest.raises((OSError, ValueError), match=f"^{url}: .*{words}"):
            local_copy(url + ZEROS, tmp_path)
        thread.join(10)
    assert not list(tmp_path.iterdir())


def test_a_checksum_may_be_in_capitals(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"weights")
    url = f"{file.as_uri()}#sha256={checksum(file).upper()}"
    copy = local_copy(url, tmp_path / "cache")
    file.unlink()
    assert local_copy(url, tmp_path / "cache") == copy
    assert copy.read_bytes() == b"weights"
