"""Frames of HTTP/2 made by hand, for calls that no client would make.

Source: RFC 9113 for frames, RFC 7541 for heads.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
# `SETTINGS_HEADER_TABLE_SIZE` 0: the server's heads then refer to the static table alone.
# `SETTINGS_INITIAL_WINDOW_SIZE`: an answer of any size here fits the windows of stream and connection.
_MOST_WINDOW = (1 << 31) - 1
_SETTINGS_SENT = struct.pack(">HIHI", 1, 0, 4, _MOST_WINDOW)
_WINDOW_GROWN = struct.pack(">I", _MOST_WINDOW - 0xFFFF)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_frame(headers: Mapping[str, str]) -> bytes:
    """The head of a request on stream 1, each header as a literal."""
    block = b"".join(
        b"\0" + _string(name.encode("latin-1")) + _string(value.encode("latin-1"))
        for name, value in headers.items()
    )
    pieces = [block[at : at + 16384] for at in range(0, len(block), 16384)]
    frames = b""
    for n, piece in enumerate(pieces):
        flags = _END_HEADERS if n == len(pieces) - 1 else 0
        frames += _frame(_CONTINUATION if n else _HEADERS, flags, 1, piece)
    return frames


def data_frame(content: bytes, *, last: bool = False) -> bytes:
    """Bytes of the body of stream 1, in frames of the size that every server takes."""
    pieces = [content[at : at + 16384] for at in range(0, len(content), 16384)] or [b""]
    frames = b"".join(_frame(_DATA, 0, 1, piece) for piece in pieces[:-1])
    return frames + _frame(_DATA, _END_STREAM if last else 0, 1, pieces[-1])


def reset_frame(code: int) -> bytes:
    """The end of stream 1 by an error code."""
    return _frame(_RESET, 0, 1, struct.pack(">I", code))


def _string(content: bytes) -> bytes:
    return _integer(len(content), 7) + content


def _integer(number: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if number < most:
        return bytes([number])
    out = bytes([most])
    number -= most
    while number > 127:
        out += bytes([number % 128 + 128])
        number //= 128
    return out + bytes([number])


class _Block:
    """A reader of the head of an answer. Names and values in Huffman's code are left out."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def headers(self) -> dict[str, str]:
        """The headers that are literals, and `:status`."""
        found: dict[str, str] = {}
        while self._at < len(self._raw):
            first = self._raw[self._at]
            if first & 0x80:
                index = self._number(7)
                if 8 <= index <= 14:
                    found[":status"] = ("200", "204", "206", "304", "400", "404", "500")[index - 8]
            elif first & 0xE0 == 0x20:
                self._number(5)
            else:
                index = self._number(6 if first & 0x40 else 4)
                name = ":status" if index in range(8, 15) else f"static {index}"
                if not index:
                    name = self._text()
                found[name] = self._text()
        return found

    def _number(self, bits: int) -> int:
        most = (1 << bits) - 1
        number = self._raw[self._at] & most
        self._at += 1
        if number < most:
            return number
        shift = 0
        while True:
            byte = self._raw[self._at]
            self._at += 1
            number += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def _text(self) -> str:
        is_huffman = self._raw[self._at] & 0x80
        size = self._number(7)
        content = self._raw[self._at : self._at + size]
        self._at += size
        return "(Huffman)" if is_huffman else content.decode("latin-1")


class Exchange:
    """A connection that sends frames and reads what becomes of stream 1; a context manager.

    Args:
        port: of the server.
        seconds: that any step may take.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._is_broken = False
        self.send(PREFACE + _frame(_SETTINGS, 0, 0, _SETTINGS_SENT))
        self.send(_frame(_WINDOW, 0, 0, _WINDOW_GROWN))

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, frames: bytes) -> None:
        """Send bytes, unless the server has closed the connection."""
        try:
            self._socket.sendall(frames)
        except OSError:
            self._is_broken = True

    def half_close(self) -> None:
        """Send nothing more."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._is_broken = True

    def end(self) -> str:
        """How stream 1 ended: `grpc N`, `http N`, `reset N`, `goaway N`, `closed` or `late`."""
        try:
            return self._end()
        except TimeoutError:
            return "late"
        except (ConnectionError, EOFError):
            return "closed"

    def _end(self) -> str:
        headers: dict[str, str] = {}
        block = b""
        while True:
            kind, flags, stream, payload = self._frame()
            match kind:
                case _ if kind in (_HEADERS, _CONTINUATION) and stream == 1:
                    assert not flags & (_PADDED | _PRIORITY) or kind == _CONTINUATION
                    block += payload
                    if flags & _END_HEADERS:
                        headers |= _Block(block).headers()
                        block = b""
                case _ if kind == _RESET and stream == 1:
                    if "grpc-status" in headers:
                        return f"grpc {headers['grpc-status']}"
                    return f"reset {int.from_bytes(payload, 'big')}"
                case _ if kind == _GOAWAY:
                    return f"goaway {int.from_bytes(payload[4:8], 'big')}"
                case _ if kind == _SETTINGS and not flags & _ACK:
                    self.send(_frame(_SETTINGS, _ACK, 0, b""))
                case _ if kind == _PING and not flags & _ACK:
                    self.send(_frame(_PING, _ACK, 0, payload))
                case _:
                    pass
            if kind in (_DATA, _HEADERS) and stream == 1 and flags & _END_STREAM and not block:
                if "grpc-status" in headers:
                    return f"grpc {headers['grpc-status']}"
                return f"http {headers.get(':status')}"

    def _frame(self) -> tuple[int, int, int, bytes]:
        head = self._exactly(9)
        size = int.from_bytes(head[:3], "big")
        stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        return head[3], head[4], stream, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._socket.recv(size - len(content))
            if not piece:
                raise EOFError
            content += piece
        return content
