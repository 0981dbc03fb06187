"""Tiny models of the architectures, one module for each `model_type`.

A module defines:

    CONFIG          the manifest's `[architecture]` of a tiny model, without `model_type`
    VARIANTS        changes of CONFIG, by a name for the test
    DIGEST          of the graphs of every variant; see `test_builder_version_is_pinned`
    tensors         a checkpoint with random weights, under the names of the files on the hub
    hidden_states   the forward in float64, loop by loop, from the paper: the reference of the graph
    gguf_tensors    the tensors as llama.cpp's conversion has them; only if llama.cpp knows the model

`tests.checkpoints` and `tests.reference` hold what the modules share, and `bert` and `nomic_bert`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray


class TinyArchitecture(Protocol):
    """The names that every module here defines."""

    CONFIG: Mapping[str, Any]
    VARIANTS: Mapping[str, Mapping[str, Any]]
    DIGEST: str

    def tensors(self, config: Mapping[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
        """A checkpoint with random weights."""
        ...

    def hidden_states(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, NDArray[np.float64]],
        ids: list[int],
    ) -> NDArray[np.float64]:
        """The last hidden states of one text, `(T, H)`."""
        ...


MODEL_TYPES = tuple(
    sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name[0] != "_")
)


def of(model_type: str) -> TinyArchitecture:
    """The module of a `model_type`."""
    return cast("TinyArchitecture", importlib.import_module(f"{__name__}.{model_type}"))


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """`model_type` and changes of the config of each variant, by its name."""
    return {
        f"{model_type}-{name}": (model_type, dict(changes))
        for model_type in MODEL_TYPES
        for name, changes in of(model_type).VARIANTS.items()
    }
