"""One module or package for each architecture, named after its `model_type`.

`Config` validates the manifest's `[architecture]` table; it has a property `max_tokens` if the
longest text is not `max_position_embeddings` tokens long. `bind` gives a checkpoint's tensors the
architecture's names. `emit` writes the ONNX graph. `forward` computes the same hidden states in
plain numpy; a build checks the graph against them. Tables say where `config.json` and the metadata
of a GGUF file have each key of the config.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from matryo.build.arch._keys import Key
from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import ManifestInvalid, UnsupportedArchitecture

if TYPE_CHECKING:
    from matryo.build.checkpoint.gguf import GgufCheckpoint


class ArchitectureModule(Protocol):
    """The names that every architecture module defines.

    Attributes:
        Config: validates the manifest's `[architecture]` table; has a `hidden_size`.
        HUB_KEYS: where `config.json` has each key of the config.
        HUB_FIXED: keys of `config.json` that change the result, and the values that the graph
            computes.
        GGUF_ARCHITECTURES: values of `general.architecture` in GGUF files; may be empty.
        GGUF_KEYS: where the metadata of a GGUF file have each key of the config; `{arch}` stands
            for the value of `general.architecture`.
    """

    Config: type[BaseModel]
    HUB_KEYS: Mapping[str, Key]
    HUB_FIXED: Mapping[str, tuple[object, ...]]
    GGUF_ARCHITECTURES: Sequence[str]
    GGUF_KEYS: Mapping[str, Key]

    def from_gguf(self, checkpoint: GgufCheckpoint) -> dict[str, object]:
        """Values of the config that the tensors of a GGUF file show."""
        ...

    def bind(self, checkpoint: Checkpoint, config: Any) -> Weights:  # noqa: ANN401
        """The tensors of `checkpoint`, under the architecture's names."""
        ...

    def emit(
        self,
        graph: GraphBuilder,
        weights: Weights,
        config: Any,  # noqa: ANN401
        precision: Precision,
    ) -> None:
        """Write the nodes of the graph, from `input_ids` to `last_hidden_state`."""
        ...

    def forward(
        self,
        weights: Weights,
        config: Any,  # noqa: ANN401
        texts: Sequence[NDArray[np.int64]],
    ) -> list[FloatArray]:
        """Hidden states of each text, `(T, H)` float32, computed in numpy."""
        ...


MODEL_TYPES: Mapping[str, str] = {
    "bert": "bert",
    "camembert": "xlm_roberta",
    "distilbert": "distilbert",
    "gte": "new",
    "model2vec": "model2vec",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "new": "new",
    "nomic_bert": "nomic_bert",
    "qwen3": "qwen3",
    "roberta": "xlm_roberta",
    "xlm-roberta": "xlm_roberta",
}
"""The module of each `model_type` in a `config.json`."""

SAME_GRAPH: Mapping[str, str] = {"roberta": "xlm_roberta"}
"""Modules that are other names of one module."""

CAUSAL = frozenset({"qwen3"})
"""The modules of decoders, whose vector is the last token's state unless a file says otherwise."""

PAD_FIRST = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})
"""Values of `model_type` in a `config.json` whose positions begin behind the padding token's id."""

STATIC = frozenset({"model2vec"})
"""The modules of tables without a transformer, whose texts have no special tokens."""


def known() -> list[str]:
    """The names of the modules, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_")


def module(model_type: str) -> ArchitectureModule:
    """The module of this name, one of `known()`."""
    return cast("ArchitectureModule", importlib.import_module(f"{__name__}.{model_type}"))


def load(manifest: Manifest) -> tuple[ArchitectureModule, BaseModel]:
    """The module of the manifest's `model_type`, and the manifest's config, validated.

    Raises:
        UnsupportedArchitecture: no module has the name `model_type`, or the module's `Config`
            refuses the manifest's values.
        ManifestInvalid: the manifest allows longer texts than the model has positions, or its
            output steps are for hidden states of another width.
    """
    model_type = manifest.architecture.model_type
    if model_type not in known():
        raise UnsupportedArchitecture(
            f"{manifest.id}: no graph for model_type '{model_type}'; known: {', '.join(known())}"
        )
    try:
        config = validated(model_type, manifest.architecture.config)
    except UnsupportedArchitecture as exc:
        raise UnsupportedArchitecture(f"{manifest.id}: model.toml: {exc.message}") from exc
    most = max_tokens(config)
    if most is not None and manifest.tokenizer.max_tokens > most:
        positions = cast("Any", config).max_position_embeddings
        reason = f"architecture.max_position_embeddings = {positions}"
        if most < positions:
            reason += f" leaves positions for {most} tokens"
        raise ManifestInvalid(
            f"{manifest.id}: model.toml says tokenizer.max_tokens = "
            f"{manifest.tokenizer.max_tokens}, but {reason}. Lower max_tokens to {most} or less."
        )
    hidden_size = cast("Any", config).hidden_size
    width = manifest.output.graph_width
    if hidden_size != width and not manifest.output.given:
        key = "output.dense" if manifest.output.dense else "output.dimensions"
        raise ManifestInvalid(
            f"{manifest.id}: {key} in model.toml is for hidden states of {width} components, but "
            f"architecture.hidden_size = {hidden_size}. Correct one of them."
        )
    return module(model_type), config


def validated(model_type: str, values: Mapping[str, Any]) -> BaseModel:
    """The config of an architecture.

    Raises:
        UnsupportedArchitecture: the module's `Config` refuses a value; the message names each.
    """
    try:
        # Strict models of frozen tables take no lists.
        frozen = {
            key: tuple(cast("list[object]", value)) if isinstance(value, list) else value
            for key, value in values.items()
        }
        return module(model_type).Config.model_validate(frozen)
    except ValidationError as exc:
        faults = "; ".join(
            ".".join(["architecture", *map(str, error["loc"])])
            + ": "
            + error["msg"].removeprefix("Value error, ")
            for error in exc.errors()
        )
        raise UnsupportedArchitecture(faults) from exc


def max_tokens(config: BaseModel) -> int | None:
    """Tokens of the longest text that a model has positions for; None for any number."""
    open_config = cast("Any", config)
    if hasattr(open_config, "max_tokens"):
        return cast("int | None", open_config.max_tokens)
    return cast("int | None", open_config.max_position_embeddings)
