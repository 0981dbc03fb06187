"""The wire types of Encoderfile's REST, for a model of sentence embeddings.

Types are strict. `null` for `metadata` means "absent".

Source: mozilla-ai/encoderfile, `encoderfile/src/common/sentence_embedding.rs` and
`encoderfile/src/common/model_metadata.rs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class PredictRequest(BaseModel):
    """The body of `POST /predict`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    inputs: Annotated[
        Any,
        Field(description="A list of texts, or one text; none of them empty. Long ones are cut."),
    ]
    metadata: Annotated[
        dict[str, str] | None, Field(description="Strings that come back as they are.")
    ] = None


class SentenceEmbedding(BaseModel):
    """One result."""

    embedding: list[float]


class PredictResponse(BaseModel):
    """The answer of `POST /predict`."""

    results: list[SentenceEmbedding]
    model_id: str
    metadata: Annotated[
        dict[str, str] | None, Field(description="Absent if the body had none.")
    ] = None


class ModelMetadata(BaseModel):
    """The answer of `GET /model`."""

    model_id: str
    model_type: Literal["sentence_embedding"] = "sentence_embedding"
    id2label: Annotated[None, Field(description="A model of embeddings has no labels.")] = None
