"""Clients of every door: how each sends texts, in processes of their own.

A client sends bytes that were prepared before, does not parse answers, and has one connection.
"""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, Self, cast

import grpc

from matryo.commands.bench.clients import body
from matryo.grpc.messages import make
from matryo.grpc.wire import delimited

Kind = Literal["http", "unary", "stream"]

_TRUNCATE = b"\x10\x01"  # field 2 of `tei.v1.EmbedRequest`
_INFER = make("inference.ModelInferRequest")


def _tei_json(texts: Sequence[str]) -> bytes:
    return json.dumps({"inputs": list(texts), "truncate": True}).encode()


def _tei_message(texts: Sequence[str]) -> bytes:
    (text,) = texts
    return delimited(1, text.encode()) + _TRUNCATE


def _infer(texts: Sequence[str]) -> bytes:
    raw = b"".join(
        len(content).to_bytes(4, "little") + content for content in map(str.encode, texts)
    )
    return _INFER(
        parameters={"truncate": {"string_param": "END"}},
        inputs=[{"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}],
        raw_input_contents=[raw],
    ).SerializeToString()


@dataclass(frozen=True)
class Way:
    """A way through a door.

    Attributes:
        kind: of the client.
        path: URL path, or gRPC's name of the method.
        write: makes the body or message that asks for the vectors of some texts.
        headers: of an HTTP request.
        takes_one: whether a message holds one text only.
    """

    kind: Kind
    path: str
    write: Callable[[Sequence[str]], bytes]
    headers: Mapping[str, str]
    takes_one: bool = False


def _openai(**fields: Any) -> Callable[[Sequence[str]], bytes]:
    def write(texts: Sequence[str]) -> bytes:
        return body(texts, truncate=True, **fields)

    return write


_JSON = {"Content-Type": "application/json"}
_RAW = _JSON | {"Accept": "application/octet-stream"}
# A client that writes as fast as it can fills the buffers of both sides first, which takes both
# cores for seconds.
_ON_THEIR_WAY = 192
BASE64 = "HTTP base64"
WAYS: Mapping[str, Way] = {
    BASE64: Way("http", "/v1/embeddings", _openai(encoding_format="base64"), _JSON),
    "HTTP JSON": Way("http", "/v1/embeddings", _openai(encoding_format="float"), _JSON),
    "HTTP bytes": Way("http", "/v1/embeddings", _openai(), _RAW),
    "TEI /embed": Way("http", "/embed", _tei_json, _JSON),
    "tei.v1 Embed": Way("unary", "/tei.v1.Embed/Embed", _tei_message, {}, takes_one=True),
    "tei.v1 EmbedStream": Way(
        "stream", "/tei.v1.Embed/EmbedStream", _tei_message, {}, takes_one=True
    ),
    "NIM ModelInfer": Way("unary", "/inference.GRPCInferenceService/ModelInfer", _infer, {}),
}


@dataclass(frozen=True)
class Task:
    """What a client does.

    Attributes:
        way: name of the way.
        ports: of the server, for HTTP and for gRPC.
        bodies: sent in turn.
        begin, end: of the measurement, by the system's monotonic clock.
    """

    way: str
    ports: tuple[int, int]
    bodies: Sequence[bytes]
    begin: float
    end: float


class Clients:
    """Processes with a client each; a context manager."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def start(self, tasks: Sequence[Task]) -> None:
        """Give each client a task."""
        for pipe, task in zip(self._pipes, tasks, strict=True):
            pipe.send(task)

    def answers(self) -> float:
        """Wait for the clients; returns the number of answers within the measurement."""
        return sum(pipe.recv() for pipe in self._pipes)

    def __enter__(self) -> Self:
        """Return the clients themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def _work(pipe: Connection) -> None:
    pipe.send("ready")
    while task := cast("Task | None", pipe.recv()):
        pipe.send(_count(task))


def _count(task: Task) -> float:
    """The number of answers. Of an answer, the part of its time within the measurement counts."""
    found = 0.0
    before = time.monotonic()
    for _ in _CLIENTS[WAYS[task.way].kind](task):
        now = time.monotonic()
        found += max(0.0, min(now, task.end) - max(before, task.begin)) / (now - before)
        before = now
    return found


def _sent(task: Task) -> Iterator[bytes]:
    """The bodies in turn until the end of the measurement."""
    for content in itertools.cycle(task.bodies):
        if time.monotonic() >= task.end:
            return
        yield content


def _http(task: Task) -> Iterator[object]:
    """Each answer."""
    way = WAYS[task.way]
    connection = http.client.HTTPConnection("127.0.0.1", task.ports[0], timeout=300)
    for content in _sent(task):
        connection.request("POST", way.path, content, dict(way.headers))
        answer = connection.getresponse()
        yield answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"{task.way}: status {answer.status}")
    connection.close()


def _unary(task: Task) -> Iterator[object]:
    """Each answer."""
    with _channel(task) as channel:
        call = cast("Any", channel).unary_unary(WAYS[task.way].path)
        for content in _sent(task):
            yield call(content)


def _stream(task: Task) -> Iterator[object]:
    """Each answer. So many messages are on their way that the server never waits for one."""
    room = threading.Semaphore(_ON_THEIR_WAY)

    def paced() -> Iterator[bytes]:
        for content in _sent(task):
            room.acquire()
            yield content

    with _channel(task) as channel:
        call = cast("Any", channel).stream_stream(WAYS[task.way].path)
        answers = call(paced())
        for content in answers:
            yield content
            room.release()
            if time.monotonic() >= task.end:
                break
        answers.cancel()
        room.release()  # for the thread that sends


def _channel(task: Task) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{task.ports[1]}", options)


_CLIENTS: Mapping[Kind, Callable[[Task], Iterator[object]]] = {
    "http": _http,
    "unary": _unary,
    "stream": _stream,
}
