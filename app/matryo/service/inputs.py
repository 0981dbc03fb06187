"""From what a caller sent to what the engine takes: model, input type, prefix, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from matryo.catalog.manifest import Manifest
from matryo.core.errors import (
    BadDimensions,
    ContextTooLong,
    InvalidRequest,
    SettingsInvalid,
    TooManyTokens,
    UnknownModel,
)
from matryo.engine import Encoded, Engine, TokenIds
from matryo.http.openai.wire import (
    MAX_REQUEST_TOKENS,
    EmbeddingRequest,
    EmbeddingType,
    Inputs,
    InputTypeName,
)
from matryo.service.token_arrays import check_own

SYNONYMS: dict[InputTypeName, str] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
    "none": "none",
}
_SUFFIXES: dict[str, str] = {
    "-query": "query",
    "-document": "document",
    "-passage": "document",
}
# Texts tokenised in one go: between two of these a caller who hung up is noticed, and a
# request over its token limit stopped.
_CHUNK_TEXTS = 128
# So little is tokenised where it is: it takes a fraction of a millisecond, as does a thread.
_INLINE_TEXTS, _INLINE_CHARACTERS = 8, 1000


class Directory:
    """Names that callers may use, and the engines behind them.

    Args:
        engines: what is served; the first is the default.
        aliases: further names, each for a model's id or one of its own aliases, or, if None,
            for the default. The manifests' aliases count too.

    Raises:
        SettingsInvalid: an alias for a name that is not served.
    """

    def __init__(self, engines: Sequence[Engine], aliases: Mapping[str, str | None]) -> None:
        self.engines = tuple(engines)
        self._by_name: dict[str, Engine] = {}
        for engine in engines:
            for name in (engine.manifest.id, *engine.manifest.aliases):
                self._by_name.setdefault(name, engine)
        own = dict(self._by_name)
        for alias, name in aliases.items():
            if name is not None and name not in own:
                raise SettingsInvalid(
                    f"MATRYO_ALIASES maps '{alias}' to '{name}', which is not served; "
                    f"served: {', '.join(sorted(own))}"
                )
            self._by_name.setdefault(alias, engines[0] if name is None else own[name])

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the served models, the default first."""
        return tuple(engine.manifest.id for engine in self.engines)

    def resolve(self, name: str | None, *, param: str | None = None) -> tuple[Engine, str | None]:
        """The engine of a name, and the input type its suffix asks for.

        Raises:
            UnknownModel: neither the name, nor the name without its suffix, is served.
        """
        if name is None:
            return self.engines[0], None
        if engine := self._by_name.get(name):
            return engine, None
        for suffix, input_type in _SUFFIXES.items():
            if engine := self._by_name.get(name.removesuffix(suffix)):
                return engine, input_type
        raise UnknownModel(name[:256], served=self.ids, param=param)


