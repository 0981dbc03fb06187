"""Calls of every method of the gRPC port, most of them wrong: see tests/fuzz_grpc.py."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc

from tests.contract import wire
from tests.contract.http2 import Exchange, data_frame, headers_frame, reset_frame
from tests.fakes import MINILM, NOMIC

SECONDS = 15.0
"""That a call may take."""

FAULT = "fault"
"""The engine fails at a text with this word."""

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_EMBED = "/tei.v1.Embed/Embed"
_MODEL = NOMIC.id


def _tensor(name: str, *shape: int, contents: bytes = b"") -> bytes:
    sizes = b"".join(wire.varint(size % (1 << 64)) for size in shape)
    fields: list[tuple[int, wire.Value]] = [(1, name), (2, "BYTES"), (3, sizes)]
    return wire.message(*fields, *([(5, contents)] if contents else []))


def _parameter(name: str, value: str | int) -> bytes:
    number = 2 if isinstance(value, int) else 3
    return wire.message((1, name), (2, wire.field(number, value)))


_INFERRED = wire.message(
    (1, _MODEL),
    (2, "1"),
    (3, "id"),
    (4, _parameter("input_type", "query")),
    (4, _parameter("dimensions", 64)),
    (4, _parameter("truncate", "END")),
    (4, _parameter("embedding_type", "ubinary")),
    (5, _tensor("text", 2, 1)),
    (5, _tensor("modality", 2, 1)),
    (6, wire.field(1, "embeddings")),
    (7, wire.strings("a", "b ü")),
    (7, wire.strings("text", "text")),
)
_TYPED = wire.message((5, _tensor("x", 1, contents=wire.field(8, "a"))))
_NAMED = wire.message((1, _MODEL), (2, "1"))
_EMBEDDED = wire.message((1, "some text ü"), (2, 1), (3, 0), (4, 1), (5, "query"), (6, 64))
_ENCODED = wire.message((1, "some text"), (2, 1), (3, "query"))
_IDS = wire.message((1, b"\x05\x06\x96\x01"), (2, 1))
_PREDICTED = wire.message((1, "a"), (1, "b"), (3, wire.message((1, "k"), (2, "v"))))
_REFLECTED = (
    wire.field(4, "tei.v1.Embed"),
    wire.field(3, "tei.proto"),
    wire.field(7, "*"),
    wire.field(6, "tei.v1.EmbedRequest"),
    wire.message((1, "host"), (5, wire.message((1, "a"), (2, 3)))),
)

SEEDS: dict[str, Sequence[bytes]] = {
    "/tei.v1.Info/Info": (b"", wire.field(1, "a")),
    _EMBED: (_EMBEDDED, wire.field(1, "a")),
    "/tei.v1.Embed/EmbedStream": (_EMBEDDED, wire.field(1, "a")),
    "/tei.v1.Tokenize/Tokenize": (_ENCODED,),
    "/tei.v1.Tokenize/TokenizeStream": (_ENCODED,),
    "/tei.v1.Tokenize/Decode": (_IDS,),
    "/tei.v1.Tokenize/DecodeStream": (_IDS,),
    "/encoderfile.sentence_embedding.SentenceEmbeddingInference/Predict": (_PREDICTED,),
    "/encoderfile.sentence_embedding.SentenceEmbeddingInference/GetModelMetadata": (b"",),
    "/inference.GRPCInferenceService/ServerLive": (b"",),
    "/inference.GRPCInferenceService/ServerReady": (b"",),
    "/inference.GRPCInferenceService/ModelReady": (_NAMED,),
    "/inference.GRPCInferenceService/ServerMetadata": (b"",),
    "/inference.GRPCInferenceService/ModelMetadata": (_NAMED,),
    _INFER: (_INFERRED, _TYPED),
    "/grpc.health.v1.Health/Check": (wire.field(1, "tei.v1.Embed"), b""),
    "/grpc.health.v1.Health/Watch": (wire.field(1, "tei.v1.Embed"),),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _REFLECTED,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _REFLECTED,
}
"""Messages of every method."""

_ENDLESS = "/grpc.health.v1.Health/Watch"


# --- messages


def _flipped(rng: random.Random, raw: bytes) -> bytes:
    """A message with a few bytes changed, dropped, doubled or added."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = out[at : at + 16]
            case 3:
                del out[at:]
            case _:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
    return bytes(out)


