"""From texts to token ids: prefixes, the model's own tokenizer, and the limits of a request."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from matryo.core.errors import ContextTooLong
from matryo.engine import Encoded, TokenIds
from matryo.service.choices import Choices
from matryo.service.limits import CHUNK_TEXTS, INLINE_CHARACTERS, INLINE_TEXTS, RequestLimits
from matryo.service.request import Texts
from matryo.service.token_arrays import check_own


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What the scheduler takes, and what the answer reports.

    Attributes:
        ids: of each text, within the model's limit.
        n_tokens: all of them, special tokens included.
        truncated: positions of the texts that were cut.
        unknown: positions of the texts with something that the vocabulary lacks.
    """

    ids: list[TokenIds]
    n_tokens: int
    truncated: tuple[int, ...]
    unknown: tuple[int, ...]


async def tokenize(
    texts: Texts, choices: Choices, *, truncate: bool, executor: Executor, limits: RequestLimits
) -> Tokenized:
    """Prefix and tokenise, and hold the result against the limits.

    All but a few short texts go to a thread: short texts cost less than the way there.

    Args:
        texts: strings, or ids of the served model.
        choices: the model and the input type.
        truncate: cut texts over the model's limit.
        executor: threads to work on.
        limits: of the request.

    Raises:
        InvalidRequest: an id is outside the model's vocabulary.
        ContextTooLong: a text is over the model's limit and may not be cut.
        TooManyTokens: the texts are over the request's limit together.
    """
    engine = choices.engine
    most = engine.manifest.tokenizer.max_tokens
    loop = asyncio.get_running_loop()
    ids: list[TokenIds] = []
    truncated: list[int] = []
    unknown: list[int] = []
    unknown_id = engine.unknown_id
    n_tokens, n_texts = 0, len(texts)
    inline = n_texts <= INLINE_TEXTS and (
        sum(map(len, texts.strings or texts.token_arrays)) <= INLINE_CHARACTERS
    )
    for start in range(0, n_texts, CHUNK_TEXTS):
        part = slice(start, start + CHUNK_TEXTS)
        if inline:
            encodings = _encode(texts, part, choices)
        else:
            encodings = await loop.run_in_executor(executor, _encode, texts, part, choices)
        for index, encoded in enumerate(encodings, start):
            text = encoded.ids
            if encoded.n_tokens > most:
                if not truncate:
                    raise ContextTooLong(
                        index=texts.position(index),
                        n_tokens=encoded.n_tokens,
                        max_tokens=most,
                        exact=encoded.exact,
                    )
                text = engine.cut(text)
                truncated.append(texts.position(index) or 0)
            if unknown_id is not None and unknown_id in text:
                unknown.append(texts.position(index) or 0)
            ids.append(text)
            n_tokens += len(text)
        limits.check_tokens(n_tokens, exact=len(ids) == n_texts)
    return Tokenized(ids, n_tokens, tuple(truncated), tuple(unknown))


def _encode(texts: Texts, part: slice, choices: Choices) -> list[Encoded]:
    """Ids of some of the texts, prefixes and special tokens included."""
    engine, manifest = choices.engine, choices.engine.manifest
    prefix = manifest.prefix(choices.input_type)
    if texts.strings:
        return engine.tokenize(texts.strings[part], prefix)
    check_own(texts, part, engine.vocab_size, manifest.id)
    return [engine.from_ids(ids, prefix) for ids in texts.token_arrays[part]]
