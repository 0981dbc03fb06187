"""What the model reads of a text, and which text its ids stand for: tokens without vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from matryo.core.budget import Lease
from matryo.core.errors import InvalidRequest
from matryo.engine import Engine, Tokens, most_chars
from matryo.scheduler import Tenant
from matryo.service.choices import Choices
from matryo.service.limits import PIECE_CHARACTERS, PIECE_TEXTS, RequestLimits
from matryo.service.request import Texts
from matryo.service.text_pool import TextPool
from matryo.service.token_arrays import check_own

T = TypeVar("T")

_TOKEN_BYTES = 128  # of a token in an answer, beside its text
_BYTES_PER_CHAR = 6  # of text in JSON, at most
_CHARS_PER_ID = 4  # of usual text


async def spell(
    texts: Texts,
    *,
    choices: Choices,
    write: Callable[[Sequence[Tokens]], T],
    add_special_tokens: bool,
    pool: TextPool,
    limits: RequestLimits,
    lease: Lease,
    patience_s: float | None,
    tenant: Tenant,
) -> list[T]:
    """The tokens of each text, as `write` writes those of each piece; see `Service.tokenize`.

    Args:
        texts: strings.
        choices: the model and the input type.
        write: makes the result of a piece, on a thread.
        add_special_tokens: whether the special tokens around a text are among its tokens.
        pool: threads to work on.
        limits: of the request.
        lease: holds the results.
        patience_s: seconds that the caller waits for an answer; None if unknown.
        tenant: whose texts they are.

    Raises:
        InvalidRequest: a text has more characters than are read of one.
        TooManyTokens: the texts have more tokens together than a request may have.
        Overloaded: the texts would have to wait too long, or memory is short.
    """
    engine, prefix = choices.engine, choices.engine.manifest.prefix(choices.input_type)
    _check_lengths(texts, engine)
    lengths = [len(text) for text in texts.strings]
    results: list[T] = []
    n_tokens = 0
    with pool.admit(sum(lengths), patience_s, tenant) as job:
        for start, end in _pieces(lengths, PIECE_CHARACTERS):

            def find(strings: Sequence[str] = texts.strings[start:end]) -> Sequence[Tokens]:
                return engine.pieces(strings, prefix, add_special_tokens=add_special_tokens)

            n_chars = sum(lengths[start:end])
            is_long = n_chars > PIECE_CHARACTERS
            found = await job.run(find, is_long=is_long)
            n_found = sum(map(len, found))
            n_tokens += n_found
            limits.check_tokens(n_tokens, exact=end == len(texts))
            lease.grow(_TOKEN_BYTES * n_found + _BYTES_PER_CHAR * n_chars, "answer")

            def written(found: Sequence[Tokens] = found) -> T:
                return write(found)

            results.append(await job.run(written, is_long=is_long))
            job.advance(n_chars)
    return results


async def join(
    texts: Texts,
    *,
    choices: Choices,
    write: Callable[[Sequence[str]], T],
    skip_special_tokens: bool,
    pool: TextPool,
    limits: RequestLimits,
    lease: Lease,
    patience_s: float | None,
    tenant: Tenant,
) -> list[T]:
    """The string of each array of ids, as `write` writes those of each piece; see `Service.decode`.

    Args:
        texts: arrays of the model's own ids.
        choices: the model.
        write: makes the result of a piece, on a thread.
        skip_special_tokens: whether special tokens are left out.
        pool: threads to work on.
        limits: of the request.
        lease: holds the results.
        patience_s: seconds that the caller waits for an answer; None if unknown.
        tenant: whose texts they are.

    Raises:
        InvalidRequest: an id is outside the vocabulary.
        TooManyTokens: more ids than a request may have tokens.
        Overloaded: the texts would have to wait too long, or memory is short.
    """
    engine = choices.engine
    lengths = [len(ids) for ids in texts.token_arrays]
    limits.check_tokens(sum(lengths), exact=True)
    results: list[T] = []
    with pool.admit(_CHARS_PER_ID * sum(lengths), patience_s, tenant) as job:
        await job.run(lambda: check_own(texts, engine.vocab_size, engine.manifest.id))
        for start, end in _pieces(lengths, PIECE_CHARACTERS // _CHARS_PER_ID):

            def find(arrays: Sequence[Sequence[int]] = texts.token_arrays[start:end]) -> list[str]:
                return [
                    engine.decode(ids, skip_special_tokens=skip_special_tokens) for ids in arrays
                ]

            n_chars = _CHARS_PER_ID * sum(lengths[start:end])
            is_long = n_chars > PIECE_CHARACTERS
            strings = await job.run(find, is_long=is_long)
            lease.grow(_BYTES_PER_CHAR * sum(map(len, strings)), "answer")

            def written(strings: Sequence[str] = strings) -> T:
                return write(strings)

            results.append(await job.run(written, is_long=is_long))
            job.advance(n_chars)
    return results


def _check_lengths(texts: Texts, engine: Engine) -> None:
    most = most_chars(engine.manifest.tokenizer.max_tokens)
    for index, text in enumerate(texts.strings):
        if len(text) > most:
            position = texts.position(index)
            name = "input" if position is None else f"input[{position}]"
            raise InvalidRequest(
                f"Invalid '{name}': the text has {len(text)} characters, and at most {most} are "
                f"read for {engine.manifest.id}. Send the text in parts.",
                param="input",
                code="string_above_max_length",
            )


def _pieces(lengths: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """The texts of each piece, as the index of the first and the index behind the last."""
    start, total = 0, 0
    for index, length in enumerate(lengths):
        if index > start and (total + length > most or index - start == PIECE_TEXTS):
            yield start, index
            start, total = index, 0
        total += length
    yield start, len(lengths)