_CONTENTS = (
    b"",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"a\0b",
    "𝄞".encode() * 50,
    b"word " * 9000,
    b"\x01" * 70_000,
    b"\xff" * 70_000,
    b"\x08" * 5000,
    b"\x0a\0" * 40_000,
    b"\x80" * 12 + b"\x01",
)
_SHAPES = (
    (),
    (0,),
    (-1,),
    (2, 2),
    (1 << 62, 1 << 62),
    (1 << 31,),
    (1,) * 3000,
    (2, -1),
    (3, 1, 1, 1),
    (-(1 << 63), -1),
)
_NUMBERS = (0, 1, 2, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63), (1 << 64) - 1)


def _random_field(rng: random.Random) -> bytes:
    """A field of any number and type, which may lie about its length."""
    number = rng.choice([0, *range(1, 12), 15, 16, 1000, (1 << 29) - 1])
    kind = rng.choice([0, 1, 2, 2, 2, 3, 4, 5, 6, 7])
    tag = wire.varint(number << 3 | kind)
    match kind:
        case 0:
            return tag + wire.varint(rng.choice(_NUMBERS))
        case 1:
            return tag + rng.randbytes(8)
        case 2:
            content = rng.choice(_CONTENTS)
            size = rng.choice([len(content)] * 4 + [rng.choice(_NUMBERS)])
            return tag + wire.varint(size) + content
        case 5:
            return tag + rng.randbytes(4)
        case _:
            return tag


def _shaped(rng: random.Random) -> bytes:
    """A `ModelInferRequest` whose shape, datatype, contents and parameters need not fit."""
    texts = [rng.choice(_CONTENTS) for _ in range(rng.randint(0, 3))]
    raw = b"".join(
        struct.pack("<I", rng.choice([len(text)] * 5 + [0, 1 << 31, 0xFFFFFFFF])) + text
        for text in texts
    )
    shape = rng.choice([*_SHAPES, (len(texts),), (len(texts), 1), (len(texts), 1)])
    fields: list[tuple[int, wire.Value]] = [
        (1, rng.choice([_MODEL, MINILM.id, "nomic_embed_text_v1_5", "", "𝄞" * 400])),
        (5, _tensor(rng.choice(["text", "", "modality", "𝄞" * 99]), *shape)),
    ]
    fields += [(7, raw)] * rng.choice([1, 1, 1, 1, 0, 2])
    for name in ("input_type", "truncate", "dimensions", "embedding_type", "odd"):
        if rng.random() < 0.2:
            value: wire.Value = rng.choice(_CONTENTS)
            given = rng.choice([(2, rng.choice(_NUMBERS)), (3, value), (4, rng.randbytes(8))])
            fields.append((4, wire.message((1, name), (2, wire.message(given)))))
    rng.shuffle(fields)
    return wire.message(*fields)


def _message(rng: random.Random, path: str) -> bytes:
    seed = rng.choice(SEEDS[path])
    match rng.randrange(8):
        case 0:
            return seed
        case 1:
            return rng.randbytes(rng.randint(0, 64))
        case 2:
            return seed + b"".join(_random_field(rng) for _ in range(rng.randint(1, 3)))
        case 3:
            return b"".join(_random_field(rng) for _ in range(rng.randint(1, 5)))
        case 4 if path == _INFER:
            return _shaped(rng)
        case 5:
            return rng.choice(SEEDS[rng.choice(list(SEEDS))])
        case 6:
            return wire.field(rng.randint(1, 8), rng.choice(_CONTENTS))
        case _:
            return _flipped(rng, seed)


# --- calls


@dataclass
class Caller:
    """What calls need: a channel, and the port for sockets."""

    port: int
    channel: grpc.Channel

    def start(self, path: str, raws: Sequence[bytes], **given: Any) -> Any:
        """A call that runs."""
        call: Any = self.channel.stream_stream(path)
        return call(iter(raws), **{"timeout": SECONDS, **given})

    def call(self, path: str, raws: Sequence[bytes], most: int = 1 << 30, **given: Any) -> str:
        """How a call ends that is cancelled after so many answers."""
        started = time.monotonic()
        call = self.start(path, raws, **given)
        end = end_of(call, 1 if path == _ENDLESS else most)
        return end if time.monotonic() - started < SECONDS else "late"


