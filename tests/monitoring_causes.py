"""The cause of every alert, for real: each lasts as long as its block."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import requests

from matryo.batch.storage import open_storage
from matryo.core.environment import load_settings
from matryo.grpc.messages import make
from tests.monitoring_stack import Monitored, Stack

Cause = AbstractContextManager[None]

_EMBED = "/tei.v1.Embed/Embed"
_BULK = [" ".join(f"w{number}x{word}" for word in range(200)) for number in range(500)]


@contextlib.contextmanager
def again_and_again(
    *sends: Callable[[], object], pause_s: float = 0.1
) -> Generator[None, None, None]:
    """Call each function in a thread of its own until the block ends; what it raises is dropped."""
    end = threading.Event()

    def run(send: Callable[[], object]) -> None:
        while not end.wait(pause_s):
            with contextlib.suppress(requests.RequestException, OSError, grpc.RpcError):
                send()

    threads = [threading.Thread(target=run, args=(send,)) for send in sends]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


@dataclass(frozen=True)
class World:
    """What the causes act upon.

    Attributes:
        server: the server.
        other: a server of another fingerprint, not started.
        stack: watches.
        keys: name to key.
        keys_file: of the server.
        certify: writes the certificate of the gRPC port anew, so that it ends in so many days.
        root_pem: the certificate that its clients trust.
        grpc_port: of the server.
        batches: folder of the Batch API.
    """

    server: Monitored
    other: Monitored
    stack: Stack
    keys: dict[str, str]
    keys_file: Path
    certify: Callable[[int], None]
    grpc_port: int
    root_pem: Path
    batches: Path

    # --- load of every kind

    def post(
        self, path: str, body: dict[str, Any], key: str = "search", timeout_s: float = 20
    ) -> requests.Response:
        """Send a body as JSON."""
        headers = {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        url = f"{self.server.url}{path}"
        return requests.post(url, json=body, headers=headers, timeout=timeout_s)

    def query(self) -> object:
        """Ask for the vector of a query."""
        body = {"input": "why is the sky blue", "input_type": "query"}
        return self.post("/v1/embeddings", body, timeout_s=3)

    def documents(self) -> object:
        """Ask for many vectors, one of a text that is cut and one of unknown words."""
        texts = [*_BULK[:10], "long " * 600, "\N{REPLACEMENT CHARACTER}"]
        return self.post("/v1/embeddings", {"input": texts}, key="batch")

    def bulk(self) -> object:
        """Ask for 100,000 tokens."""
        return self.post("/v1/embeddings", {"input": _BULK}, key="batch")

    def tei(self) -> object:
        """Ask at TEI's route."""
        return self.post("/embed", {"inputs": "the sky"})

    def grpc(self) -> object:
        """Ask over gRPC, with TLS."""
        credentials = grpc.ssl_channel_credentials(self.root_pem.read_bytes())
        message = make("tei.v1.EmbedRequest")(inputs="the sky").SerializeToString()
        metadata = [("authorization", f"Bearer {self.keys['search']}")]
        with grpc.secure_channel(f"localhost:{self.grpc_port}", credentials) as channel:
            call: Any = channel.unary_unary(_EMBED)
            return call(message, metadata=metadata, timeout=5)

    def bad(self) -> object:
        """Send what is refused: no key, no such model, no HTTP."""
        self.post("/v1/embeddings", {"input": "x"}, key="nobody")
        self.post("/v1/embeddings", {"input": "x", "model": "none"})
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as caller:
            caller.sendall(b"\x00\x01\x02\r\n\r\n")
            return caller.recv(100)

    def hang_up(self) -> object:
        """Ask for bulk and leave."""
        body = json.dumps({"input": _BULK[:10]}).encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=5) as caller:
            return caller.sendall(self._head(len(body)) + body)

    def _head(self, n_bytes: int) -> bytes:
        return (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.keys['batch']}"
            f"\r\nContent-Type: application/json\r\nContent-Length: {n_bytes}\r\n\r\n"
        ).encode()

    def limited(self) -> object:
        """Ask with the key that may ask once a minute."""
        return self.post("/v1/embeddings", {"input": "x"}, key="limited")

    # --- causes

    def causes(self) -> Sequence[tuple[str, Callable[[], Cause]]]:
        """The name of each alert, and its cause."""
        return (
            ("MatryoFailures", lambda: self._told("fail", "work")),
            ("MatryoAvailabilityBurn", lambda: self._told("fail", "work")),
            ("MatryoLatencyBurn", lambda: self._told("delay 0.8", "delay 0.005")),
            ("MatryoNotReady", lambda: self._told("hold", "release")),
            ("MatryoBacklog", self._backlog),
            ("MatryoRefusing", self._full),
            ("MatryoMemoryBudget", self._half_bodies),
            ("MatryoLoopLag", self._blocked),
            ("MatryoDroppedConnections", self._crowd),
            ("MatryoKeyLimited", lambda: again_and_again(self.limited)),
            ("MatryoReloadRefused", self._bad_keys),
            ("MatryoCertificateExpires", self._old_certificate),
            ("MatryoBatchStuck", self._late_batch),
            ("MatryoVersionsDiffer", self._two_versions),
            ("MatryoDown", self._stopped),
            ("MatryoRestarting", lambda: again_and_again(self._crash)),
        )

    @contextlib.contextmanager
    def _told(self, command: str, end: str) -> Generator[None, None, None]:
        self.server.say(command)
        yield
        self.server.say(end)

    @contextlib.contextmanager
    def _backlog(self) -> Generator[None, None, None]:
        with self._told("delay 1", "delay 0.005"), again_and_again(self.bulk):
            yield
            self.server.say("delay 0.005")

    @contextlib.contextmanager
    def _full(self) -> Generator[None, None, None]:
        with self._told("hold", "release"), again_and_again(*[self.bulk] * 4):
            yield
            self.server.say("release")

    @contextlib.contextmanager
    def _half_bodies(self) -> Generator[None, None, None]:
        def send() -> None:
            address = ("127.0.0.1", self.server.port)
            with contextlib.ExitStack() as end:
                callers = [
                    end.enter_context(socket.create_connection(address, timeout=2))
                    for _ in range(8)
                ]
                for caller in callers:
                    caller.sendall(self._head(4_000_000) + b'{"input": "' + b"x" * 3_900_000)
                callers[0].recv(1)  # waits, or gets the refusal

        with again_and_again(send):
            yield

    @contextlib.contextmanager
    def _blocked(self) -> Generator[None, None, None]:
        with again_and_again(lambda: self.server.say("block 0.6"), pause_s=0.7):
            yield

    @contextlib.contextmanager
    def _crowd(self) -> Generator[None, None, None]:
        def come() -> None:
            with contextlib.ExitStack() as callers:
                for _ in range(150):
                    callers.enter_context(
                        socket.create_connection(("127.0.0.1", self.server.port), timeout=5)
                    )

        with again_and_again(come):
            yield

    @contextlib.contextmanager
    def _bad_keys(self) -> Generator[None, None, None]:
        before = self.keys_file.read_text("utf-8")
        self.keys_file.write_text("no keys here", "utf-8")
        yield
        self.keys_file.write_text(before, "utf-8")

    @contextlib.contextmanager
    def _old_certificate(self) -> Generator[None, None, None]:
        self.certify(1)
        yield
        self.certify(90)

    @contextlib.contextmanager
    def _late_batch(self) -> Generator[None, None, None]:
        """A batch that somebody holds, and whose window is soon over."""
        storage = open_storage(load_settings(batch=True, batch_dir=self.batches))
        upload = storage.add_file("batch", "in.jsonl")
        line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
        upload.write(json.dumps(line).encode())
        file_id = upload.commit().id
        change = "UPDATE matryo_batches SET lease_until = ?, expires_at = ? WHERE id = ?"
        now, batch_id = int(time.time()), ""

        def hold() -> bool:
            """Add a batch, and hold it unless the server was faster."""
            nonlocal batch_id
            batch_id = storage.add_batch(
                "batch",
                weight=1.0,
                input_file_id=file_id,
                endpoint="/v1/embeddings",
                completion_window="24h",
            ).id
            values = (now + 86_400, now + 3600, batch_id)
            found = database.execute(f"{change} AND epoch = 0", values)
            database.commit()
            return bool(found.rowcount)

        with contextlib.closing(sqlite3.connect(self.batches / "batches.sqlite3")) as database:
            while not hold():
                pass
            yield
            database.execute(change, (0, now + 86_400, batch_id))
            database.commit()
        storage.close()

    @contextlib.contextmanager
    def _two_versions(self) -> Generator[None, None, None]:
        self.other.start()
        self.stack.scrape(self.server, self.other)
        yield
        self.stack.scrape(self.server)
        self.other.stop()

    @contextlib.contextmanager
    def _stopped(self) -> Generator[None, None, None]:
        self.server.stop()
        yield
        self.server.start()

    def _crash(self) -> None:
        self.server.stop(signal.SIGKILL)
        self.server.start()
