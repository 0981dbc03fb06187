"""The arguments and results of the tools; their JSON schemas are what assistants read.

A whole number may come as `10.0` or `"10"`, because assistants write both. Everything else is
strict.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_TOP = 100
"""Results of one ranking. An assistant reads each of them."""

MAX_VECTORS, MAX_NUMBERS = 8, 2048
"""Of one call of `embed`. An assistant reads each number, and a number is several tokens."""

_Whole = Annotated[int, Field(ge=1, strict=False)]
_Text = Annotated[str, Field(min_length=1)]
_Model = Annotated[
    str | None, Field(description="A model of this server; leave it out for the default one.")
]


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: _Model = None


class RankArguments(_Arguments):
    """Arguments of `rank`."""

    query: Annotated[_Text, Field(description="What you look for: a question or a topic.")]
    texts: Annotated[
        list[_Text],
        Field(min_length=1, description="The texts to search, each a passage or a short document."),
    ]
    top: Annotated[_Whole, Field(le=MAX_TOP, description="How many of the best texts to give.")] = (
        10
    )


class SimilarityArguments(_Arguments):
    """Arguments of `similarity`."""

    a: Annotated[_Text, Field(description="One text.")]
    b: Annotated[_Text, Field(description="The other text; swapping the two changes nothing.")]


class EmbedArguments(_Arguments):
    """Arguments of `embed`."""

    texts: Annotated[
        list[_Text],
        Field(min_length=1, description=f"The texts to embed, {MAX_VECTORS} at most."),
    ]
    dimensions: Annotated[
        _Whole | None,
        Field(
            description="Size of each vector; leave it out for the model's own. Vectors times "
            f"dimensions may be {MAX_NUMBERS} at most."
        ),
    ] = None
    input_type: Annotated[
        str | None,
        Field(
            description="What the texts are for: query, document, classification, clustering or "
            "none, as far as the model knows them; leave it out for the server's default."
        ),
    ] = None


_Warnings = Annotated[
    list[str], Field(description="What to know about this answer, such as texts that were cut.")
]


class Ranked(BaseModel):
    """One text of a ranking."""

    index: Annotated[int, Field(description="Index of the text in the argument texts, from 0.")]
    score: Annotated[float, Field(description="Cosine of query and text, -1 to 1.")]
    text: Annotated[str, Field(description="How the text begins.")]


class RankResult(BaseModel):
    """Result of `rank`."""

    results: Annotated[list[Ranked], Field(description="Best first.")]
    model: str
    warnings: _Warnings


class SimilarityResult(BaseModel):
    """Result of `similarity`."""

    similarity: Annotated[float, Field(description="Cosine of the two texts, -1 to 1.")]
    model: str
    input_type: Annotated[str, Field(description="What both texts were taken for.")]
    warnings: _Warnings


class EmbedResult(BaseModel):
    """Result of `embed`."""

    embeddings: Annotated[list[list[float]], Field(description="A unit vector for each text.")]
    dimensions: int
    model: str
    input_type: Annotated[str, Field(description="What the texts were taken for.")]
    fingerprint: Annotated[
        str, Field(description="Vectors may share an index only where this is the same.")
    ]
    warnings: _Warnings
