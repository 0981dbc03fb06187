"""The tools: what an assistant may ask, in the service's words.

No tool gives a matrix. `rank` and `similarity` give cosines; `embed` is bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel

from matryo.core import trace_names as names
from matryo.core.errors import InvalidRequest
from matryo.core.tracing import NO_SPAN, Span
from matryo.engine.postprocess import FloatArray
from matryo.mcp.wire import (
    MAX_NUMBERS,
    MAX_VECTORS,
    EmbedArguments,
    EmbedResult,
    RankArguments,
    Ranked,
    RankResult,
    SimilarityArguments,
    SimilarityResult,
)
from matryo.service import Answer, Caller, Options, Service, Texts
from matryo.service.choices import choose

_HEAD = 80  # characters of a text in a ranking
_DIGITS = 6  # of a cosine
_SHOWN = 20  # indexes in a warning


@dataclass(slots=True)
class Call:
    """One call of a tool.

    Attributes:
        service: what answers.
        caller: who calls.
        request_id: of the call, for the log.
        facts: values for the log line.
        span: of the call.
        asked: the options of the texts that were last embedded; None before the first.
    """

    service: Service
    caller: Caller
    request_id: str
    facts: dict[str, Any]
    span: Span = NO_SPAN
    asked: Options | None = None

    async def embed(self, options: Options, texts: Sequence[str]) -> Answer:
        """The vectors of texts; see `Service.embed`."""
        self.asked = options
        model = self.facts["model"] = self.service.directory.find(options.model)
        span = self.span.call(names.EMBEDDINGS)
        name = f"{names.EMBEDDINGS} {model}" if model else names.EMBEDDINGS
        try:
            answer = await self.service.embed(
                options, Texts(texts), self.caller, request_id=self.request_id, span=span
            )
        except BaseException as exc:
            span.end(name, type(exc).__name__, is_fault=True)
            raise
        span.end(name)
        for name, number in (("texts", len(texts)), ("tokens", answer.n_tokens)):
            self.facts[name] = self.facts.get(name, 0) + number
        return answer


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        name: of the tool.
        title: for people.
        description: for an assistant: what the tool does, and when to use which.
        arguments: what the tool takes.
        result: what the tool gives.
        run: answers a call with arguments.
    """

    name: str
    title: str
    description: str
    arguments: type[BaseModel]
    result: type[BaseModel]
    run: Callable[[Call, Any], Awaitable[BaseModel]]


async def _rank(call: Call, given: RankArguments) -> RankResult:
    """The texts that are nearest to the query; equal scores keep the order of the texts."""
    call.service.limits.check_texts(len(given.texts))
    options = [
        Options(given.model, _asked(call, given.model, name), truncate=True)
        for name in ("query", "document")
    ]
    query = await call.embed(options[0], [given.query])
    texts = await call.embed(options[1], given.texts)
    scores: list[float] = _cosines(texts.vectors, query.vectors[0]).tolist()
    best = sorted(range(len(scores)), key=lambda n: -scores[n])[: given.top]
    results = [Ranked(index=n, score=_rounded(scores[n]), text=_head(given.texts[n])) for n in best]
    warnings = [*_warnings(query, ["query"]), *_warnings(texts, "texts")]
    return RankResult(results=results, model=texts.model, warnings=list(dict.fromkeys(warnings)))


async def _similarity(call: Call, given: SimilarityArguments) -> SimilarityResult:
    """The cosine of two texts that have the same input type."""
    # A query is not like the passage that answers it: a comparison of equals needs one prompt for
    # both. Nomic's models have `clustering` for that, and most models have no such prompt.
    input_type = _asked(call, given.model, "clustering", "none")
    options = Options(given.model, input_type, truncate=True)
    answer = await call.embed(options, [given.a, given.b])
    return SimilarityResult(
        similarity=_rounded(_cosines(answer.vectors[:1], answer.vectors[1])[0]),
        model=answer.model,
        input_type=answer.input_type,
        warnings=_warnings(answer, ["a", "b"]),
    )


