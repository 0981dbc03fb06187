"""The wire types of TEI's HTTP API.

Types are strict. `null` for an optional field means "absent".

Source: huggingface/text-embeddings-inference, `router/src/http/types.rs` and `router/src/lib.rs`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from matryo.http.openai.wire import whole

_Prompt = Annotated[
    str | None,
    Field(
        description="What the texts are for: an input type of the model. A text that already "
        "begins with a prefix of the model gets no other. Absent: the server's default.",
    ),
]
_Texts = Annotated[Any, Field(description="One text, or a list of texts, none of them empty.")]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class EmbedRequest(_Request):
    """The body of `POST /embed`."""

    inputs: Annotated[
        Any,
        Field(
            description="One text, or a list of texts, none of them empty; or the same as token "
            "ids of the model."
        ),
    ]
    truncate: Annotated[
        bool | None,
        Field(
            description="true (default): cut texts over the model's limit, and say so in "
            "x-matryo-truncated; false: refuse them."
        ),
    ] = None
    truncation_direction: Annotated[
        Literal["Right", "Left", "right", "left"] | None,
        Field(
            description="Right (default): cut the end of a text; Left: cut its beginning, the "
            "prefix included. Special tokens are kept."
        ),
    ] = None
    prompt_name: _Prompt = None
    normalize: Annotated[
        bool | None,
        Field(
            description="true (default): vectors of unit length; false: the model's before that."
        ),
    ] = None
    dimensions: Annotated[
        Annotated[int, Field(ge=1), BeforeValidator(whole)] | None,
        Field(description="Size of the vectors: the first so many components."),
    ] = None


class TokenizeRequest(_Request):
    """The body of `POST /tokenize`."""

    inputs: _Texts
    add_special_tokens: Annotated[
        bool | None,
        Field(description="true (default): with the special tokens around a text."),
    ] = None
    prompt_name: _Prompt = None


class DecodeRequest(_Request):
    """The body of `POST /decode`."""

    ids: Annotated[Any, Field(description="Token ids of one text, or a list of such arrays.")]
    skip_special_tokens: Annotated[
        bool | None, Field(description="true (default): leave special tokens out.")
    ] = None


class SimpleToken(BaseModel):
    """One token; offsets are those of the text's UTF-8 bytes, prefix included."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Pooling(BaseModel):
    """How token states become one state."""

    pooling: str


class ModelType(BaseModel):
    """What the model is for."""

    embedding: Pooling


class Info(BaseModel):
    """The answer of `GET /info`."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None


class TeiError(BaseModel):
    """The answer of every 4xx and 5xx."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


EmbedResponse = list[list[float]]
TokenizeResponse = list[list[SimpleToken]]
DecodeResponse = list[str]
