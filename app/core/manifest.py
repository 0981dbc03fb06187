"""A model is a folder: `model.toml`, typed and frozen.

Covers reading, checking and finding manifests. What a `model_type` needs in
`[architecture]` is checked by the module of that architecture when it builds.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.core.errors import ManifestInvalid, ModelNotFound

InputType = Literal["query", "document", "classification", "clustering", "none"]
"""What a text is for; each names one of the model's prompts, `none` no prompt at all."""

TokenInput = Literal["cl100k_base", "model"]
"""Whose ids callers send in place of text: OpenAI's, or the served model's own."""

OutputStep = Literal["mean_pool", "cls_pool", "layer_norm", "truncate", "l2_normalize"]
Precision = Literal["fp32", "int8", "q8", "q4"]
PrecisionChoice = Precision | Literal["auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

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


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/model.toml`.

    Raises:
        ManifestInvalid: unreadable, not TOML, or with a missing, unknown or wrong key;
            the message names file, key and remedy.
    """
    path = folder / "model.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ManifestInvalid(f"{path}: cannot be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ManifestInvalid(f"{path}: is not TOML: {exc}") from exc
    try:
        manifest = Manifest.model_validate(_tuples(data))
    except ValidationError as exc:
        raise ManifestInvalid(_explain(path, exc)) from exc
    if manifest.id != folder.name:
        raise ManifestInvalid(
            f"{path}: id is '{manifest.id}' but the folder is '{folder.name}'; give both one name"
        )
    return manifest


def _tuples(value: object) -> object:
    """TOML's arrays as tuples: strict models of frozen tables take no lists."""
    match value:
        case dict():
            table = cast("dict[str, object]", value)
            return {key: _tuples(item) for key, item in table.items()}
        case list():
            return tuple(_tuples(item) for item in cast("list[object]", value))
        case _:
            return value


def _explain(path: Path, exc: ValidationError) -> str:
    """One line for each fault: file, key, what is wrong, what to do."""
    lines: list[str] = []
    for error in exc.errors():
        loc = [str(part) for part in error["loc"]]
        key = ".".join(loc) or "(file)"
        match error["type"]:
            case "extra_forbidden":
                known = _known_keys(loc[:-1])
                near = difflib.get_close_matches(loc[-1], known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
                lines.append(f"{path}: unknown key '{key}'; {hint}")
            case "missing":
                lines.append(f"{path}: key '{key}' is missing; add it")
            case _:
                reason = error["msg"].removeprefix("Value error, ")
                got = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
                lines.append(f"{path}: key '{key}': {reason}{got}")
    return "\n".join(lines)


def _known_keys(loc: Sequence[str]) -> list[str]:
    """Keys of the table at `loc`, found by walking the models' annotations."""
    tables: dict[str, type[BaseModel]] = {
        "": Manifest,
        "tokenizer": TokenizerSpec,
        "prompts": Prompts,
        "output": Output,
        "output.dimensions": Dimensions,
        "wheel": CheckpointFile,
        "hub": HubSource,
        "pypi": PypiSource,
        "files": CheckpointFile,
        "alternatives": CheckpointFile,
        "precisions": PrecisionSpec,
    }
    for name in (".".join(loc), loc[-1] if loc else "", loc[0] if loc else ""):
        if name in tables:
            return sorted(tables[name].model_fields)
    return []


class Catalog:
    """The manifests of every model folder, by id.

    Args:
        folders: folders of model folders; where two hold the same id, the later wins,
            so that an operator can replace a shipped manifest.
        rotary_scaling_factor: in place of the manifests' own, for models that have one.
    """

    def __init__(self, folders: Sequence[Path], rotary_scaling_factor: float | None = None) -> None:
        self._rotary_scaling_factor = rotary_scaling_factor
        self._folders: dict[str, Path] = {}
        for root in folders:
            if not root.is_dir():
                raise ManifestInvalid(
                    f"{root}: no such folder of models; check MATRYO_MODELS, which lists "
                    "folders that hold one folder for each model"
                )
            for path in sorted(root.glob("*/model.toml")):
                self._folders[path.parent.name] = path.parent

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id, sorted."""
        return tuple(sorted(self._folders))

    def folder(self, model_id: str) -> Path:
        """The folder of `model_id`.

        Raises:
            ModelNotFound: no folder has this name.
        """
        if model_id not in self._folders:
            near = difflib.get_close_matches(model_id, self.ids, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ModelNotFound(
                f"no model '{model_id}': {hint}known: {', '.join(self.ids)}. "
                "Add a folder with a model.toml and name its parent in MATRYO_MODELS."
            )
        return self._folders[model_id]

    def manifest(self, model_id: str) -> Manifest:
        """The manifest of `model_id`.

        Raises:
            ModelNotFound: no folder has this name.
            ManifestInvalid: its `model.toml` is not a manifest.
        """
        manifest = read_manifest(self.folder(model_id))
        return manifest.stretched(self._rotary_scaling_factor)


def shipped_models() -> Path:
    """The folder of the models that come with Matryo, in a wheel or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"