def end_of(call: Any, most: int) -> str:
    """The name of a call's code; the call is cancelled after so many answers."""
    try:
        for n, _ in enumerate(call, 1):
            if n >= most:
                call.cancel()
    except grpc.RpcError as exc:
        return cast("Any", exc).code().name
    return "OK"


def _plain(rng: random.Random, caller: Caller) -> str:
    """Messages through a client."""
    path = rng.choice(list(SEEDS))
    raws = [_message(rng, path) for _ in range(rng.choice([1, 1, 1, 1, 2, 5, 0]))]
    return caller.call(path, raws)


_VALUES = ("", " ", "a", _MODEL, "none", "Bearer", "Bearer " + "x" * 300, "no good id", "~" * 4000)
_KEYS = ("model", "x-request-id", "authorization", "api-key", "te", "grpc-accept-encoding", "odd")


def _metadata(rng: random.Random, caller: Caller) -> str:
    """Metadata of any kind that a client sends, also more than gRPC takes."""
    given: list[tuple[str, str | bytes]] = [
        (rng.choice(_KEYS), rng.choice(_VALUES)) for _ in range(rng.randint(1, 4))
    ]
    given.append((rng.choice(["model-bin", "trace-bin"]), rng.randbytes(rng.randint(0, 99))))
    if rng.random() < 0.1:
        given.append(("odd", "x" * rng.choice([9000, 15_000, 17_000, 40_000])))
    path = rng.choice(list(SEEDS))
    raws = [rng.choice(SEEDS[path])]
    return caller.call(path, raws, metadata=tuple(given))


def _deadline(rng: random.Random, caller: Caller) -> str:
    """A deadline at a random moment."""
    path = rng.choice(list(SEEDS))
    raws = [rng.choice(SEEDS[path])] * rng.choice([1, 1, 200])
    return caller.call(path, raws, timeout=rng.choice([0.0005, 0.002, 0.005, 0.02, 0.05]))


def _cancel(rng: random.Random, caller: Caller) -> str:
    """A call that is cancelled at a random moment, or after some answers."""
    path = rng.choice(list(SEEDS))
    raws = [rng.choice(SEEDS[path])] * rng.choice([1, 1, 1000])
    if rng.random() < 0.5:
        return caller.call(path, raws, most=rng.randint(1, 30))
    call = caller.start(path, raws)
    time.sleep(rng.random() * 0.01)
    call.cancel()
    return end_of(call, 1 << 30)


def _fault(rng: random.Random, caller: Caller) -> str:
    """A text that the engine fails at."""
    path, raw = rng.choice(
        [
            (_EMBED, wire.field(1, FAULT)),
            ("/tei.v1.Embed/EmbedStream", wire.field(1, FAULT)),
            (_PREDICT, wire.message((1, "a"), (1, FAULT))),
            (_INFER, wire.message((5, _tensor("text", 1)), (7, wire.strings(FAULT)))),
        ]
    )
    code = caller.call(path, [raw])
    return "injected" if code == "INTERNAL" else f"{code} for an injected fault"


_PREDICT = "/encoderfile.sentence_embedding.SentenceEmbeddingInference/Predict"

_HEAD: Mapping[str, str | None] = {
    ":method": "POST",
    ":scheme": "http",
    ":authority": "localhost",
    "content-type": "application/grpc",
    "te": "trailers",
}
_ODD_HEADS: Sequence[Mapping[str, str | None]] = (
    {"content-type": "application/json"},
    {"content-type": "text/plain"},
    {"content-type": ""},
    {"content-type": None},
    {":path": ""},
    {":path": "/tei.v1.Embed/\xff"},
    {":path": "\xc3"},
    {":path": "/tei.v1.Embed"},
    {":path": "/tei.v1.Embed/Embed/"},
    {":path": "/grpc.health.v1.Health/No"},
    {"grpc-encoding": "gzip"},
    {"grpc-encoding": "deflate"},
    {"grpc-timeout": "0S"},
    {"grpc-timeout": "1n"},
    {"grpc-timeout": "99999999H"},
    {"x-request-id": "\xff"},
    {"model": "\xff\xfe"},
    {"model": "a\0b"},
    {"authorization": "x" * 15_000},
    {"grpc-status": "13"},
    {"content-length": "3"},
)
_BROKEN_HEADS: Sequence[Mapping[str, str | None]] = (
    {":method": "GET"},
    {":method": ""},
    {":method": None},
    {":path": None},
    {"te": None},
    {"te": "x"},
    {"content-type": "\xff"},
    {"grpc-encoding": "odd"},
    {"grpc-timeout": "-1S"},
    {"grpc-timeout": "S"},
    {"Odd": "a"},
    {":odd": "a"},
    {"a b": "a\r\nb: c"},
    {"trace-bin": "!!!"},
)


