"""Mutations of files, drawn from a seed: the same seed always gives the same file."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any, cast

import onnx

EXTREMES = (0, 1, 2, 7, 255, 65_536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 10**30, 1.5, -1e308, 1e999, float("nan")),
    *("", "a", "[UNK]", "$A", ":", "\x00", "\ud800", "é" * 50, "(a+)+$", "x" * 100_000),
    *([], [[]], [0], ["a"], [None] * 50, {}, {"": {}}, {"type": "Sequence"}, {"a": [{"b": 1}]}),
)


def mutate_bytes(content: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """One to three changes: bits, bytes, lengths, truncation, or pieces moved, doubled or removed.

    Args:
        content: the file.
        rng: the source of every choice.
        head: bytes at the beginning of the file in which two of three changes are made; None for
            all of the file.
    """
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        span = min(head, len(data)) if head and rng.random() < 2 / 3 else len(data)
        at = rng.randrange(max(1, span))
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes(
                    [(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)]
                )
            case 1:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) & 0xFFFF_FFFF)
            case 4:
                del data[at:]
            case 5:
                del data[at : at + rng.randint(1, 64)]
            case 6:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case _:
                other = rng.randrange(max(1, len(data)))
                n_bytes = rng.randint(1, 64)
                data[at : at + n_bytes] = data[other : other + n_bytes]
    return bytes(data)


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """One to three values replaced by values of other types, removed, doubled or nested."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    value = json.loads(content)
    for _ in range(rng.randint(1, 3)):
        value = _change(value, rng)
    return json.dumps(value).encode()


def _change(value: Any, rng: random.Random) -> Any:
    """The value with one change somewhere inside."""
    holder: list[Any] = [value]
    parent: Any = holder
    key: Any = 0
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        # Most entries of a vocabulary are alike.
        keys = list(parent)[:64] if isinstance(parent, dict) else range(min(len(parent), 64))
        key = rng.choice(list(keys))
    match rng.randrange(6):
        case 0 | 1 | 2:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        case 3 if parent is not holder:
            del parent[key]
        case 4:
            for _ in range(rng.choice((1, 5, 200))):
                parent[key] = rng.choice(([parent[key]], {"a": parent[key]}))
        case _ if isinstance(parent, dict):
            parent[rng.choice(("a", "type", "id", "content"))] = parent[key]
        case _:
            parent.append(copy.deepcopy(parent[key]))
    return holder[0]


def mutate_gguf(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere; or the type, the length or the first value of one metadata key."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng, head=12_000)
    data = bytearray(content)
    keys = [at for at in range(len(data)) if data.startswith(b"tokenizer.ggml.", at)]
    at = rng.choice(keys) if keys else 24
    end = at + struct.unpack_from("<Q", data, at - 8)[0]  # here the type begins
    match rng.randrange(4):
        case 0:
            struct.pack_into("<I", data, end, rng.randrange(14))
        case 1:
            struct.pack_into("<I", data, end + 4, rng.randrange(14))
        case 2:
            struct.pack_into("<Q", data, end + 8, rng.choice(EXTREMES))
        case _:  # a number in place of the value
            kind, size = rng.choice(((4, 4), (0, 1), (10, 8), (6, 4), (7, 1)))
            old = _value_bytes(data, end)
            value = struct.pack("<I", kind) + rng.choice(EXTREMES).to_bytes(8, "little")[:size]
            data[end : end + old] = value
    return bytes(data)


def _value_bytes(data: bytearray, at: int) -> int:
    """Bytes of the type and the value at an offset, in a whole file."""
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    (kind,) = struct.unpack_from("<I", data, at)
    if kind in sizes:
        return 4 + sizes[kind]
    if kind == 8:
        return 12 + int(struct.unpack_from("<Q", data, at + 4)[0])
    of, n_items = struct.unpack_from("<IQ", data, at + 4)
    if of in sizes:
        return 16 + sizes[of] * int(n_items)
    end = at + 16
    for _ in range(n_items):
        end += 8 + int(struct.unpack_from("<Q", data, end)[0])
    return end - at


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere, or values of the header with the header's own length corrected."""
    n_header = int.from_bytes(content[:8], "little")
    if rng.random() < 0.4:
        return mutate_bytes(content, rng, head=8 + n_header)
    header = mutate_json(content[8 : 8 + n_header], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + n_header :]


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere, or one to three fields of the graph replaced by others of their type."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    model = cast("Any", onnx).load_from_string(content)
    for _ in range(rng.randint(1, 3)):
        _change_graph(model, rng)
        if not model.graph.node or not model.graph.initializer:
            break
    return bytes(model.SerializeToString())


def _change_graph(model: Any, rng: random.Random) -> None:
    """Change one field of a model."""
    graph = model.graph
    nodes = list(graph.node)
    node, tensor = rng.choice(nodes), rng.choice(list(graph.initializer))
    number = rng.choice((*EXTREMES[:9], 1 << 62, -1, -5, -(1 << 62)))
    match rng.randrange(12):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1 if node.input:
            names = [*node.input, "", "input_ids"]
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2 | 3:
            _change_attribute(node, number, rng)
        case 4:
            tensor.dims.append(number)
        case 5 if tensor.dims:
            tensor.dims[0] = number
        case 6:
            tensor.data_type = rng.randrange(24)
        case 7:
            tensor.raw_data = tensor.raw_data[: rng.randrange(64)]
        case 8:
            _move_outside(tensor, number)
        case 9:
            graph.node.append(copy.deepcopy(rng.choice(nodes)))
        case 10:
            del graph.node[rng.randrange(len(nodes))]
        case _:
            model.opset_import[0].version = abs(number) % 30


OPERATORS = (
    *("Gather", "MatMul", "Reshape", "Range", "ConstantOfShape", "Expand", "Tile", "Loop", "If"),
    *("Shape", "NonZero", "TopK", "Split", "Mod", "Div", "Pad", "Resize", "Conv", "MatMulNBits"),
    *("CumSum", "Slice", "ScatterND", "Transpose", "Identity", "MultiHeadAttention", "OneHot"),
)


def _change_attribute(node: Any, number: int, rng: random.Random) -> None:
    if not node.attribute:
        node.attribute.add(name=rng.choice(("axis", "axes", "perm")), type=2, i=number)
        return
    attribute = rng.choice(list(node.attribute))
    attribute.i = number
    if attribute.ints:
        attribute.ints[0] = number
    if rng.random() < 0.3:
        attribute.type = rng.randrange(1, 12)


def _move_outside(tensor: Any, number: int) -> None:
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx"), ("offset", str(number)), ("length", "64")):
        tensor.external_data.add(key=key, value=value)


def mutate_wheel(content: bytes, rng: random.Random) -> bytes:
    """Bytes anywhere, half of them in the list of files at the end."""
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    start = content.index(b"PK\x01\x02")
    return content[:start] + mutate_bytes(content[start:], rng)
