"""Everything that a checkpoint says of itself, from its own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matryo.build import arch
from matryo.build.arch.model2vec import HUB_SHAPES
from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.checkpoint.onnx import gives_vectors_only, read_ready_graph
from matryo.build.derive.config import gguf_facts, gguf_module, hub_facts, model_type_of
from matryo.build.derive.files import CheckpointLayout
from matryo.build.derive.modules import (
    OutputFacts,
    PromptFacts,
    output_facts,
    prompt_facts,
    trained_sizes,
)
from matryo.build.derive.said import Said
from matryo.build.derive.tokens import lowercases, own_truncation, token_limit
from matryo.build.inputs import open_checkpoint
from matryo.catalog.output import Dimensions, Output
from matryo.core.errors import CheckpointMismatch

READY = "onnx"
"""`model_type` of a ready graph, which computes by itself."""

STATIC_MAX_TOKENS = 1 << 15
"""Most tokens of a text for a static table, which has no limit of its own."""

_GIVEN = Output(
    steps=("given", "truncate", "l2_normalize"),
    dimensions=Dimensions(native=1, trained=(1,), cut=False),
)

GGUF_POOLS = {1: "mean_pool", 2: "cls_pool", 3: "last_token_pool"}
"""The step of each `pooling_type` in a GGUF file that gives one vector for a text.

