"""Local stand-ins for a Hugging Face hub and a package index, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import re
import ssl
import threading
import zipfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """A server of files below `/<repo>/resolve/<commit>/` and `/simple/`.

    Attributes:
        url: its root.
        files: content by path.
        hold_after: bytes of a large body after which a response waits for `release`.
        drop_after: bytes of a large body after which the connection is cut, once.
        status: of every answer, in place of the files.
        headers: further headers of an answer without a file.
        unsatisfiable: whether a range beyond the file's end is refused, as HTTP has it.
        login: `user:password` that every request must bring.
        requests: method, path and Range header of everything asked.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    hold_after: int | None = None
    drop_after: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    unsatisfiable: bool = False
    login: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    release: threading.Event = field(default_factory=threading.Event)
    holding: threading.Event = field(default_factory=threading.Event)

    def ranges(self, path: str) -> list[str]:
        """Range headers of the GETs of a path."""
        return [rng for method, asked, rng in self.requests if (method, asked) == ("GET", path)]


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Generator[StandIn, None, None]:
    """Run a stand-in on a free port of loopback, behind TLS if there is a context."""
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            # A client of a proxy asks for a whole URL.
            path = re.sub(r"^http://[^/]+", "", self.path.split("?")[0])
            asked = self.headers.get("Range", "")
            state.requests.append((self.command, path, asked))
            expected = f"Basic {base64.b64encode(state.login.encode()).decode()}"
            if state.login and self.headers.get("Authorization") != expected:
                self.refuse(401, {"WWW-Authenticate": 'Basic realm="index"'})
                return
            content = state.files.get(path)
            if content is None or state.status:
                self.refuse(state.status or 404, state.headers)
                return
            start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", asked)) else 0
            if state.unsatisfiable and start >= len(content):
                self.refuse(416, {"Content-Range": f"bytes */{len(content)}"})
                return
            body = content[start:]
            self.send_response(206 if asked else 200)
            if asked:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            is_page = path.endswith("/")
            self.send_header("Content-Type", "text/html" if is_page else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.send(body)

        def refuse(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, body: bytes) -> None:
            if state.drop_after is not None and len(body) > state.drop_after:
                self.wfile.write(body[: state.drop_after])
                self.wfile.flush()
                state.drop_after = None
                self.close_connection = True
                self.connection.close()
                return
            if state.hold_after is not None and len(body) > state.hold_after:
                self.wfile.write(body[: state.hold_after])
                self.wfile.flush()
                state.holding.set()
                state.release.wait(30)
                body = body[state.hold_after :]
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # a killed client, or our own cut
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()


def hub_files(repo: str, folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """A repository's files by the path the hub serves them under."""
    return {f"/{repo}/resolve/{COMMIT}/{name}": (folder / name).read_bytes() for name in names}


def make_wheel(path: Path, package: str, folder: Path, inside: str) -> None:
    """A wheel that carries the files of `folder` in its folder `inside`.

    It says that it requires a package that does not exist: nobody may install it.
    """
    info = f"{package.replace('-', '_')}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: no-such-pkg\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(folder.iterdir()):
            wheel.write(file, f"{inside}/{file.name}")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def index_files(package: str, wheel: Path) -> dict[str, bytes]:
    """The pages of a package index that has this wheel."""
    content = wheel.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = archive.read(name)
    link = (
        f'<a href="/files/{wheel.name}#sha256={digest}" '
        f'data-core-metadata="sha256={hashlib.sha256(metadata).hexdigest()}">{wheel.name}</a>'
    )
    return {
        f"/simple/{package}/": f"<html><body>{link}</body></html>".encode(),
        f"/files/{wheel.name}": content,
        f"/files/{wheel.name}.metadata": metadata,
    }
