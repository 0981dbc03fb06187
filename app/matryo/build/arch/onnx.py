"""`model_type = "onnx"`: a graph that another tool exported, served as it is.

Nothing is built from weights here. The config has the width of a vector alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from matryo.build.arch._counts import Count
from matryo.build.arch._keys import Key
from matryo.build.checkpoint import Checkpoint
from matryo.core.errors import CheckpointMismatch


class Config(BaseModel):
    """What a manifest says of a ready graph.

    Attributes:
        hidden_size: width of a state that the graph gives.
        pad_token_id: of a model whose positions begin behind this id; None for any other model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden_size: Count
    pad_token_id: Annotated[int, Field(ge=0, le=1 << 22)] | None = None

    @property
    def max_tokens(self) -> None:
        """None: the graph itself shows how many positions it has."""


HUB_KEYS: Mapping[str, Key] = {"hidden_size": Key(("hidden_size", "dim", "d_model", "n_embd"))}
HUB_FIXED: Mapping[str, tuple[object, ...]] = {}
GGUF_ARCHITECTURES: Sequence[str] = ()
GGUF_KEYS: Mapping[str, Key] = {}


def from_gguf(checkpoint: Checkpoint) -> NoReturn:
    """Refuse a GGUF file."""
    raise _no_weights(checkpoint)


def bind(checkpoint: Checkpoint, config: Config) -> NoReturn:  # noqa: ARG001 - the protocol's
    """Refuse weights.

    Raises:
        CheckpointMismatch: always.
    """
    raise _no_weights(checkpoint)


def emit(*_: object) -> NoReturn:
    """Never called: `bind` refuses every checkpoint before."""
    raise AssertionError


def forward(*_: object) -> NoReturn:
    """Never called: `bind` refuses every checkpoint before."""
    raise AssertionError


def _no_weights(checkpoint: Checkpoint) -> CheckpointMismatch:
    names = ", ".join(sorted(checkpoint.names)[:2])
    return CheckpointMismatch(
        f"a model of model_type 'onnx' is an .onnx file, but these are weights ({names}, ...). "
        "Give the .onnx file."
    )