async def _embed(call: Call, given: EmbedArguments) -> EmbedResult:
    """A few vectors, whose numbers are exactly those of the other doors."""
    options = Options(given.model, given.input_type, given.dimensions, truncate=True)
    size = choose(options, call.service.directory, call.service.defaults).dimensions
    if len(given.texts) > MAX_VECTORS or len(given.texts) * size > MAX_NUMBERS:
        raise InvalidRequest(
            f"This tool gives at most {MAX_VECTORS} vectors and {MAX_NUMBERS} numbers in one call, "
            f"and {len(given.texts)} vectors of {size} dimensions were asked for. Ask for fewer "
            "texts or dimensions, use rank or similarity, or post the texts to /v1/embeddings of "
            "`matryo serve`."
        )
    answer = await call.embed(options, given.texts)
    return EmbedResult(
        embeddings=_numbers(answer.vectors),
        dimensions=answer.vectors.shape[1],
        model=answer.model,
        input_type=answer.input_type,
        fingerprint=answer.fingerprint,
        warnings=_warnings(answer, "texts"),
    )


def _asked(call: Call, model: str | None, *wanted: str) -> str | None:
    """The first wanted input type that a model knows.

    None, which stands for the server's default, if the model knows none of them, or if the operator
    allows no choice.
    """
    if "input_type" in call.service.defaults.locked:
        return None
    engine, _suffix = call.service.directory.resolve(model)
    names = engine.manifest.input_type_names
    return next((name for name in wanted if name in names), None)


def _cosines(vectors: FloatArray, other: FloatArray) -> NDArray[np.float64]:
    """The cosine of each row with another unit vector: `(n,)` float64."""
    return vectors.astype(np.float64) @ other.astype(np.float64)


def _rounded(cosine: float) -> float:
    return round(float(cosine), _DIGITS)


def _numbers(vectors: FloatArray) -> list[list[float]]:
    """The numbers with as few digits as tell them apart from other float32 numbers."""
    return orjson.loads(orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY))


def _head(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: 4 * _HEAD].split())
    return line if len(line) <= _HEAD and len(text) <= 4 * _HEAD else line[:_HEAD] + "…"


def _warnings(answer: Answer, names: str | Sequence[str]) -> list[str]:
    """Sentences about an answer.

    Args:
        answer: of the service.
        names: of the argument with the texts, or of the argument with each text.
    """

    def shown(positions: Sequence[int]) -> str:
        if not isinstance(names, str):
            return ", ".join(names[n] for n in positions)
        more = f" and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else ""
        return f"{names} at index {', '.join(map(str, positions[:_SHOWN]))}{more}"

    warnings = list(answer.warnings)
    if answer.truncated:
        warnings.append(f"Cut to the model's limit of tokens: {shown(answer.truncated)}.")
    if answer.unknown:
        warnings.append(f"With something that {answer.model} cannot read: {shown(answer.unknown)}.")
    return warnings


TOOLS = (
    Tool(
        "rank",
        "Rank texts by meaning",
        "Find which of some texts are nearest in meaning to a query. Gives the best texts' "
        "indexes, scores and beginnings, best first. Use it to search, filter or choose among "
        "texts that you have: passages, notes, search results, candidate answers. Compare scores "
        "within one ranking only; a score is no probability.",
        RankArguments,
        RankResult,
        _rank,
    ),
    Tool(
        "similarity",
        "Compare two texts",
        "Give one number that says how near two texts are in meaning: 1 for the same. Use it to "
        "tell duplicates and paraphrases from different texts. To search among many texts, or to "
        "match a question with answers, use rank.",
        SimilarityArguments,
        SimilarityResult,
        _similarity,
    ),
    Tool(
        "embed",
        "Embed a few texts",
        "Give the vectors of a few texts as numbers. Use it only where another tool or program "
        "needs the numbers themselves; to compare texts, use rank or similarity, which give the "
        f"comparison. At most {MAX_VECTORS} vectors and {MAX_NUMBERS} numbers in one call.",
        EmbedArguments,
        EmbedResult,
        _embed,
    ),
)
"""What this door offers."""
