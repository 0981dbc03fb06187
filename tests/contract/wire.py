"""Messages of gRPC made and read by their field numbers alone, without any .proto."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Self

import grpc
import numpy as np

from matryo.engine.postprocess import FloatArray
from tests.contract.conftest import Live

Value = int | str | bytes


def varint(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first."""
    out = b""
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


def field(number: int, value: Value) -> bytes:
    """A field: an integer, a text, or bytes, which may be those of a message."""
    if isinstance(value, int):
        return varint(number * 8) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number * 8 + 2) + varint(len(content)) + content


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of some fields."""
    return b"".join(field(number, value) for number, value in fields)


def fields_of(raw: bytes) -> dict[int, list[Any]]:
    """The values of a message by field number: integers, or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        total = shift = 0
        while True:
            byte = raw[at]
            at += 1
            total |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return total

    while at < len(raw):
        tag = number()
        if tag % 8 == 0:
            value: Any = number()
        else:
            assert tag % 8 == 2, "only integers and bytes are expected"
            size = number()
            value = raw[at : at + size]
            at += size
        found.setdefault(tag // 8, []).append(value)
    return found


def floats(raw: bytes) -> FloatArray:
    """Packed floats."""
    return np.frombuffer(raw, "<f4")


def strings(*texts: str) -> bytes:
    """The raw contents of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


class Client:
    """Calls the gRPC server of a live server, with bytes as messages."""

    def __init__(self, live: Live, **metadata: str) -> None:
        self.port: int = live.application.state.grpc_server.port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.metadata = tuple((name.replace("_", "-"), text) for name, text in metadata.items())

    def start(self, path: str, raw: bytes, timeout: float | None = 30) -> Any:
        """A call that runs."""
        call: Any = self.channel.unary_unary(path)
        return call.future(raw, timeout=timeout, metadata=self.metadata)

    def ask(self, path: str, raw: bytes = b"", timeout: float | None = 30) -> dict[int, list[Any]]:
        """The fields of an answer."""
        return fields_of(self.start(path, raw, timeout).result())

    def refused(self, path: str, raw: bytes = b"", timeout: float | None = 30) -> Any:
        """The error of a call that fails."""
        found = self.start(path, raw, timeout).exception()
        assert isinstance(found, grpc.RpcError), "the call did not fail"
        return found

    def stream(self, path: str, raws: Iterable[bytes], timeout: float | None = 30) -> Any:
        """A call with a stream of messages; iterate over the answers."""
        call: Any = self.channel.stream_stream(path)
        return call(iter(raws), timeout=timeout, metadata=self.metadata)

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the channel."""
        self.channel.close()


def answers(stream: Iterator[bytes]) -> list[dict[int, list[Any]]]:
    """The fields of every answer of a stream."""
    return [fields_of(raw) for raw in stream]
