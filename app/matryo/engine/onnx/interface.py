"""Inputs and outputs of a graph, built by Matryo or exported by another tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matryo.catalog.output import Output

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
TOKEN_TYPE_IDS, POSITION_IDS, APPLY_MASK = "token_type_ids", "position_ids", "apply_mask"
LAST_HIDDEN_STATE = "last_hidden_state"

REQUIRED_INPUTS = (INPUT_IDS, ATTENTION_MASK)
OPTIONAL_INPUTS = (TOKEN_TYPE_IDS, POSITION_IDS, APPLY_MASK)
"""Inputs that a graph may declare: token types, which are always 0; positions, which count from 0;
and a boolean that says whether attention uses the mask."""

SOLO_TOKENS = 512
"""A text with more tokens than this runs alone and without a mask. Any other text has a mask.

Attention with a mask holds a score matrix (T, T) for each head: 12 x 8192² float32 are 3.2 GB.
The rule depends on a text's own length only, because a text's vector may not depend on the other
texts of its batch. A graph may rely on the rule.
"""

# Optimum and transformers.js write the first name, sentence-transformers the second.
HIDDEN_STATES = (LAST_HIDDEN_STATE, "token_embeddings")
# sentence-transformers writes this name for one vector a text.
VECTORS = ("sentence_embedding",)
"""Usual names of the output with a vector for each text."""

_INTEGERS = ("int64", "int32")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output that a graph declares.

    Attributes:
        name: as the graph spells it.
        dtype: ONNX's name of the type of a value, such as `int64`.
        dims: the declared shape, None for each dimension of any size; None if the graph does not
            declare the number of dimensions.
    """

    name: str
    dtype: str
    dims: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """The way to run a graph.

    Attributes:
        dtypes: type of each input of shape `(B, T)`, by name.
        takes_apply_mask: whether the graph has the input `apply_mask`. A graph that Matryo built
            has that input, and computes no padding but in attention.
        output: name of the output to read.
        gives_vectors: whether that output has one row for each text, `(B, H)`, and not one for
            each token, `(B, T, H)`.
        one_by_one: whether each text runs alone, which holds for every graph of another tool.
            Such a graph may add numbers in an order that depends on the longest text of a batch.
        n_tokens: the only number of tokens that the graph runs; None if it runs any number.
    """

    dtypes: Mapping[str, str]
    takes_apply_mask: bool
    output: str
    gives_vectors: bool
    one_by_one: bool
    n_tokens: int | None


def plan_graph(
    inputs: Sequence[Port], outputs: Sequence[Port], output: Output | None = None
) -> GraphPlan:
    """The way to run a graph with these inputs and outputs.

    Args:
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        output: the manifest's output; None reads the hidden states under their usual names.

    Raises:
        ValueError: a required input is missing, an input is unknown or cannot be fed, or no
            output has the wanted name and number of dimensions.
    """
    names = [port.name for port in inputs]
    known = (*REQUIRED_INPUTS, *OPTIONAL_INPUTS)
    if missing := [name for name in REQUIRED_INPUTS if name not in names]:
        raise ValueError(f"the graph has no input {missing}, only {sorted(names)}")
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"the graph has the inputs {unknown}; only {list(known)} can be fed")
    fed = [port for port in inputs if port.name != APPLY_MASK]
    for port in fed:
        if port.dtype not in _INTEGERS:
            raise ValueError(
                f"the graph's input '{port.name}' is {port.dtype}; only {' and '.join(_INTEGERS)} "
                "can be fed"
            )
        if port.dims is not None and len(port.dims) != 2:  # noqa: PLR2004
            raise ValueError(
                f"the graph's input '{port.name}' has {len(port.dims)} dimensions, but must have "
                "2: texts and tokens"
            )
    shapes = [port.dims for port in fed if port.dims is not None]
    n_texts = _fixed("texts", (dims[0] for dims in shapes))
    n_tokens = _fixed("tokens", (dims[1] for dims in shapes))
    if n_texts not in (None, 1):
        raise ValueError(
            f"the graph runs {n_texts} texts at once and no other number; export the graph for "
            "any number of texts, or for 1"
        )
    if n_tokens == 1:
        raise ValueError("the graph runs texts of 1 token only; export the graph for any number")
    gives_vectors = output is not None and output.given
    return GraphPlan(
        {port.name: port.dtype for port in fed},
        APPLY_MASK in names,
        _output_name(outputs, output, gives_vectors=gives_vectors),
        gives_vectors,
        one_by_one=APPLY_MASK not in names,
        n_tokens=n_tokens,
    )


def _fixed(what: str, sizes: Iterable[int | None]) -> int | None:
    """The one fixed size of a dimension; None if every input has any size there.

    Raises:
        ValueError: two inputs have two fixed sizes.
    """
    found = sorted({size for size in sizes if size is not None and size > 0})
    if len(found) > 1:
        raise ValueError(f"the graph's inputs are for {found} {what}, which must be one number")
    return found[0] if found else None


def _output_name(outputs: Sequence[Port], output: Output | None, *, gives_vectors: bool) -> str:
    """Name of the output to read; see `plan_graph`."""
    usual = VECTORS if gives_vectors else HIDDEN_STATES
    wanted = (output.graph_output,) if output and output.graph_output else usual
    by_name = {port.name: port for port in outputs}
    name = next((name for name in wanted if name in by_name), None)
    if name is None:
        raise ValueError(
            f"the graph has the outputs {list(by_name)}, none of {list(wanted)}. Name the output "
            "with output.graph_output in model.toml; if it has one row for each text, begin "
            "output.steps with given"
        )
    dims = by_name[name].dims
    n_dims = 2 if gives_vectors else 3
    if dims is not None and len(dims) != n_dims:
        first = "a pool" if gives_vectors else "given"
        raise ValueError(
            f"the graph's output '{name}' has {len(dims)} dimensions, but output.steps of "
            f"model.toml is for {n_dims}. Begin output.steps with {first}, or name another output "
            "with output.graph_output"
        )
    return name
