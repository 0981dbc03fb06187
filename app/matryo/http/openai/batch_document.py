"""What the OpenAPI document says of files and batches: parameters, bodies and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from matryo.http.openai.batch_wire import (
    LEAST_LIFE_S,
    MOST_LIFE_S,
    BatchList,
    BatchObject,
    BatchRequest,
    ExpiresAfter,
    FileDeleted,
    FileList,
    FileObject,
)
from matryo.http.openai.wire import ErrorResponse

_ERRORS: dict[int, str] = {
    400: "The request can never succeed as it is; the message says why.",
    401: "No API key, or a wrong one.",
    404: "The caller has no such file or batch.",
    408: "The body did not arrive in time.",
    409: "The batch has ended already.",
    413: "The file, or the body, is too large.",
    415: "The body is of another type.",
    416: "The file ends before the part that was asked for.",
    429: "No room, or a limit of the key is used up: requests, files, bytes or batches.",
    500: "A fault of the server; the message carries an id for its operator.",
    503: "Starting or shutting down, or the storage does not answer: try again later.",
    507: "The server has no room to store this.",
}
_BODY = (400, 408, 413, 415, 429, 507)
_ANSWERS: dict[str, tuple[type[BaseModel] | None, Sequence[int]]] = {
    "createFile": (FileObject, _BODY),
    "listFiles": (FileList, (400, 404)),
    "retrieveFile": (FileObject, (404,)),
    "deleteFile": (FileDeleted, (404,)),
    "downloadFile": (None, (404, 416, 429)),
    "createBatch": (BatchObject, (*_BODY, 404)),
    "listBatches": (BatchList, (400, 404)),
    "retrieveBatch": (BatchObject, (404,)),
    "cancelBatch": (BatchObject, (404, 408, 409, 413, 429)),
}


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _in_query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _page(default: int, most: int) -> list[dict[str, Any]]:
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return [
        _in_query("after", "Id of the item that the page follows.", {"type": "string"}),
        _in_query("limit", "Items of the page, at most.", limit),
    ]


_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {
            "type": "string",
            "format": "binary",
            "description": "JSON lines: custom_id, method, url and body of one request each.",
        },
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": LEAST_LIFE_S,
            "maximum": MOST_LIFE_S,
        },
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_NEW_BATCH = {
    "input_file_id": "file-abc123",
    "endpoint": "/v1/embeddings",
    "completion_window": "24h",
}


def _extra(operation_id: str) -> dict[str, Any]:
    """What FastAPI cannot see: the endpoints read requests themselves."""
    match operation_id:
        case "createFile":
            return {"requestBody": _required("multipart/form-data", {"schema": _FORM})}
        case "createBatch":
            example = {"summary": "A batch of an uploaded file", "value": _NEW_BATCH}
            content = {"schema": _new_batch(), "examples": {"batch": example}}
            return {"requestBody": _required("application/json", content)}
        case "listFiles":
            order = {"type": "string", "enum": ["asc", "desc"], "default": "desc"}
            return {
                "parameters": [
                    *_page(10_000, 10_000),
                    _in_query("order", "By age; desc is the newest first.", order),
                    _in_query("purpose", "Files for this alone.", {"type": "string"}),
                ]
            }
        case "listBatches":
            return {"parameters": _page(20, 100)}
        case "retrieveFile" | "deleteFile" | "downloadFile":
            return {"parameters": [_in_path("file_id")]}
        case _:
            return {"parameters": [_in_path("batch_id")]}


def _required(media: str, content: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {media: content}}


def _new_batch() -> dict[str, Any]:
    """The schema of the body of a new batch, without definitions beside it."""
    schema = BatchRequest.model_json_schema()
    del schema["$defs"]
    life = schema["properties"]["output_expires_after"]
    life["anyOf"] = [ExpiresAfter.model_json_schema(), {"type": "null"}]
    return schema


def description(operation_id: str) -> dict[str, Any]:
    """What the document says of an operation, as FastAPI takes it."""
    model, statuses = _ANSWERS[operation_id]
    responses: dict[int | str, dict[str, Any]] = {}
    if model:
        responses[200] = {"model": model}
    else:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        responses[200] = {"description": "The file.", "content": content}
        responses[206] = {"description": "A part of the file.", "content": content}
    for status in sorted({*statuses, 401, 500, 503}):
        responses[status] = {"model": ErrorResponse, "description": _ERRORS[status]}
    return {"responses": responses, "openapi_extra": _extra(operation_id)}
