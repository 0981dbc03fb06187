"""The span of a gRPC call."""

from __future__ import annotations

from typing import Any

import grpc

from matryo.core import trace_names as names
from matryo.core.tracing import NO_SPAN, Header, Span, Tracer, Value

_EMBEDDING_METHODS = frozenset({"Embed", "EmbedStream", "Predict", "ModelInfer"})
# Of a server's span, those codes that are the server's fault.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def begin(
    tracer: Tracer, path: str, header: Header, request_id: str, server: tuple[str, int]
) -> Span:
    """The span of a call that begins now.

    Args:
        tracer: makes the span.
        path: of the method.
        header: gives the text of a key of the call's metadata.
        request_id: of the call.
        server: address and port that the server listens on.
    """
    if not tracer.is_on:
        return NO_SPAN
    attributes: dict[str, Value] = {
        names.RPC_SYSTEM: names.GRPC,
        names.RPC_METHOD: path[1:],
        names.SERVER_ADDRESS: server[0],
        names.SERVER_PORT: server[1] or None,
        names.REQUEST_ID: request_id,
    }
    return tracer.request(path[1:], header, attributes, under=NO_SPAN)


def end(span: Span, path: str, code: grpc.StatusCode, facts: dict[str, Any]) -> None:
    """End the span of a call.

    Args:
        span: of the call.
        path: of the method.
        code: of the answer.
        facts: values of the log line.

    Source: semantic-conventions, docs/rpc/grpc.md, the codes that are errors of a server.
    """
    if span is NO_SPAN:
        return
    name = path[1:]
    if path.rpartition("/")[-1] in _EMBEDDING_METHODS:
        # A call that was refused before its options were read is one for embeddings, too. The
        # messages of a stream are counted together.
        model = facts.get("model")
        name = f"{names.EMBEDDINGS} {model}" if model else names.EMBEDDINGS
        span.set(
            {
                names.OPERATION: names.EMBEDDINGS,
                names.PROVIDER: names.PROVIDER_VALUE,
                names.TEXTS: facts.get("texts"),
                names.INPUT_TOKENS: facts.get("tokens"),
            }
        )
    span.set({names.RPC_STATUS: code.name, names.CLIENT_ADDRESS: facts.get("client")})
    error = None if code is grpc.StatusCode.OK else code.name
    span.end(name, error, is_fault=code in _FAULTS)
