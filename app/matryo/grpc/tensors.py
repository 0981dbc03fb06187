"""What a `ModelInferRequest` says: its texts and options, out of tensors and parameters.

Source: the Open Inference Protocol; NVIDIA's reference of the text embedding NIM for the names.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from matryo.core.errors import InvalidRequest
from matryo.engine import Side
from matryo.grpc.messages import Message
from matryo.service import EmbeddingType, Options
from matryo.service.limits import RequestLimits

OUTPUTS = ("embeddings", "token_count")

_LENGTH = struct.Struct("<I")  # before each element of a BYTES tensor
_TRUNCATE: Mapping[str, tuple[bool, Side]] = {
    "none": (False, "start"),
    "end": (True, "start"),
    "start": (True, "end"),
}
_PARAMETERS = ("input_type", "truncate", "dimensions", "embedding_type")
# Clients of Triton and NIM send these, and none of them changes a vector.
_IGNORED = frozenset(
    ("nvcf_asset_dir", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end")
)
_EMBEDDING_TYPES: tuple[EmbeddingType, ...] = get_args(EmbeddingType)


def texts_of(message: Message, limits: RequestLimits) -> list[str]:
    """The texts of a request: those of the tensor `text`, or of the only BYTES tensor.

    Raises:
        InvalidRequest: the tensors are not what this server takes, or have too many texts.
    """
    inputs = list(message.inputs)
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(
            f"Invalid 'raw_input_contents': {len(raw)} contents for {len(inputs)} inputs. Send one "
            "for each input, or none."
        )
    named = {tensor.name: index for index, tensor in enumerate(inputs)}
    if len(named) < len(inputs):
        raise InvalidRequest("Invalid 'inputs': two of them have one name. Send each once.")
    others = [name for name in named if name != "modality"]
    if len(others) != 1:
        raise InvalidRequest(
            f"Invalid 'inputs': {len(others)} tensors beside 'modality', and one is taken. Send "
            "the texts as one BYTES tensor 'text'."
        )
    texts = _strings(inputs, raw, named[others[0]], limits)
    if "modality" in named:
        for word in _strings(inputs, raw, named["modality"], limits):
            if word.lower() != "text":
                raise InvalidRequest(
                    f"Invalid 'modality': {word[:64]!r}. This server takes 'text' alone."
                )
    return texts


def _strings(
    inputs: Sequence[Message], raw: Sequence[bytes], index: int, limits: RequestLimits
) -> list[str]:
    """The elements of one tensor."""
    tensor = inputs[index]
    name = tensor.name[:64]
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"Invalid datatype of {name!r}: {tensor.datatype[:64]!r}. Send BYTES.")
    if tensor.parameters:
        raise InvalidRequest(
            f"Invalid parameters of {name!r}: this server takes none, and has no shared memory. "
            "Send the contents in the message."
        )
    shape: Sequence[int] = tensor.shape
    wide = [size for size in shape if size != 1]
    if not shape or len(wide) > 1 or any(size < 1 for size in shape):
        raise InvalidRequest(
            f"Invalid shape of {name!r}: {list(shape[:8])}. Send [n, 1] or [n], n at least 1."
        )
    n_texts = math.prod(shape)
    limits.check_texts(n_texts)
    found = _split(raw[index], n_texts) if raw else list(tensor.contents.bytes_contents)
    if found is None or len(found) != n_texts:
        raise InvalidRequest(
            f"Invalid contents of {name!r}: they are not the {n_texts} elements of its shape. An "
            "element of raw contents is its length in four bytes, little-endian, and its bytes."
        )
    try:
        return [element.decode() for element in found]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"Invalid contents of {name!r}: not UTF-8 text ({exc.reason}). Send UTF-8."
        ) from exc


def _split(raw: bytes, n_texts: int) -> list[bytes] | None:
    """The elements of raw contents; None if the bytes hold anything but so many elements."""
    found: list[bytes] = []
    at = 0
    while at + _LENGTH.size <= len(raw) and len(found) < n_texts:
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + size > len(raw):
            return None
        found.append(raw[at : at + size])
        at += size
    return found if at == len(raw) else None


def options_of(message: Message, model: str | None) -> Options:
    """The options of a request, out of its parameters.

    Args:
        message: the request.
        model: id of the model.

    Raises:
        InvalidRequest: a parameter has another name or value than this server takes.
    """
    given = {name: _value(value) for name, value in message.parameters.items()}
    for name in given:
        if name not in _PARAMETERS and name not in _IGNORED:
            raise InvalidRequest(
                f"Unknown parameter {name[:64]!r}. This server takes {', '.join(_PARAMETERS)}."
            )
    truncate, keep = _TRUNCATE[_word(given, "truncate", tuple(_TRUNCATE)) or "none"]
    kind = _word(given, "embedding_type", _EMBEDDING_TYPES)
    return Options(
        model=model,
        input_type=_text(given, "input_type"),
        dimensions=_dimensions(given),
        truncate=truncate,
        keep=keep,
        embedding_type=cast("EmbeddingType", kind or "float"),
    )


def _value(parameter: Message) -> object:
    choice = parameter.WhichOneof("parameter_choice")
    return choice and getattr(parameter, choice)


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is None or isinstance(value, str):
        return value or None
    raise InvalidRequest(f"Invalid value for {name!r}: {value!r}. Send a string.")


def _word(given: Mapping[str, object], name: str, words: Sequence[str]) -> str | None:
    """The value of a parameter that is one of some words, in any case."""
    text = _text(given, name)
    if text is None or text.lower() in words:
        return text and text.lower()
    raise InvalidRequest(
        f"Invalid value for {name!r}: {text[:64]!r}. Send one of {', '.join(words)}."
    )


def _dimensions(given: Mapping[str, object]) -> int | None:
    value = given.get("dimensions")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(
            f"Invalid value for 'dimensions': {str(value)[:64]}. Send an integer of at least 1."
        )
    return value


def outputs_of(message: Message) -> Sequence[str]:
    """Names of the tensors that a request asks for, in order: all, if it asks for none.

    Raises:
        InvalidRequest: a name that this server does not have, or a parameter.
    """
    wanted = [output.name for output in message.outputs]
    for output in message.outputs:
        if output.name not in OUTPUTS or output.parameters:
            raise InvalidRequest(
                f"Invalid output {output.name[:64]!r}. This server gives {' and '.join(OUTPUTS)}, "
                "without parameters."
            )
    if len(set(wanted)) < len(wanted):
        raise InvalidRequest("Invalid 'outputs': one of them is asked for twice. Ask once.")
    return wanted or OUTPUTS
