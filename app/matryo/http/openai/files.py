"""OpenAI's files, for the Batch API: upload, list, look, download, delete."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from urllib.parse import quote

from fastapi import Request
from starlette.responses import Response

from matryo.batch.objects import File, Page, Purpose
from matryo.batch.storage import CHUNK_BYTES
from matryo.batch.uploads import PIECE_BYTES
from matryo.core.errors import UnknownFile
from matryo.http.body import arriving, check_form
from matryo.http.context import BatchDoor, batch_door_of, context_of
from matryo.http.openai.batch_calls import (
    caller_in,
    checked_after,
    checked_id,
    json_of,
    note,
    owner_of,
)
from matryo.http.openai.batch_parsing import form_warnings, limit_of, order_of
from matryo.http.openai.batch_wire import FileDeleted, file_list, file_object
from matryo.http.openai.multipart import FORM_BYTES, boundary_of
from matryo.http.openai.uploads import Receiving
from matryo.http.pieces import PiecesResponse
from matryo.http.ranges import range_of

MOST_FILES = 10_000
"""Files of a page, at most and by default."""

_PURPOSES: dict[str, Purpose] = {"batch": "batch", "batch_output": "batch_output"}
_UPLOAD_BYTES = PIECE_BYTES + CHUNK_BYTES
_DOWNLOAD_BYTES = 2 * CHUNK_BYTES  # a chunk, and what of it the socket has not taken


async def create_file(request: Request) -> Response:
    """Upload a file of requests for a batch: a multipart form with `purpose` and `file`."""
    context, door = context_of(request), batch_door_of(request)
    boundary = boundary_of(check_form(request))
    lease = request.scope["state"]["lease"] = context.service.lease(caller_in(request))
    lease.grow(_UPLOAD_BYTES, "body")
    receiving = Receiving(door.storage, owner_of(request), boundary)
    pieces = arriving(
        request,
        max_bytes=door.max_file_bytes,
        more_bytes=FORM_BYTES,
        patience_s=context.body.timeout_s,
        min_rate=door.min_rate,
    )
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                await door.call(receiving.take, piece)
        warnings = form_warnings(receiving.fields, context.unknown_fields)
        file = await door.call(receiving.finish)
    finally:
        await door.call(receiving.abort)
    note(request, file=file.id, bytes=file.n_bytes)
    return json_of(file_object(file), warnings)


async def list_files(request: Request) -> Response:
    """The caller's files, the newest first unless `order` says otherwise."""
    door, owner = batch_door_of(request), owner_of(request)
    limit, order = limit_of(request, MOST_FILES, MOST_FILES), order_of(request)
    after = checked_after(request, UnknownFile)
    purpose = request.query_params.get("purpose") or None
    if purpose and purpose not in _PURPOSES:
        return json_of(file_list(Page((), has_more=False)))
    wanted = _PURPOSES[purpose] if purpose else None

    def answer() -> Response:
        files = door.storage.files
        return json_of(
            file_list(files(owner, purpose=wanted, after=after, limit=limit, order=order))
        )

    return await door.call(answer)


async def retrieve_file(request: Request) -> Response:
    """One file of the caller's."""
    return json_of(file_object(await _file(request)))


async def delete_file(request: Request) -> Response:
    """Delete a file; batches that read the file go on."""
    door, file_id = batch_door_of(request), _id_in(request)
    await door.call(door.storage.delete_file, owner_of(request), file_id)
    note(request, file=file_id)
    return json_of(FileDeleted(id=file_id))


async def download_file(request: Request) -> Response:
    """The bytes of a file, or the part of them that the header `Range` asks for."""
    door = batch_door_of(request)
    file = await _file(request)
    etag = f'"{file.id}"'  # the bytes of a file never change
    headers = {
        "content-type": "application/octet-stream",
        "content-disposition": _disposition(file.filename),
        "x-content-type-options": "nosniff",
        "accept-ranges": "bytes",
        "etag": etag,
    }
    part = range_of(request, file.n_bytes, etag)
    start, end = part or (0, file.n_bytes)
    if part:
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.n_bytes}"
    status, n_bytes = 206 if part else 200, end - start
    note(request, bytes=n_bytes)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers | {"content-length": str(n_bytes)})
    lease = request.scope["state"]["lease"] = context_of(request).service.lease(caller_in(request))
    lease.grow(min(n_bytes, _DOWNLOAD_BYTES), "answer")
    reading = _Reading(door.storage.read(file, start, end))
    # A store that fails now can still be answered with an error.
    first = await door.call(reading.next)
    return PiecesResponse(_sent(door, reading, first), headers, n_bytes, status)


async def _sent(
    door: BatchDoor, reading: _Reading, first: bytes | None
) -> AsyncGenerator[bytes, None]:
    """The chunks of a file, each read when the one before is sent."""
    chunk = first
    try:
        while chunk is not None:
            yield chunk
            chunk = await door.call(reading.next)
    finally:
        await door.call(reading.close)


class _Reading:
    """Chunks of a file, for one thread after the other."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        # A caller may be gone while a thread still reads.
        self._turn = threading.Lock()

    def next(self) -> bytes | None:
        """The next chunk; None after the last."""
        with self._turn:
            return next(self._chunks, None)

    def close(self) -> None:
        """Close what the chunks come from."""
        close = getattr(self._chunks, "close", None)
        with self._turn:
            if close:
                close()


async def _file(request: Request) -> File:
    """The file that the path of a request names.

    Raises:
        UnknownFile: the caller has no such file.
    """
    door = batch_door_of(request)
    file = await door.call(door.storage.file, owner_of(request), _id_in(request))
    note(request, file=file.id)
    return file


def _id_in(request: Request) -> str:
    return checked_id(request.path_params["file_id"], UnknownFile)


def _disposition(filename: str) -> str:
    """The header that names a download, for clients that read UTF-8 and for those that do not."""
    plain = "".join(c if c.isascii() and c not in '"\\%' else "_" for c in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
