"""A model is a folder: `model.toml`, typed and frozen.

Covers reading, checking and finding manifests. What a `model_type` needs in
`[architecture]` is checked by the module of that architecture when it builds.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.core.choices import Precision, PrecisionChoice

InputType = Literal["query", "document", "classification", "clustering", "none"]
"""What a text is for; each names one of the model's prompts, `none` no prompt at all."""

OutputStep = Literal["mean_pool", "cls_pool", "layer_norm", "truncate", "l2_normalize"]

_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Positive = Annotated[int, Field(ge=1)]
# A plain relative path: no part begins with a dot, so none is "..".
_File = Annotated[str, Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]


class _Table(BaseModel):
    """A table of the manifest: frozen, no unknown keys, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class CheckpointFile(_Table):
    """One file of the checkpoint, as it must be on disk before use.

    Those of `[files]` are pulled; `[alternatives]` names the same model in other formats,
    which `matryo build --checkpoint` takes as verified.
    """

    sha256: _Sha256
    bytes: _Positive | None = None


class HubSource(_Table):
    """A repository on a Hugging Face hub, pinned to a commit."""

    kind: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class PypiSource(_Table):
    """A wheel that carries the checkpoint's files in one of its folders."""

    kind: Literal["pypi"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!+-]*$")]
    wheel: CheckpointFile
    folder: _File


Source = Annotated[HubSource | PypiSource, Field(discriminator="kind")]


class Architecture(BaseModel):
    """The graph to build: `model_type` and its config, in Hugging Face's words."""

    # Open on purpose: each architecture's own Config refuses what it does not know.
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    model_type: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]

    @property
    def config(self) -> dict[str, Any]:
        """Every key but `model_type`."""
        return dict(self.model_extra or {})


class TokenizerSpec(_Table):
    """What the tokenizer file does not say."""

    max_tokens: _Positive


class Prompts(_Table):
    """The model's own prefixes by input type; absent ones the model was not trained for."""

    query: str | None = None
    document: str | None = None
    classification: str | None = None
    clustering: str | None = None


class Dimensions(_Table):
    """Output sizes.

    Attributes:
        native: the model's own size, and the largest.
        trained: sizes it was trained to be cut to, largest first, native included.
        cut: whether a caller may ask for less than native.
    """

    native: _Positive
    trained: tuple[_Positive, ...]
    cut: bool

    @model_validator(mode="after")
    def _check(self) -> Dimensions:
        if not self.trained or self.trained[0] != self.native:
            msg = f"must begin with native, {self.native}, and lists {list(self.trained)}"
            raise ValueError(f"trained {msg}")
        if list(self.trained) != sorted(set(self.trained), reverse=True):
            raise ValueError(f"trained must be descending and distinct: {list(self.trained)}")
        return self


class Output(_Table):
    """From hidden states to the vector: ordered steps, and the sizes on offer."""

    steps: tuple[OutputStep, ...]
    layer_norm_eps: Annotated[float, Field(gt=0)] | None = None
    dimensions: Dimensions

    @model_validator(mode="after")
    def _check(self) -> Output:
        pool = "cls_pool" if "cls_pool" in self.steps else "mean_pool"
        order = [pool, "layer_norm", "truncate", "l2_normalize"]
        expected = [step for step in order if step != "layer_norm" or step in self.steps]
        if list(self.steps) != expected:
            # Normalising before the cut, or the layer norm after it, gives other vectors.
            raise ValueError(f"steps must be {expected}, in this order, not {list(self.steps)}")
        if ("layer_norm" in self.steps) != (self.layer_norm_eps is not None):
            raise ValueError("layer_norm_eps belongs with the step layer_norm, both or neither")
        return self


class PrecisionSpec(_Table):
    """The accuracy a precision must keep against fp32 on the built-in texts."""

    min_cosine: Annotated[float, Field(gt=0, le=1)]


class Manifest(_Table):
    """One servable model, as its `model.toml` describes it.

    Attributes:
        verified: `matryo verify` has passed on the published weights; until then the facts
            here are those of public sources.
    """

    id: _Id
    aliases: tuple[_Alias, ...] = ()
    owned_by: str
    created: date
    license: str
    verified: bool = False
    files: Mapping[_File, CheckpointFile]
    alternatives: Mapping[_File, CheckpointFile] = {}
    sources: tuple[Source, ...] = ()
    architecture: Architecture
    tokenizer: TokenizerSpec
    prompts: Prompts = Prompts()
    output: Output
    precisions: Mapping[Precision, PrecisionSpec]

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        for name in ("model.safetensors", "tokenizer.json"):
            if name not in self.files:
                raise ValueError(f"files must list '{name}' with its sha256")
        if "fp32" not in self.precisions:
            raise ValueError("precisions must offer fp32, the reference of the others")
        return self

    def pinned_sha256(self, name: str, suffix: str) -> tuple[str, ...]:
        """Hashes that the file `name` may have if it comes in a format of this suffix."""
        candidates = {name: self.files[name], **self.alternatives}
        return tuple(f.sha256 for path, f in candidates.items() if Path(path).suffix == suffix)

    @property
    def created_s(self) -> int:
        """`created` as a Unix time in seconds, as OpenAI's model object has it."""
        return int(datetime.combine(self.created, datetime.min.time(), UTC).timestamp())

    @property
    def has_prompts(self) -> bool:
        """Whether the model tells input types apart at all."""
        return any(self.prompts.model_dump().values())

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The model's own prefixes, for the guard against prefixing twice."""
        return tuple(text for text in self.prompts.model_dump().values() if text)

    @property
    def input_types(self) -> tuple[InputType, ...]:
        """Input types a caller may ask for; all of them if the model has no prompts."""
        if not self.has_prompts:
            return get_args(InputType)
        named = cast("dict[InputType, str | None]", self.prompts.model_dump())
        return (*(kind for kind, text in named.items() if text is not None), "none")

    def precision_for(self, choice: PrecisionChoice) -> Precision:
        """The precision to serve: `choice` itself, or for `auto` int8 if offered, else fp32."""
        if choice != "auto":
            return choice
        return "int8" if "int8" in self.precisions else "fp32"

    def stretched(self, rotary_scaling_factor: float | None) -> Manifest:
        """This model with another `rotary_scaling_factor`, if its positions can be stretched."""
        config = self.architecture.config
        if rotary_scaling_factor is None or "max_trained_positions" not in config:
            return self
        changed = {"rotary_scaling_factor": rotary_scaling_factor}
        architecture = self.architecture.model_copy(update=changed)
        return self.model_copy(update={"architecture": architecture})

    def prefix(self, input_type: InputType) -> str:
        """The text to put before an input of this type; may be empty."""
        named: dict[str, str | None] = self.prompts.model_dump()
        return named.get(input_type) or ""

    @functools.cached_property
    def checkpoint_key(self) -> str:
        """16 hex digits that change with any file of the checkpoint."""
        files = {name: file.sha256 for name, file in sorted(self.files.items())}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    @functools.cached_property
    def output_key(self) -> str:
        """16 hex digits that change with anything here that shapes a vector, files apart."""
        fields = {"architecture", "tokenizer", "prompts", "output"}
        shape = self.model_dump(mode="json", include=fields)
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
