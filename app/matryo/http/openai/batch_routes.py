"""The routes of OpenAI's Batch API, with and without `/v1`.

The routes exist on every server, so that a server without the Batch API can say how to turn the
API on.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from matryo.core.errors import BatchOff
from matryo.http.routing import Direct

_Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class _Operation(NamedTuple):
    """One operation: its method, its path below `/v1`, and its id in the OpenAPI document."""

    method: str
    path: str
    id: str
    summary: str


_OPERATIONS = (
    _Operation("POST", "/files", "createFile", "Upload a file"),
    _Operation("GET", "/files", "listFiles", "List files"),
    _Operation("GET", "/files/{file_id}", "retrieveFile", "Retrieve a file"),
    _Operation("DELETE", "/files/{file_id}", "deleteFile", "Delete a file"),
    _Operation("GET", "/files/{file_id}/content", "downloadFile", "Download a file"),
    _Operation("POST", "/batches", "createBatch", "Create a batch"),
    _Operation("GET", "/batches", "listBatches", "List batches"),
    _Operation("GET", "/batches/{batch_id}", "retrieveBatch", "Retrieve a batch"),
    _Operation("POST", "/batches/{batch_id}/cancel", "cancelBatch", "Cancel a batch"),
)


def build_router(*, is_on: bool) -> APIRouter:
    """The routes of the Batch API.

    Args:
        is_on: whether the server has a Batch API; without, each route answers 404.
    """
    router = APIRouter(route_class=Direct)
    endpoints = _endpoints() if is_on else {}
    for operation in _OPERATIONS:
        name = f"/v1{operation.path}"
        endpoint = endpoints.get(operation.id, _off)
        options = _description(operation.id) if is_on else {}
        for path in (name, operation.path):
            for method in ("GET", "HEAD") if operation.method == "GET" else (operation.method,):
                router.add_api_route(
                    path,
                    endpoint,
                    methods=[method],
                    name=name,
                    summary=operation.summary,
                    operation_id=operation.id,
                    response_class=Response,
                    include_in_schema=is_on and path == name and method == operation.method,
                    **options,
                )
    return router


async def _off(request: Request) -> Response:
    """Say that there is no Batch API.

    Raises:
        BatchOff: always.
    """
    del request
    raise BatchOff


# Below, modules are loaded for a server with a Batch API alone: they need matryo[batch].


def _endpoints() -> dict[str, _Endpoint]:
    """What answers each operation."""
    from matryo.http.openai import batches, files

    return {
        "createFile": files.create_file,
        "listFiles": files.list_files,
        "retrieveFile": files.retrieve_file,
        "deleteFile": files.delete_file,
        "downloadFile": files.download_file,
        "createBatch": batches.create_batch,
        "listBatches": batches.list_batches,
        "retrieveBatch": batches.retrieve_batch,
        "cancelBatch": batches.cancel_batch,
    }


def _description(operation_id: str) -> dict[str, Any]:
    """What the OpenAPI document says of an operation, as FastAPI takes it."""
    from matryo.http.openai.batch_document import description

    return description(operation_id)
