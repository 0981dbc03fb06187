"""One module or package for each architecture, named after its `model_type`.

Each has, under these names: `Config` (its part of the manifest), `bind` (a checkpoint
under its own tensor names), `emit` (the graph) and `forward` (the same in plain numpy:
what the graph is checked against).
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
from matryo.core.errors import UnsupportedArchitecture


class ArchitectureModule(Protocol):
    """What every module here defines."""

    Config: type[BaseModel]

    def bind(self, checkpoint: Checkpoint, config: Any) -> Weights:  # noqa: ANN401
        """`checkpoint` under the architecture's own names."""
        ...

    def emit(
        self,
        graph: GraphBuilder,
        weights: Weights,
        config: Any,  # noqa: ANN401
        precision: Precision,
    ) -> None:
        """Write the whole graph, from `input_ids` to `last_hidden_state`."""
        ...

    def forward(
        self,
        weights: Weights,
        config: Any,  # noqa: ANN401
        texts: Sequence[NDArray[np.int64]],
    ) -> list[FloatArray]:
        """Hidden states `(T, H)` of each text; reads every weight once."""
        ...


def load(manifest: Manifest) -> tuple[ArchitectureModule, BaseModel]:
    """The module of the manifest's `model_type`, and the config it made of the manifest.

    Raises:
        UnsupportedArchitecture: no such module, or a config it has no graph for.
    """
    model_type = manifest.architecture.model_type
    known = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_")
    if model_type not in known:
        raise UnsupportedArchitecture(
            f"{manifest.id}: no graph for model_type '{model_type}'; known: {', '.join(known)}"
        )
    module = cast("ArchitectureModule", importlib.import_module(f"{__name__}.{model_type}"))
    try:
        return module, module.Config.model_validate(manifest.architecture.config)
    except ValidationError as exc:
        faults = "; ".join(
            ".".join(["architecture", *map(str, error["loc"])])
            + ": "
            + error["msg"].removeprefix("Value error, ")
            for error in exc.errors()
        )
        raise UnsupportedArchitecture(f"{manifest.id}: model.toml: {faults}") from exc
