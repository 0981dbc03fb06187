"""What a server or a service of ours says of a model, as a record of an index keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NONE = "none"
"""The input type of vectors that no prompt shapes."""

_Text = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=0, le=1 << 48)]


class _Facts(BaseModel):
    # A later version may say more.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Sizes(_Facts):
    """How many components a vector has; `default` is what a request gets that names no number."""

    native: _Count
    trained: tuple[_Count, ...]
    can_be_cut: bool
    default: _Count
    strict: bool


class Runtime(_Facts):
    """What computes the vectors; `native` is 0 where the graph needs no matryo-native."""

    matryo: _Text
    onnxruntime: _Text
    artifact_sha256: _Text
    native: _Count
    machine: _Text
    cpu: tuple[_Text, ...]


class Limits(_Facts):
    """Bounds of one text and of one request; None for no bound."""

    max_tokens: _Count
    max_inputs: _Count | None
    max_request_tokens: _Count | None

    @property
    def n_texts(self) -> int | None:
        """Texts that a request may have, however long each of them is; None for any number."""
        most = [self.max_inputs]
        if self.max_request_tokens is not None:
            most.append(self.max_request_tokens // max(1, self.max_tokens))
        return min((max(1, number) for number in most if number is not None), default=None)


class Digest(_Facts):
    """The SHA-256 of the canary's vectors for one input type."""

    sha256: _Text


class Canary(_Facts):
    """Digests of the vectors of fixed texts, by input type; `dimensions` of each vector."""

    version: _Count
    dimensions: _Count
    vectors: dict[_Text, Digest]


class Facts(_Facts):
    """Everything that shapes the vectors of a model; see `GET /v1/models/{id}`.

    Attributes:
        output_steps: from the graph's output to a vector.
        settings_key: changes with any other setting of architecture, output and tokenizer that
            shapes a vector.
        canary: None while it cannot be computed.
        limits: of a server; None for the model on this machine. They shape no vector, and no record
            keeps them.
    """

    id: _Text
    precision: _Text
    fingerprint: _Text
    weights_sha256: _Text
    tokenizer_sha256: _Text
    dimensions: Sizes
    prompts: dict[_Text, str]
    input_types: tuple[_Text, ...]
    default_input_type: _Text
    output_steps: tuple[_Text, ...]
    settings_key: _Text
    runtime: Runtime
    canary: Canary | None = None
    limits: Limits | None = Field(default=None, exclude=True)

    @property
    def key(self) -> str:
        """The part of the fingerprint that names weights, prompts, settings and builder."""
        return self.fingerprint.rpartition("/")[2].partition("+")[0]

    @property
    def is_trusted(self) -> bool:
        """Whether the model was built although the checkpoint's files contradict its manifest."""
        return "+trusted" in self.fingerprint

    def input_type(self, named: str | None) -> str:
        """The input type that the fingerprint shows of a request.

        Args:
            named: by the request; None for a request that names none.
        """
        if not self.prompts:
            return NONE
        return named or self.default_input_type

    def shaping(self, input_type: str) -> str:
        """The input type of the canary whose prompt a text of this input type gets."""
        return input_type if self.prompts.get(input_type) else NONE

    def size(self, named: int | None) -> int:
        """The number of components that a request gets, if the model has so many."""
        return named or self.dimensions.default

    def offers(self, dimensions: int) -> bool:
        """Whether a request may name this number of components."""
        sizes = self.dimensions
        if not sizes.can_be_cut and sizes.default != sizes.native:  # a size that is locked
            return dimensions == sizes.default
        if dimensions == sizes.native:
            return True
        is_known = dimensions in sizes.trained or not sizes.strict
        return sizes.can_be_cut and dimensions < sizes.native and is_known

    def digest(self, input_type: str) -> str | None:
        """The SHA-256 of the canary's vectors; None where there are none."""
        found = self.canary.vectors.get(input_type) if self.canary else None
        return found.sha256 if found else None


@dataclass(frozen=True, slots=True)
class Asked:
    """What requests for the vectors of an index name; None leaves a choice to the server.

    Attributes:
        input_type: one of the model's own, not a synonym.
        dimensions: number of components.
        embedding_type: type of the numbers.
    """

    input_type: str | None = None
    dimensions: int | None = None
    embedding_type: str = "float"

    def fingerprint(self, facts: Facts) -> str:
        """The whole fingerprint of the vectors that these requests get."""
        chosen = (facts.input_type(self.input_type), str(facts.size(self.dimensions)))
        return "/".join((facts.fingerprint, *chosen, self.embedding_type))
