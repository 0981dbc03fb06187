"""The wire types of OpenAI's embeddings API.

Types are strict: no string becomes a number, no `true` a 1. As in JSON Schema, 80.0 is an
integer. `null` for an optional field means "absent". Fields of other servers are settled by the
table in `fields`.

Source: openai/openai-openapi, `openapi.yaml`, CreateEmbeddingRequest and -Response.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from matryo.service.request import EmbeddingType

_LARGEST = 2.0**64  # beyond all ids; an integer as large as a float may be takes 160 bytes

EncodingFormat = Literal["float", "base64"]


def whole(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """A decimal number without decimals, up to 2^64, as an integer; anything else as it is."""
    if isinstance(value, float) and abs(value) <= _LARGEST and value.is_integer():
        return int(value)
    return value


_Size = Annotated[int, Field(ge=1), BeforeValidator(whole)]


class EmbeddingRequest(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: Annotated[
        Any,
        Field(
            description="The text to embed, or a list of up to 2048 texts, none of them empty; or "
            "the same as token ids of cl100k_base (MATRYO_TOKEN_INPUT=model: the model's own)."
        ),
    ]
    model: Annotated[
        str | None,
        Field(
            description="A served model or an alias; absent: the server's default. A suffix "
            "-query, -document or -passage chooses the input type.",
            min_length=1,
        ),
    ] = None
    encoding_format: Annotated[
        EncodingFormat | None,
        Field(description="float (default) or base64, the raw little-endian values."),
    ] = None
    dimensions: Annotated[
        _Size | None,
        Field(description="Size of the vectors: the first so many components, normalised again."),
    ] = None
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None
    input_type: Annotated[
        str | None,
        Field(
            description="Extension. What the texts are for; chooses the prefix the model was "
            "trained with. A text that already begins with one is left as it is."
        ),
    ] = None
    truncate: Annotated[
        bool | Literal["END", "NONE"] | None,
        Field(
            description="Extension. true or END: cut texts over the model's limit, and say so in "
            "x-matryo-truncated; false or NONE (default): refuse them."
        ),
    ] = None
    embedding_type: Annotated[
        EmbeddingType | None,
        Field(
            description="Extension. int8, uint8: components times 127·√D/6, rounded; binary, "
            "ubinary: signs, eight to a byte. In base64 the raw bytes of that type, which "
            "OpenAI's SDKs would read as float32: send encoding_format float with them."
        ),
    ] = None


class Embedding(BaseModel):
    """One vector of a response."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of a request, prefixes and special tokens included, padding not."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The answer of `POST /v1/embeddings`; `data` is in input order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """One served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelDimensions(BaseModel):
    """How many components a vector of a model has; `default` is what a request gets unasked."""

    native: int
    trained: list[int]
    can_be_cut: bool
    default: int
    strict: bool


class ModelLimits(BaseModel):
    """Bounds of one text and of one request; null for no bound."""

    max_tokens: int
    max_inputs: int | None
    max_request_tokens: int | None
    max_body_bytes: int


class ModelRuntime(BaseModel):
    """What computes the vectors; `native` is 0 where the graph needs no matryo-native.

    `artifact_sha256` names the files that were built. A build on another CPU may give other bits
    under the same fingerprint.
    """

    matryo: str
    onnxruntime: str
    artifact_sha256: str
    native: int
    machine: str
    cpu: list[str]


class CanaryVectors(BaseModel):
    """The vectors of the canary's texts for one input type.

    `sha256` is that of the matrix, float32 with the least significant byte first, rows in the
    order of the texts; `components` has the first components of each row.
    """

    sha256: str
    components: list[list[float]]


class Canary(BaseModel):
    """Vectors of fixed texts at native size, as this process computes them."""

    version: int
    texts: list[str]
    dimensions: int
    vectors: dict[str, CanaryVectors]


class ModelDetails(Model):
    """One served model, and everything that shapes its vectors.

    `fingerprint` is the leading part of every `x-matryo-fingerprint` of the model. `canary` is null
    while there is no room to compute it.
    """

    precision: str
    fingerprint: str
    weights_sha256: str
    tokenizer_sha256: str
    output_steps: list[str]
    settings_key: str
    dimensions: ModelDimensions
    prompts: dict[str, str]
    input_types: list[str]
    default_input_type: str
    limits: ModelLimits
    unknown_token_id: int | None
    runtime: ModelRuntime
    canary: Canary | None


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


class ErrorBody(BaseModel):
    """OpenAI's error; `param` and `code` may be null."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The answer of every 4xx and 5xx."""

    error: ErrorBody
