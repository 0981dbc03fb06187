"""gRPC's server reflection: clients such as grpcurl ask for the services and their messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor

from matryo.core.budget import Lease
from matryo.grpc.aio import Methods
from matryo.grpc.calls import Call, Door, handlers_of
from matryo.grpc.messages import Message, file_named, file_with, make
from matryo.grpc.stream import in_order

SERVICE = "grpc.reflection.v1.ServerReflection"
OLDER = "grpc.reflection.v1alpha.ServerReflection"
"""The same messages under another name, which older clients call."""

_ANSWER = make("grpc.reflection.v1.ServerReflectionResponse")

_NOT_FOUND = {
    "error_response": {
        "error_code": grpc.StatusCode.NOT_FOUND.value[0],
        "error_message": "not found: this server describes its own services alone",
    }
}


def _info(call: Call, *, services: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """The answers to questions about the services."""

    async def answers(messages: Sequence[Message], _: Lease) -> Sequence[bytes]:
        return [_written(message, services) for message in messages]

    return in_order(call, answers)


def _written(message: Message, services: Sequence[str]) -> bytes:
    """The answer to one question."""
    field = _answer(message, services)
    found = _ANSWER(valid_host=message.host, original_request=message, **field)
    return found.SerializeToString()


def _answer(message: Message, services: Sequence[str]) -> dict[str, Any]:
    """The field of the answer to one question."""
    try:
        match message.WhichOneof("message_request"):
            case "list_services":
                named = [{"name": name} for name in services]
                return {"list_services_response": {"service": named}}
            case "file_by_filename":
                files = _with_imports(file_named(message.file_by_filename))
            case "file_containing_symbol":
                files = _with_imports(file_with(message.file_containing_symbol))
            case "all_extension_numbers_of_type":
                name = message.all_extension_numbers_of_type
                file_with(name)
                return {"all_extension_numbers_response": {"base_type_name": name}}
            case _:
                return _NOT_FOUND
    except KeyError:
        return _NOT_FOUND
    return {"file_descriptor_response": {"file_descriptor_proto": files}}


def _with_imports(file: FileDescriptor) -> list[bytes]:
    """A file and those that it imports."""
    files = {file.name: file.serialized_pb}
    for other in file.dependencies:
        files |= {other.name: other.serialized_pb}
    return list(files.values())


def handlers(door: Door, services: Sequence[str]) -> dict[str, Methods]:
    """The service under both of its names; no key is asked.

    Args:
        door: what every call needs.
        services: names of the other services of this server.
    """
    answers = {"ServerReflectionInfo": partial(_info, services=(*services, SERVICE))}
    return handlers_of(door, SERVICE, answers, keyless=answers) | handlers_of(
        door, SERVICE, answers, name=OLDER, keyless=answers
    )