Source: llama.cpp, `enum llama_pooling_type`."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a checkpoint says of itself.

    Attributes:
        layout: the files.
        model_type: the architecture.
        architecture: values of the architecture's config, by key.
        output: the steps after the transformer.
        prompts: prompts, and the default size.
        max_tokens: most tokens of a text.
        lowercase: who says that a text is put in lower case first; None if nobody does.
        sizes: sizes that the model was trained to be cut to; None if no file says.
        special_tokens: False for a static table, whose texts have no special tokens.
        drop_unknown: whether unknown tokens are left out of a text, as model2vec does.
        license: what the model's card says.
        warnings: what an operator should know of the model.
        data: data files of a ready graph.
    """

    layout: CheckpointLayout
    model_type: Said
    architecture: Mapping[str, Said]
    output: OutputFacts
    prompts: PromptFacts
    max_tokens: Said
    lowercase: Said | None = None
    sizes: Said | None = None
    special_tokens: bool = True
    drop_unknown: bool = False
    license: str = "unknown"
    warnings: tuple[str, ...] = field(default=())
    data: tuple[Path, ...] = ()


def read_facts(layout: CheckpointLayout) -> Facts:
    """Read every file of a checkpoint that says something of the model.

    Raises:
        CheckpointMismatch: a fact is missing, cannot be read, or is one that Matryo does not
            compute.
        UnsupportedArchitecture: there is no graph for the model.
    """
    if layout.suffix == ".gguf":
        return _from_gguf(layout)
    if layout.suffix == ".onnx":
        return _from_onnx(layout)
    return _from_folder(layout)


def _from_folder(layout: CheckpointLayout) -> Facts:
    config = layout.inner_json("config.json")
    if layout.modules and layout.modules[0].kind == "StaticEmbedding":
        model_type = Said("model2vec", "modules.json", "StaticEmbedding")
    elif not config.exists:
        raise CheckpointMismatch(
            f"{config.path} is missing, and nothing else tells how the weights compute. Put the "
            "model's own config.json beside the weights."
        )
    else:
        model_type = model_type_of(config)
    module = arch.module(model_type.value)
    is_static = model_type.value in arch.STATIC
    facts = _from_shapes(layout) if is_static else hub_facts(module, config)
    output = output_facts(layout, causal=model_type.value in arch.CAUSAL)
    prompts = prompt_facts(layout)
    positions = _positions(model_type.value, facts)
    if is_static:
        none = Said(STATIC_MAX_TOKENS, "(no file)", "a static table has no limit")
        positions = own_truncation(layout) or none
    return Facts(
        layout,
        model_type,
        facts,
        output,
        prompts,
        token_limit(layout, positions),
        lowercases(layout),
        trained_sizes(layout),
        special_tokens=not is_static,
        drop_unknown=is_static and layout.modules is None,
        license=_license(layout),
        warnings=tuple(_warnings(output, prompts)),
    )


def _warnings(output: OutputFacts, prompts: PromptFacts) -> Iterator[str]:
    similarity = prompts.similarity
    if not output.normalized:
        yield (
            "the checkpoint has no Normalize; vectors have unit length all the same, as OpenAI's do"
        )
        if similarity and similarity.value not in ("cosine", None):
            yield (
                f"{similarity.where} is {similarity.value!r}: vectors of unit length may rank "
                "otherwise than the model's own"
            )
    for theirs, ours in prompts.renamed.items():
        yield f"the prompt {theirs!r} is called {ours!r} here"


def _from_shapes(layout: CheckpointLayout) -> dict[str, Said]:
    """The config of a static table, which the shapes of its tensors alone tell."""
    path = layout.root / layout.weights
    checkpoint = open_checkpoint(path)
    try:
        shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    finally:
        checkpoint.close()
    facts: dict[str, Said] = {}
    for ours, places in HUB_SHAPES.items():
        for name, axis in places:
            if len(shapes.get(name, ())) > axis:
                facts[ours] = Said(shapes[name][axis], layout.weights, f"shape of {name}")
                break
        else:
            raise CheckpointMismatch(
                f"{path} has none of the tensors {', '.join(name for name, _ in places)}, which a "
                "static table has. Fetch the file again."
            )
    return facts


def _positions(model_type: str, facts: Mapping[str, Said]) -> Said | None:
    """How many tokens the model has positions for; None for any number.

    Raises:
        UnsupportedArchitecture: the graph cannot compute such a model.
    """
    config = arch.validated(model_type, {key: said.value for key, said in facts.items()})
    most = arch.max_tokens(config)
    if most is None:
        return None
    said = facts["max_position_embeddings"]
    return Said(most, said.file, said.key)


def _from_gguf(layout: CheckpointLayout) -> Facts:
    checkpoint = GgufCheckpoint(layout.root / layout.weights)
    try:
        model_type = gguf_module(checkpoint)
        module = arch.module(model_type.value)
        facts = gguf_facts(module, checkpoint)
        name = checkpoint.text("general.architecture") or ""
        pool = checkpoint.integer(f"{name}.pooling_type")
        license_name = checkpoint.text("general.license") or "unknown"
    finally:
        checkpoint.close()
    key = f"{name}.pooling_type"
    if pool not in GGUF_POOLS:
        raise CheckpointMismatch(
            f"{checkpoint.path}: {key} is {pool}, but must be 1 (mean), 2 (the first token) or 3 "
            "(the last token). Convert the model again with its sentence-transformers files."
        )
    output = OutputFacts(Said((GGUF_POOLS[pool],), layout.weights, key))
    limit = _positions(model_type.value, facts)
    if limit is None:
        raise CheckpointMismatch(
            f"{checkpoint.path} does not say how long a text may be. Convert the model again with "
            "llama.cpp's convert_hf_to_gguf.py."
        )
    return Facts(layout, model_type, facts, output, PromptFacts(), limit, license=license_name)


def _from_onnx(layout: CheckpointLayout) -> Facts:
    path = layout.root / layout.weights
    pools_itself = gives_vectors_only(path)
    ready = read_ready_graph(path, _GIVEN if pools_itself else None)
    config = layout.inner_json("config.json")
    width = config.said("hidden_size", "dim", "d_model", "n_embd")
    if width is None or type(width.value) is not int:
        raise CheckpointMismatch(
            f"{config.path} has no hidden_size, so that nothing tells the width of a vector. Put "
            "the model's own config.json beside the graph or above its folder."
        )
    facts, after = {"hidden_size": width}, 0
    kind, pad = config.said("model_type"), config.said("pad_token_id")
    if kind and kind.value in arch.PAD_FIRST:
        if pad is None or type(pad.value) is not int:
            pad = Said(1, config.name, "pad_token_id (the default)")
        facts["pad_token_id"], after = pad, pad.value + 1
    positions: list[Said] = []
    said = config.said("max_position_embeddings", "n_positions")
    if said is not None and type(said.value) is int:
        positions.append(Said(said.value - after, said.file, said.key))
    for most, key in ((ready.n_positions, "table of positions"), (ready.n_tokens, "fixed shape")):
        if most is not None:
            positions.append(Said(most, layout.weights, key))
    output = output_facts(layout, causal=False)
    if pools_itself:
        output = OutputFacts(Said(("given",), layout.weights, "sentence_embedding"))
    prompts = prompt_facts(layout)
    limit = token_limit(layout, min(positions, key=lambda said: said.value, default=None))
    return Facts(
        layout,
        Said(READY, layout.weights, "a ready graph"),
        facts,
        output,
        prompts,
        limit,
        lowercases(layout),
        trained_sizes(layout),
        license=_license(layout),
        warnings=tuple(_warnings(output, prompts)),
        data=ready.data,
    )


def _license(layout: CheckpointLayout) -> str:
    """The licence in the front matter of the model's card; `unknown` if there is none."""
    try:
        with (layout.root / "README.md").open(encoding="utf-8", errors="replace") as card:
            lines = [card.readline(4096) for _ in range(200)]
    except OSError:
        return "unknown"
    if lines[0].strip() != "---":
        return "unknown"
    for line in lines[1:]:
        if line.strip() == "---":
            break
        name, _, value = line.partition(":")
        if name == "license" and value.strip():
            return value.strip().strip("'\"")[:64]
    return "unknown"
