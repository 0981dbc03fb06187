"""The `[output]` table of a `model.toml`: the steps from a graph's output to a vector."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Pool = Literal[
    "mean_pool",
    "cls_pool",
    "max_pool",
    "last_token_pool",
    "weighted_mean_pool",
    "mean_sqrt_len_pool",
]
OutputStep = Pool | Literal["given", "dense", "layer_norm", "truncate", "l2_normalize"]
Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid", "silu"]

_POOLS = frozenset(get_args(Pool))
_BETWEEN = frozenset({"dense", "layer_norm", "l2_normalize"})
_LAST = ("truncate", "l2_normalize")
_MAX_STEPS = 64

Positive = Annotated[int, Field(ge=1, le=1 << 48)]
# A plain relative path: no part begins with a dot, so none is "..".
PlainFile = Annotated[str, Field(pattern=r"^(\w[\w.-]*/)*\w[\w.-]*$")]


class Table(BaseModel):
    """A table of the manifest: frozen, no unknown keys, no coercion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Dimensions(Table):
    """How many components a vector has.

    Attributes:
        native: the model's own number of components, which is the largest.
        trained: numbers that the model was trained to be cut to, largest first; `native` is
            the first of them.
        cut: whether a caller may ask for fewer components than `native`.
        default: of a caller that asks for no number; None for `native`.
    """

    native: Positive
    trained: tuple[Positive, ...]
    cut: bool
    default: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Dimensions:
        if self.default is not None and (self.default > self.native or not self.cut):
            raise ValueError(
                f"default is {self.default}, but must be at most native, {self.native}, and needs "
                "cut = true"
            )
        if not self.trained or self.trained[0] != self.native:
            msg = f"must begin with native, {self.native}, and lists {list(self.trained)}"
            raise ValueError(f"trained {msg}")
        if list(self.trained) != sorted(set(self.trained), reverse=True):
            raise ValueError(f"trained must be descending and distinct: {list(self.trained)}")
        return self


class DenseSpec(Table):
    """A linear layer of the output steps, as sentence-transformers' module `Dense` has it.

    Attributes:
        file: path of the layer's safetensors file in the checkpoint's folder.
        in_features: components that the layer takes.
        out_features: components that the layer gives.
        bias: whether the layer has a bias.
        activation: function of each component that the layer gives.
    """

    file: PlainFile
    in_features: Positive
    out_features: Positive
    bias: bool
    activation: Activation


class Output(Table):
    """The steps from a graph's output to a vector, in order, and the dimensions on offer.

    Attributes:
        steps: one or more pools, whose results are joined in this order, or `given` for a graph
            that gives a vector for each text; then any of `dense`, `layer_norm` and
            `l2_normalize`; then `truncate` and `l2_normalize`.
        layer_norm_eps: of every step `layer_norm`.
        dense: the layer of each step `dense`, in order.
        graph_output: name of the output that a ready graph's vectors are made of; None for the
            usual names.
        dimensions: of the vectors.
    """

    steps: Annotated[tuple[OutputStep, ...], Field(max_length=_MAX_STEPS)]
    layer_norm_eps: Annotated[float, Field(gt=0)] | None = None
    dense: tuple[DenseSpec, ...] = ()
    graph_output: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    dimensions: Dimensions

    @model_validator(mode="after")
    def _check(self) -> Output:
        n_first = 1 if self.given else len(self.pools)
        if (
            not n_first
            or self.steps[n_first:][-2:] != _LAST
            or not _BETWEEN.issuperset(self.between)
        ):
            # A layer norm after the cut gives other vectors.
            raise ValueError(
                f"steps must be pools ({', '.join(get_args(Pool))}) or given, then any of dense, "
                "layer_norm and l2_normalize, then truncate and l2_normalize, in this order, not "
                f"{list(self.steps)}"
            )
        if ("layer_norm" in self.steps) != (self.layer_norm_eps is not None):
            raise ValueError("layer_norm_eps belongs with the step layer_norm, both or neither")
        if (n_steps := self.steps.count("dense")) != len(self.dense):
            raise ValueError(
                f"steps has dense {n_steps} times, but there are {len(self.dense)} tables "
                "[[output.dense]]; give one table for each such step"
            )
        self._check_widths()
        return self

    def _check_widths(self) -> None:
        """Raise ValueError unless each step takes as many components as the step before gives."""
        width = self.pooled_width
        if width % max(len(self.pools), 1):
            what = "output.dense 1: in_features" if self.dense else "dimensions.native"
            raise ValueError(f"{what} is {width}, which {len(self.pools)} pools cannot give")
        for number, layer in enumerate(self.dense, 1):
            if layer.in_features != width:
                raise ValueError(
                    f"output.dense {number}: in_features is {layer.in_features}, but the layer "
                    f"before gives {width} components"
                )
            width = layer.out_features
        if width != self.dimensions.native:
            raise ValueError(
                f"dimensions.native is {self.dimensions.native}, but output.dense "
                f"{len(self.dense)} gives {width} components"
            )

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools, in the order in which their results are joined."""
        first = itertools.takewhile(lambda step: step in _POOLS, self.steps)
        return cast("tuple[Pool, ...]", tuple(first))

    @property
    def given(self) -> bool:
        """Whether the graph gives a vector for each text, and not one for each token."""
        return self.steps[:1] == ("given",)

    @property
    def between(self) -> tuple[OutputStep, ...]:
        """The steps between the pools, or `given`, and `truncate`."""
        return self.steps[max(len(self.pools), 1) : -2]

    @property
    def pooled_width(self) -> int:
        """Components of a text's state after the pools."""
        return self.dense[0].in_features if self.dense else self.dimensions.native

    @property
    def graph_width(self) -> int:
        """Components of one row of the graph's output."""
        return self.pooled_width // max(len(self.pools), 1)
