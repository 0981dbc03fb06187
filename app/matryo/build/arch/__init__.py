"""One module or package for each architecture, named after its `model_type`.

Each module defines four names. `Config` validates the manifest's `[architecture]` table. `bind`
gives a checkpoint's tensors the architecture's names. `emit` writes the ONNX graph. `forward`
computes the same hidden states in plain numpy; a build checks the graph against them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from matryo.build.checkpoint import Checkpoint, FloatArray, Weights
from matryo.build.emit import GraphBuilder
from matryo.catalog.manifest import Manifest
from matryo.core.choices import Precision
from matryo.core.errors import ManifestInvalid, UnsupportedArchitecture


class ArchitectureModule(Protocol):
    """The names that every architecture module defines."""

    Config: type[BaseModel]

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


def load(manifest: Manifest) -> tuple[ArchitectureModule, BaseModel]:
    """The module of the manifest's `model_type`, and the manifest's config, validated.

    Raises:
        UnsupportedArchitecture: no module has the name `model_type`, or the module's `Config`
            refuses the manifest's values.
        ManifestInvalid: the manifest allows longer texts than the model has positions, or its
            output steps are for hidden states of another width.
    """
    model_type = manifest.architecture.model_type
    known = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_")
    if model_type not in known:
        raise UnsupportedArchitecture(
            f"{manifest.id}: no graph for model_type '{model_type}'; known: {', '.join(known)}"
        )
    module = cast("ArchitectureModule", importlib.import_module(f"{__name__}.{model_type}"))
    try:
        config = module.Config.model_validate(manifest.architecture.config)
    except ValidationError as exc:
        faults = "; ".join(
            ".".join(["architecture", *map(str, error["loc"])])
            + ": "
            + error["msg"].removeprefix("Value error, ")
            for error in exc.errors()
        )
        raise UnsupportedArchitecture(f"{manifest.id}: model.toml: {faults}") from exc
    positions = cast("int", cast("Any", config).max_position_embeddings)
    if manifest.tokenizer.max_tokens > positions:
        raise ManifestInvalid(
            f"{manifest.id}: model.toml says tokenizer.max_tokens = "
            f"{manifest.tokenizer.max_tokens}, but architecture.max_position_embeddings = "
            f"{positions}. Lower max_tokens to {positions} or less."
        )
    hidden_size = getattr(config, "hidden_size", None)
    width = manifest.output.graph_width
    if hidden_size not in (None, width) and not manifest.output.given:
        key = "output.dense" if manifest.output.dense else "output.dimensions"
        raise ManifestInvalid(
            f"{manifest.id}: {key} in model.toml is for hidden states of {width} components, but "
            f"architecture.hidden_size = {hidden_size}. Correct one of them."
        )
    return module, config
