"""The messages and services of `protos/`, in a pool of their own.

The default pool of protobuf would refuse other definitions of the same names, such as those of
tritonclient in the same process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from matryo.core.errors import InvalidRequest
from matryo.grpc.wire import count_fields

FOLDER = Path(__file__).parent / "protos"
DESCRIPTORS = FOLDER / "descriptors.binpb"
"""What protoc makes of the files beside it: `make protos`."""

Message = Any
"""A message of the pool. Its fields are made at run time, so that no type checker knows them."""

_SMALL_BYTES = 4096  # so few bytes can hold no fields worth counting


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def make(name: str) -> Any:  # noqa: ANN401 - a class made at run time
    """The class of the messages with a full name, such as `tei.v1.EmbedRequest`."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def methods_of(service: str) -> dict[str, MethodDescriptor]:
    """The methods of a service, by name."""
    return dict(_POOL.FindServiceByName(service).methods_by_name)


def file_named(name: str) -> FileDescriptor:
    """The file with a name.

    Raises:
        KeyError: there is none.
    """
    return _POOL.FindFileByName(name)


def file_with(symbol: str) -> FileDescriptor:
    """The file that defines a symbol.

    Raises:
        KeyError: there is none.
    """
    try:
        return _POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        service, _, method = symbol.rpartition(".")
        if method not in methods_of(service):
            raise
        return _POOL.FindFileContainingSymbol(service)


def parse(raw: bytes, descriptor: Descriptor, most_fields: int) -> Message:
    """The message that some bytes hold.

    Args:
        raw: the bytes.
        descriptor: of the message.
        most_fields: fields that the message may have, those of messages in it included. A field of
            two bytes may take a hundred once it is parsed.

    Raises:
        InvalidRequest: the bytes are no such message, or have too many fields.
    """
    kind = descriptor.full_name
    if len(raw) > _SMALL_BYTES:
        n_fields = count_fields(raw, descriptor, most_fields)
        if n_fields is None or n_fields > most_fields:
            what = "is malformed" if n_fields is None else f"has more than {most_fields} fields"
            raise InvalidRequest(
                f"The message {kind} {what}. Send the texts in several calls, each a message of "
                "the published .proto."
            )
    try:
        return message_factory.GetMessageClass(descriptor).FromString(raw)
    except DecodeError as exc:
        raise InvalidRequest(
            f"The request is no {kind}: {len(raw)} bytes that do not follow the .proto, or a "
            "string that is not UTF-8. Send a message of the published .proto."
        ) from exc
