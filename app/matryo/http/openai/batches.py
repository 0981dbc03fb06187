"""OpenAI's batches: make, list, look, cancel."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from matryo.batch.objects import Batch
from matryo.core.errors import InvalidRequest, UnknownBatch
from matryo.http.body import check_media, read_body
from matryo.http.context import batch_door_of, context_of
from matryo.http.heads import header_of
from matryo.http.openai.batch_calls import (
    caller_in,
    checked_after,
    checked_id,
    json_of,
    note,
    owner_of,
)
from matryo.http.openai.batch_parsing import limit_of, parse_batch
from matryo.http.openai.batch_wire import batch_list, batch_object
from matryo.service.expectation import EXPECT

_BATCHES, _MOST_BATCHES = 20, 100  # of a page: by default, at most


async def create_batch(request: Request) -> Response:
    """Have every line of an uploaded file answered."""
    context, door = context_of(request), batch_door_of(request)
    _refuse_expectation(request)
    check_media(request)
    caller = caller_in(request)
    lease = request.scope["state"]["lease"] = context.service.lease(caller)
    body = await read_body(request, context.body, lease)
    wanted, warnings = parse_batch(body, context.unknown_fields)
    expires = wanted.output_expires_after
    batch = await door.call(
        door.storage.add_batch,
        owner_of(request),
        weight=caller.weight,
        input_file_id=wanted.input_file_id,
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        metadata=wanted.metadata,
        output_expires_after_s=expires and expires.seconds,
    )
    door.nudge()
    note(request, batch=batch.id, file=batch.input_file_id)
    return json_of(batch_object(batch), warnings)


async def list_batches(request: Request) -> Response:
    """The caller's batches, the newest first."""
    door, owner = batch_door_of(request), owner_of(request)
    limit = limit_of(request, _BATCHES, _MOST_BATCHES)
    after = checked_after(request, UnknownBatch)
    page = await door.call(door.storage.batches, owner, after=after, limit=limit)
    return json_of(batch_list(page))


async def retrieve_batch(request: Request) -> Response:
    """One batch of the caller's."""
    door = batch_door_of(request)
    return _answer(request, await door.call(door.storage.batch, owner_of(request), _id_in(request)))


async def cancel_batch(request: Request) -> Response:
    """Cancel a batch; the results so far become files."""
    context, door = context_of(request), batch_door_of(request)
    lease = request.scope["state"]["lease"] = context.service.lease(caller_in(request))
    await read_body(request, context.body, lease)  # some clients send an empty object
    batch = await door.call(door.storage.cancel, owner_of(request), _id_in(request))
    door.nudge()
    return _answer(request, batch)


def _refuse_expectation(request: Request) -> None:
    """Refuse a pin that no line of a batch would obey.

    Raises:
        InvalidRequest: the request has one.
    """
    if header_of(request.scope, EXPECT.encode()) is not None:
        raise InvalidRequest(
            f"A batch cannot be held to a fingerprint, and the request has {EXPECT}. Leave the "
            "header out, and compare the x-matryo-fingerprint of one embedding, or "
            "GET /v1/models/{id}, before and after the batch."
        )


def _answer(request: Request, batch: Batch) -> Response:
    note(request, batch=batch.id)
    return json_of(batch_object(batch))


def _id_in(request: Request) -> str:
    return checked_id(request.path_params["batch_id"], UnknownBatch)