@dataclass(frozen=True, slots=True)
class Choices:
    """What shapes the vectors of one request.

    Attributes:
        warning: a sentence for `x-matryo-warning`, or None.
    """

    engine: Engine
    input_type: str
    dimensions: int
    warning: str | None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator chose for requests that do not say."""

    input_type: str = "document"
    dimensions: int | None = None
    strict_dimensions: bool = False


def choose(request: EmbeddingRequest, directory: Directory, defaults: Defaults) -> Choices:
    """Settle model, input type and size of a request.

    Raises:
        UnknownModel: the model is not served.
        InvalidRequest: the model does not know the input type.
        BadDimensions: the model cannot, or may not, give this size.
    """
    engine, suffix_type = directory.resolve(request.model)
    manifest = engine.manifest
    asked = SYNONYMS[request.input_type] if request.input_type else suffix_type
    if asked and asked not in manifest.input_types:
        raise InvalidRequest(
            f"Invalid value for 'input_type': '{asked}'. {manifest.id} was trained for: "
            f"{', '.join(manifest.input_types)}.",
            param="input_type",
            code="invalid_value",
        )
    # The operator's default may be meant for another model served beside this one.
    input_type = asked or (
        defaults.input_type if defaults.input_type in manifest.input_types else "document"
    )
    dimensions, warning = _choose_dimensions(request.dimensions, manifest, defaults)
    return Choices(engine, input_type, dimensions, warning)


def _choose_dimensions(
    asked: int | None, manifest: Manifest, defaults: Defaults
) -> tuple[int, str | None]:
    sizes = manifest.output.dimensions
    wanted = asked or defaults.dimensions or sizes.native
    if wanted == sizes.native:
        return wanted, None
    if not sizes.cut:
        raise BadDimensions("This model does not support specifying dimensions.")
    if wanted > sizes.native:
        raise BadDimensions(
            f"Invalid value for 'dimensions': {wanted}. {manifest.id} gives 1 to {sizes.native}."
        )
    if wanted in sizes.trained:
        return wanted, None
    trained = ", ".join(map(str, sizes.trained))
    if defaults.strict_dimensions:
        raise BadDimensions(
            f"Invalid value for 'dimensions': {wanted}. {manifest.id} was trained for: {trained}."
        )
    return (
        wanted,
        f"{manifest.id} was not trained for {wanted} dimensions, but for: {trained}",
    )


def fingerprint_of(choices: Choices, embedding_type: EmbeddingType) -> str:
    """`x-matryo-fingerprint`: what shapes a vector, whole."""
    manifest = choices.engine.manifest
    # A model without prompts makes the same vector of every input type.
    input_type = choices.input_type if manifest.has_prompts else "none"
    parts = (choices.engine.fingerprint, input_type, str(choices.dimensions), embedding_type)
    return "/".join(parts)


def add_prefix(texts: Sequence[str], manifest: Manifest, input_type: str) -> list[str]:
    """Texts with the model's prefix for this type before them.

    One that already begins with any of the model's own prefixes is left as it is: callers
    who know the model put it there themselves, and twice gives another vector.
    """
    prefix, own = manifest.prefix(input_type), manifest.prefixes
    if not prefix:
        return list(texts)
    return [text if text.startswith(own) else prefix + text for text in texts]


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What the scheduler takes, and what the answer reports.

    Attributes:
        texts: ids of each text, within the model's limit.
        n_tokens: all of them, special tokens included.
        n_truncated: texts that were cut.
    """

    texts: list[TokenIds]
    n_tokens: int
    n_truncated: int


async def tokenize(
    inputs: Inputs,
    request: EmbeddingRequest,
    choices: Choices,
    *,
    executor: Executor,
    max_tokens: int | None = MAX_REQUEST_TOKENS,
) -> Tokenized:
    """Prefix and tokenise, and hold the result against the limits.

    All but a few short texts go to a thread: those cost less than the way there.

    Args:
        inputs: the texts, or ids of the served model.
        request: whether to cut those over the model's limit.
        choices: the model and the input type.
        executor: threads to work on.
        max_tokens: limit of all texts together; None for none.

    Raises:
        InvalidRequest: an id is outside the model's vocabulary.
        ContextTooLong: a text is over the model's limit and may not be cut.
        TooManyTokens: the texts are over the request's limit together.
    """
    engine = choices.engine
    truncate = request.truncate in (True, "END")
    limit = engine.manifest.tokenizer.max_tokens
    loop = asyncio.get_running_loop()
    ids: list[TokenIds] = []
    n_tokens = n_truncated = 0
    n_texts, n_characters = inputs.n_texts, sum(map(len, inputs.texts or inputs.arrays))
    inline = n_texts <= _INLINE_TEXTS and n_characters <= _INLINE_CHARACTERS
    for start in range(0, n_texts, _CHUNK_TEXTS):
        part = slice(start, start + _CHUNK_TEXTS)
        if inline:
            encodings = _encode(inputs, part, choices)
        else:
            encodings = await loop.run_in_executor(executor, _encode, inputs, part, choices)
        for place, encoded in enumerate(encodings, start):
            text = encoded.ids
            if encoded.n_tokens > limit:
                if not truncate:
                    raise ContextTooLong(
                        index=place if inputs.is_list else None,
                        n_tokens=encoded.n_tokens,
                        max_tokens=limit,
                        exact=encoded.exact,
                    )
                text = engine.cut(text)
                n_truncated += 1
            ids.append(text)
            n_tokens += len(text)
        if max_tokens is not None and n_tokens > max_tokens:
            done = len(ids) == n_texts
            raise TooManyTokens(n_tokens=n_tokens, max_tokens=max_tokens, exact=done)
    return Tokenized(ids, n_tokens, n_truncated)


def _encode(inputs: Inputs, part: slice, choices: Choices) -> list[Encoded]:
    """Ids of some of the texts, prefixes and special tokens included."""
    engine, manifest = choices.engine, choices.engine.manifest
    if inputs.texts:
        return engine.tokenize(add_prefix(inputs.texts[part], manifest, choices.input_type))
    check_own(inputs, part, engine.vocab_size, manifest.id)
    prefix = manifest.prefix(choices.input_type)
    return [engine.from_ids(ids, prefix) for ids in inputs.arrays[part]]
