"""A small web server on this machine that can be told to misbehave."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Seen(NamedTuple):
    """One request and what was answered: the path, two of its headers, the status, the bytes of the body."""

    path: str
    range: str | None
    if_range: str | None
    status: int
    num_bytes: int


@dataclass
class Resource:
    """A file on the server, and how it is served.

    ``cuts``: for each of the first answers, after how many bytes of the body the connection breaks. ``errors``:
    statuses of the first answers instead. ``if_range``: whether that header is heeded. ``framing``: "length"
    (Content-Length), "chunked", or "close" (the end of the connection is the end of the file). ``pause``: seconds after
    each block of 64 KiB. ``linger``: seconds for which the connection stays open after the last byte. ``off_by``: an
    answer to a range begins so many bytes after what was asked for.
    """

    content: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = "Mon, 06 Nov 2017 10:00:00 GMT"
    ranges: bool = True
    if_range: bool = True
    framing: str = "length"
    cuts: list[int] = field(default_factory=list)
    errors: list[int] = field(default_factory=list)
    retry_after: str | None = None
    redirect: str | None = None
    content_type: str = "application/octet-stream"
    pause: float = 0.0
    linger: float = 0.0
    off_by: int = 0


class FileServer:
    """``files`` maps paths ("/zips/a.zip") to what is served; ``seen`` are the requests so far."""

    def __init__(self) -> None:
        self.files: dict[str, Resource] = {}
        self.seen: list[Seen] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def add(self, path: str, content: bytes, **behaviour: object) -> Resource:
        self.files[path] = Resource(content, **behaviour)  # type: ignore[arg-type]
        return self.files[path]

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        file = self.owner.files.get(self.path)
        if file is None:
            return self._refuse(404)
        if file.redirect:
            return self._refuse(302, Location=file.redirect)
        if file.errors:
            wait = {"Retry-After": file.retry_after} if file.retry_after else {}
            return self._refuse(file.errors.pop(0), **wait)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and file.ranges else 0
        if file.if_range and self.headers["If-Range"] not in (None, file.etag, file.last_modified):
            start = 0
        if start and start >= len(file.content):
            return self._refuse(416, **{"Content-Range": f"bytes */{len(file.content)}"})
        self._answer(file, start + file.off_by if start else 0)

    def _refuse(self, status: int, **headers: str) -> None:
        self._note(status, 0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, file: Resource, start: int) -> None:
        body = file.content[start:]
        cut = file.cuts.pop(0) if file.cuts else None
        self._note(206 if start else 200, len(body[:cut]))  # first: the client may go on before all is sent
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        for name, value in (("ETag", file.etag), ("Last-Modified", file.last_modified)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", file.content_type)
        if file.framing != "close":
            name, value = (
                ("Content-Length", str(len(body))) if file.framing == "length" else ("Transfer-Encoding", "chunked")
            )
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self._send_body(file, body[:cut], whole=cut is None)

    def _send_body(self, file: Resource, body: bytes, whole: bool) -> None:
        try:
            for at in range(0, len(body), 1 << 16):
                block = body[at : at + (1 << 16)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if file.framing == "chunked" else block)
                if file.pause:
                    time.sleep(file.pause)
            if file.framing == "chunked" and whole:
                self.wfile.write(b"0\r\n\r\n")
            if file.linger:
                time.sleep(file.linger)
        except ConnectionError:  # the other side left: what tests of Ctrl-C do
            return

    def _note(self, status: int, num_bytes: int) -> None:
        seen = Seen(self.path, self.headers["Range"], self.headers["If-Range"], status, num_bytes)
        self.owner.seen.append(seen)

    def log_message(self, format: str, *args: object) -> None:
        pass
