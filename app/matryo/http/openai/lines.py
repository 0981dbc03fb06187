"""The lines of batch files, answered as `POST /v1/embeddings` answers.

The body of a line passes the route's parser, options, encoder and table of errors. Lines of equal
options share one call of the service, so that a window of short texts is one request. A call that
is refused, or that fails, is halved until one line is left, which then has the error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from matryo.batch.windows import LineAnswer
from matryo.core.errors import (
    Abandoned,
    BodyTooLarge,
    CapacityError,
    RequestError,
    Stopping,
)
from matryo.http.errors import error_answer
from matryo.http.openai.encoding import Encoding
from matryo.http.openai.fields import UnknownFields
from matryo.http.openai.parsing import options_of, parse_request
from matryo.http.openai.wire import EmbeddingRequest, EncodingFormat
from matryo.http.rows import PIECE_NUMBERS
from matryo.scheduler import Priority
from matryo.service import Answer, Caller, Options, Service, Texts

log = logging.getLogger("matryo")

PRIORITY: Priority = "batch"
"""Of every line of a batch."""

_PIECE_BYTES, _PIECE_LINES = 1 << 17, 256  # that are parsed in one go, which takes milliseconds
# Bytes that are parsed, and numbers that are written, while one character is tokenised.
_BYTES_PER_CHAR, _NUMBERS_PER_CHAR = 64, 16
_MAX_CALLS = 64  # of one window at a time
_MAX_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request of a window.

    Attributes:
        index: in the window.
        texts: of the request.
        encoding_format: of its answer.
    """

    index: int
    texts: Texts
    encoding_format: EncodingFormat


_Groups = dict[tuple[Options, bool], list[_Ask]]
"""Requests by their options, and by whether their texts are ids."""


class BatchLines:
    """Answers windows of lines; see `matryo.batch.windows.Door`.

    Args:
        service: does the work.
        max_body_bytes: of one request, as for the route.
        unknown_fields: what becomes of a body's fields that nobody knows.
    """

    def __init__(
        self, service: Service, max_body_bytes: int, unknown_fields: UnknownFields
    ) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._unknown_fields: UnknownFields = unknown_fields

    async def __call__(
        self, bodies: Sequence[bytes], caller: Caller, request_ids: Sequence[str]
    ) -> Sequence[LineAnswer]:
        """The answer to each body, in order.

        Raises:
            NotReady: the service is stopping.
        """
        window = _Window(self._service, caller, request_ids)
        groups: _Groups = {}
        n_chars = sum(map(len, bodies)) // _BYTES_PER_CHAR
        with self._service.pool.job(n_chars, caller.tenant) as job:
            for start, end in _pieces(bodies):
                await job.run(partial(self._parse, bodies, start, end, groups, window))
        await _all([window.answer(options, asks) for (options, _), asks in groups.items()])
        return window.answers

    def _parse(
        self, bodies: Sequence[bytes], start: int, end: int, groups: _Groups, window: _Window
    ) -> None:
        """Put some requests into their groups; a body that cannot be read has its answer."""
        for index in range(start, end):
            try:
                call, texts = self._read(bodies[index])
            except Exception as exc:
                window.fail(index, exc)
                continue
            options = replace(options_of(call, None), priority=PRIORITY)
            ask = _Ask(index, texts, call.encoding_format or "float")
            groups.setdefault((options, bool(texts.token_arrays)), []).append(ask)

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, Texts]:
        """The fields and the texts of a body."""
        if len(body) > self._max_body_bytes:
            raise BodyTooLarge(max_bytes=self._max_body_bytes)
        return parse_request(body, self._service.limits, self._unknown_fields)[:2]


class _Window:
    """The requests of one window, and their answers.

    Args:
        service: does the work.
        caller: whose requests they are.
        request_ids: of the requests.

    Attributes:
        answers: in the order of the requests.
    """

    def __init__(self, service: Service, caller: Caller, request_ids: Sequence[str]) -> None:
        self.answers = [LineAnswer(0, b"")] * len(request_ids)
        self._service = service
        self._caller = caller
        self._request_ids = request_ids
        self._calls = asyncio.Semaphore(_MAX_CALLS)

    def fail(self, index: int, exc: Exception) -> None:
        """Answer a request with an error."""
        request_id = self._request_ids[index]
        if not isinstance(exc, RequestError | CapacityError):
            log.error("%s: a line of a batch failed", request_id, exc_info=exc)
        answer = error_answer(exc, request_id)
        self.answers[index] = LineAnswer(answer.status_code, bytes(answer.body))

    async def answer(self, options: Options, asks: Sequence[_Ask]) -> None:
        """Answer requests of equal options, all strings or all ids.

        Raises:
            NotReady: the service is stopping.
        """
        try:
            async with self._calls:
                answer = await self._embed(options, _joined(asks))
            await self._write(options, asks, answer)
        except (Stopping, Abandoned):
            raise
        except Exception as exc:
            if len(asks) == 1:
                self.fail(asks[0].index, exc)
                return
            half = len(asks) // 2
            halves = (asks[:half], asks[half:])
            await _all([self.answer(options, one) for one in halves])

    async def _embed(self, options: Options, texts: Texts) -> Answer:
        """The service's answer; waits for as long as there is no room."""
        while True:
            try:
                return await self._service.embed(options, texts, self._caller)
            except (Stopping, Abandoned):
                raise
            except CapacityError as exc:
                await asyncio.sleep(min(exc.retry_after_s, _MAX_PAUSE_S))

    async def _write(self, options: Options, asks: Sequence[_Ask], answer: Answer) -> None:
        """Write the bodies of some answers, on a thread."""
        n_texts = max(1, PIECE_NUMBERS // answer.vectors.shape[1])
        n_chars = answer.vectors.size // _NUMBERS_PER_CHAR
        with self._service.pool.job(n_chars, self._caller.tenant) as job:
            row = start = 0
            while start < len(asks):
                end, first = start, row
                while end < len(asks) and (end == start or row - first < n_texts):
                    row, end = row + len(asks[end].texts), end + 1
                await job.run(partial(self._encode, options, asks[start:end], answer, first))
                start = end

    def _encode(self, options: Options, asks: Sequence[_Ask], answer: Answer, first: int) -> None:
        """Write the bodies of requests whose first text has the row `first`."""
        for ask in asks:
            end = first + len(ask.texts)
            n_tokens = sum(answer.lengths[first:end])
            encoding = Encoding(
                answer.vectors[first:end],
                ask.encoding_format,
                options.embedding_type,
                answer.model,
                n_tokens,
            )
            body = b"".join(make() for make in encoding.pieces())
            self.answers[ask.index] = LineAnswer(200, body, n_tokens)
            first = end


def _pieces(bodies: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of bodies that are parsed in one go."""
    start = 0
    while start < len(bodies):
        end, n_bytes = start, 0
        while end < len(bodies) and end - start < _PIECE_LINES and n_bytes < _PIECE_BYTES:
            n_bytes, end = n_bytes + len(bodies[end]), end + 1
        yield start, end
        start = end


def _joined(asks: Sequence[_Ask]) -> Texts:
    """The texts of some requests; those of one request are called what its caller calls them."""
    if len(asks) == 1:
        return asks[0].texts
    return Texts(
        [text for ask in asks for text in ask.texts.strings],
        [ids for ask in asks for ids in ask.texts.token_arrays],
    )


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all of some work at a time; the first error ends the rest, and is raised."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