def _frames(rng: random.Random, *, broken: bool) -> bytes:
    """The frames of a call, whose head or message is odd, or breaks gRPC's rules."""
    path = rng.choice([path for path in SEEDS if path != _ENDLESS])
    changes = rng.choice(_BROKEN_HEADS if broken else [*_ODD_HEADS, *[{}] * len(_ODD_HEADS)])
    head = {
        name: value
        for name, value in {**_HEAD, ":path": path, **changes}.items()
        if value is not None
    }
    raw = _message(rng, path)
    sizes = [len(raw)] * 4 + [len(raw) + 1, max(0, len(raw) - 1), 0, 1 << 30, 0xFFFFFFFF]
    flag = rng.choice([0] * 6 + [2, 255] + [1] * broken)
    content = struct.pack(">BI", flag, rng.choice(sizes)) + raw
    at = rng.choice([0, rng.randrange(len(content))])
    frames = headers_frame(head) + (data_frame(content[:at]) if at else b"")
    return frames + data_frame(content[at:], last=rng.randrange(5) > 0)


def _odd_frames(rng: random.Random, caller: Caller) -> str:
    """Frames that HTTP/2 allows, and that no client would send."""
    with Exchange(caller.port, SECONDS) as exchange:
        exchange.send(_frames(rng, broken=False))
        return exchange.end()


def _broken_frames(rng: random.Random, caller: Caller) -> str:
    """Frames that break a rule, or end in the middle."""
    frames = _frames(rng, broken=rng.random() < 0.5)
    with Exchange(caller.port, SECONDS) as exchange:
        match rng.randrange(6):
            case 0:
                frames = _flipped(rng, frames)
            case 1:
                frames = rng.randbytes(rng.randint(1, 200))
            case 2:
                exchange.send(frames[: rng.randrange(len(frames))])
                return "left"
            case 3:
                exchange.send(frames[: rng.randrange(len(frames))])
                exchange.send(reset_frame(rng.choice([0, 2, 8, 11])))
                return "reset"
            case 4:
                frames = frames[: rng.randrange(len(frames))]
            case _:
                pass
        exchange.send(frames)
        if rng.random() < 0.3:
            exchange.half_close()
        end = exchange.end()
        return end if end == "late" else "ended"


def _other_protocol(rng: random.Random, caller: Caller) -> str:
    """Bytes that are no HTTP/2."""
    with socket.create_connection(("127.0.0.1", caller.port), timeout=SECONDS) as one:
        one.sendall(
            rng.choice(
                [
                    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(30),
                    b"\x16\x03\x01\x02\x00\x01\x00",
                    rng.randbytes(rng.randint(1, 300)),
                ]
            )
        )
        one.shutdown(socket.SHUT_WR)
        try:
            while one.recv(65536):
                pass
        except TimeoutError:
            return "late"
        except OSError:
            pass
    return "closed"


WAYS: Sequence[Callable[[random.Random, Caller], str]] = (
    *[_plain] * 10,
    *[_metadata] * 2,
    *[_deadline] * 2,
    *[_cancel] * 2,
    *[_odd_frames] * 2,
    *[_broken_frames] * 2,
    _other_protocol,
    _fault,
)


def one(index: int, seed: int, caller: Caller) -> str:
    """The end of one call, behind the name of its way."""
    rng = random.Random(f"{seed}/{index}")
    way = rng.choice(WAYS)
    return f"{way.__name__[1:]}: {way(rng, caller)}"


def is_fault(end: str) -> bool:
    """Whether a call may not end in this way."""
    code = end.partition(": ")[2]
    return code in ("UNKNOWN", "INTERNAL", "late", "grpc 2", "grpc 13") or "injected fault" in code
