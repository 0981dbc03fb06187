"""TEI's services, `tei.v1`: one text a message.

A message names no model: the default one answers, or the one in the metadata `model`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from itertools import groupby

from matryo.core import trace_names as names
from matryo.core.budget import Lease
from matryo.core.errors import EmptyInput, InvalidRequest
from matryo.engine import Tokens
from matryo.grpc.aio import Methods
from matryo.grpc.calls import Call, Door, check_given, handlers_of
from matryo.grpc.messages import Message, make
from matryo.grpc.stream import in_order
from matryo.grpc.wire import floats
from matryo.scheduler import Priority
from matryo.service import Options, Texts

INFO, EMBED, TOKENIZE = "tei.v1.Info", "tei.v1.Embed", "tei.v1.Tokenize"
SERVICES = (INFO, EMBED, TOKENIZE)

_INFO_ANSWER = make("tei.v1.InfoResponse")
_EMBED_ANSWER = make("tei.v1.EmbedResponse")
_ENCODE_ANSWER = make("tei.v1.EncodeResponse")
_DECODE_ANSWER = make("tei.v1.DecodeResponse")

_LEFT = 1  # of TruncationDirection
_DTYPES = {"fp32": "float32"}


async def _info(call: Call, _: Message) -> bytes:
    """What the server serves."""
    engine, _suffix = call.service.directory.resolve(call.model)
    hub, config = engine.manifest.hub, call.service.config.scheduler
    answer = _INFO_ANSWER(
        version=call.version,
        model_id=hub.repo if hub else engine.manifest.id,
        model_sha=hub and hub.revision,
        model_dtype=_DTYPES.get(engine.precision, engine.precision),
        max_concurrent_requests=config.max_requests,
        max_input_length=engine.manifest.tokenizer.max_tokens,
        max_batch_tokens=engine.limits.max_batch_tokens,
        max_client_batch_size=call.limits.max_texts,
        tokenization_workers=config.workers,
    )
    return answer.SerializeToString()


async def _embed(call: Call, message: Message) -> bytes:
    """The vector of one text."""
    (content,) = await _embedded(call, (message,), _options(call, message), None)
    return content


def _embed_stream(call: Call) -> AsyncGenerator[bytes, None]:
    """The vectors of many texts. Online queries go first."""

    async def answers(messages: Sequence[Message], lease: Lease) -> Sequence[bytes]:
        found: list[bytes] = []
        for options, alike in groupby(messages, lambda one: _options(call, one, "bulk")):
            found += await _embedded(call, tuple(alike), options, lease)
        return found

    return in_order(call, answers)


async def _embedded(
    call: Call, messages: Sequence[Message], options: Options, lease: Lease | None
) -> list[bytes]:
    """The answers to messages with the same options."""
    started = time.perf_counter_ns()
    texts = tuple(message.inputs for message in messages)
    check_given(texts, "inputs")
    answer = await call.embed(options, Texts(texts, is_list=len(texts) > 1), lease)
    spent_ns = time.perf_counter_ns() - started
    found: list[bytes] = []
    with call.span.stage(names.ENCODE):
        for text, n_tokens, vector in zip(texts, answer.lengths, answer.vectors, strict=True):
            facts = _EMBED_ANSWER(
                metadata={
                    "compute_chars": len(text),
                    "compute_tokens": n_tokens,
                    "total_time_ns": spent_ns,
                }
            )
            found.append(floats(1, vector) + facts.SerializeToString())
    return found


def _options(call: Call, message: Message, priority: Priority = "online") -> Options:
    has = message.HasField
    if has("dimensions") and not message.dimensions:
        raise InvalidRequest("Invalid value for 'dimensions': 0. Ask for at least 1.")
    return Options(
        model=call.model,
        input_type=message.prompt_name if has("prompt_name") else None,
        dimensions=message.dimensions if has("dimensions") else None,
        truncate=message.truncate,
        keep="end" if message.truncation_direction == _LEFT else "start",
        normalize=message.normalize if has("normalize") else True,
        priority=priority,
    )


async def _tokenize(call: Call, message: Message) -> bytes:
    """The tokens of one text."""
    return await _tokenized(call, message, call.lease)


def _tokenize_stream(call: Call) -> AsyncGenerator[bytes, None]:
    """The tokens of many texts."""

    async def answers(messages: Sequence[Message], lease: Lease) -> Sequence[bytes]:
        return [await _tokenized(call, message, lease) for message in messages]

    return in_order(call, answers)


async def _tokenized(call: Call, message: Message, lease: Lease) -> bytes:
    name = message.prompt_name if message.HasField("prompt_name") else None
    check_given((message.inputs,), "inputs")
    (content,) = await call.service.tokenize(
        Options(call.model, input_type=name),
        Texts((message.inputs,), is_list=False),
        _written,
        call.caller,
        add_special_tokens=message.add_special_tokens,
        lease=lease,
    )
    return content


def _written(found: Sequence[Tokens]) -> bytes:
    answer = _ENCODE_ANSWER()
    for token in found[0]:
        start, stop = token.span or (None, None)
        answer.tokens.add(
            id=token.id, text=token.text, special=token.special, start=start, stop=stop
        )
    return answer.SerializeToString()


async def _decode(call: Call, message: Message) -> bytes:
    """The text of some ids."""
    return await _decoded(call, message, call.lease)


def _decode_stream(call: Call) -> AsyncGenerator[bytes, None]:
    """The texts of many lists of ids."""

    async def answers(messages: Sequence[Message], lease: Lease) -> Sequence[bytes]:
        return [await _decoded(call, message, lease) for message in messages]

    return in_order(call, answers)


async def _decoded(call: Call, message: Message, lease: Lease) -> bytes:
    if not message.ids:
        raise EmptyInput("Invalid 'ids': the list is empty. Send at least one token id.")
    call.service.limits.check_tokens(len(message.ids), exact=True)
    texts = Texts(token_arrays=(list(message.ids),), is_list=False, own_ids=True)
    (text,) = await call.service.decode(
        Options(call.model),
        texts,
        lambda strings: strings[0],
        call.caller,
        skip_special_tokens=message.skip_special_tokens,
        lease=lease,
    )
    return _DECODE_ANSWER(text=text).SerializeToString()


def handlers(door: Door) -> dict[str, Methods]:
    """The services."""
    embed = {"Embed": _embed, "EmbedStream": _embed_stream}
    tokenize = {
        "Tokenize": _tokenize,
        "TokenizeStream": _tokenize_stream,
        "Decode": _decode,
        "DecodeStream": _decode_stream,
    }
    return (
        handlers_of(door, INFO, {"Info": _info})
        | handlers_of(door, EMBED, embed)
        | handlers_of(door, TOKENIZE, tokenize)
    )
