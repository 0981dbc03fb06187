"""A manifest held against what the checkpoint's own files say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from matryo.build import arch
from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.derive.config import gguf_facts, gguf_module, hub_facts, model_type_of, same
from matryo.build.derive.facts import GGUF_POOLS, READY
from matryo.build.derive.files import CheckpointLayout
from matryo.build.derive.modules import output_facts, prompt_facts
from matryo.build.derive.said import Said, shown
from matryo.build.derive.tokens import tokenizer_contradictions
from matryo.build.limits import MAX_SPARE_ROWS
from matryo.catalog.manifest import Manifest
from matryo.core.errors import CheckpointMismatch, UnsupportedArchitecture

# Two ways to say which layers have local attention; the first one counts.
_LAYER_KINDS = ("layer_types", "global_attn_every_n_layers")
_Check = Callable[[Manifest, CheckpointLayout], Iterator[str]]


def contradictions(manifest: Manifest, layout: CheckpointLayout) -> list[str]:
    """What the files say that the manifest says otherwise; each with file, key and both values.

    A file that is missing says nothing.

    Args:
        manifest: the model.
        layout: the checkpoint that the model is built from.
    """
    return [
        *_collected(_architecture, manifest, layout),
        *_collected(_output, manifest, layout),
        *_collected(_prompts, manifest, layout),
        *_collected(_tokenizer, manifest, layout),
    ]


def _collected(check: _Check, manifest: Manifest, layout: CheckpointLayout) -> Iterator[str]:
    """The sentences of one check; a file that describes what no graph computes is one too."""
    try:
        yield from check(manifest, layout)
    except (CheckpointMismatch, UnsupportedArchitecture) as exc:
        yield exc.message.rstrip(".")


def _architecture(manifest: Manifest, layout: CheckpointLayout) -> Iterator[str]:
    ours = manifest.architecture.model_type
    if ours == READY:
        return
    if layout.suffix == ".gguf":
        checkpoint = GgufCheckpoint(layout.root / layout.weights)
        try:
            model_type = gguf_module(checkpoint)
            yield from _differing(
                manifest,
                model_type,
                lambda: gguf_facts(arch.module(model_type.value), checkpoint),
                arch.module(ours).GGUF_KEYS,
            )
        finally:
            checkpoint.close()
        return
    config = layout.inner_json("config.json")
    if ours in arch.STATIC and layout.modules and layout.modules[0].kind == "StaticEmbedding":
        return
    if config.said("model_type") is None:
        return
    model_type = model_type_of(config)
    yield from _differing(
        manifest,
        model_type,
        lambda: hub_facts(arch.module(model_type.value), config),
        arch.module(ours).HUB_KEYS,
    )


def _differing(
    manifest: Manifest,
    model_type: Said,
    read: Callable[[], dict[str, Said]],
    keys: Mapping[str, arch.Key],
) -> Iterator[str]:
    """The keys of the config that the manifest and a file have otherwise."""
    ours = manifest.architecture.model_type
    if model_type.value != arch.SAME_GRAPH.get(ours, ours):
        yield _sentence(model_type, "architecture.model_type", ours)
        return
    _, config = arch.load(manifest)
    values = config.model_dump()
    facts = read()
    for key, said in facts.items():
        soft = (key in keys and keys[key].soft) or key in _LAYER_KINDS
        if key in values and not soft and not _fits(key, values[key], said.value):
            yield _sentence(said, f"architecture.{key}", values[key])
    yield from _layer_kinds(config, facts)


def _layer_kinds(config: Any, facts: Mapping[str, Said]) -> Iterator[str]:  # noqa: ANN401
    """The layers whose attention is local, which a config may tell in two ways."""
    said = [facts[key] for key in _LAYER_KINDS if key in facts]
    # The default of a reader says nothing of the file.
    found = [fact for fact in said if fact.value and not fact.key.endswith("(the default)")]
    if not found or not hasattr(config, "is_local"):
        return
    ours = [config.is_local(i) for i in range(config.num_hidden_layers)]
    kinds = found[0].value
    if found[0].key.endswith("layer_types"):
        theirs = [kind == "sliding_attention" for kind in cast("list[object]", kinds)]
    else:
        theirs = [bool(i % cast("int", kinds)) for i in range(len(ours))]
    if ours != theirs:
        local = [i for i, is_local in enumerate(ours) if is_local]
        yield (
            f"{found[0].where} is {shown(kinds)}, but by model.toml the layers {shown(local)} have "
            "local attention"
        )


def _fits(key: str, ours: object, theirs: object) -> bool:
    """Whether two values of a key are one; the padding of a word table may differ."""
    if key == "vocab_size" and isinstance(ours, int) and isinstance(theirs, int):
        return abs(ours - theirs) <= MAX_SPARE_ROWS
    return same(ours, theirs)


def _output(manifest: Manifest, layout: CheckpointLayout) -> Iterator[str]:
    steps = manifest.output.steps
    pools = manifest.output.pools
    if layout.suffix == ".gguf":
        yield from _gguf_pool(layout, pools)
        return
    if layout.modules is None or manifest.output.given:
        return
    output = output_facts(layout, causal=False)
    if tuple(output.pools.value) != pools:
        yield (
            f"{output.pools.where} is {', '.join(output.pools.value)}, but model.toml says "
            f"output.steps = {list(steps)}"
        )
    theirs = tuple(layer.table for layer in output.dense)
    ours = tuple(layer.model_dump() for layer in manifest.output.dense)
    if len(theirs) != len(ours):
        yield (
            f"modules.json has {len(theirs)} Dense modules, but model.toml has {len(ours)} tables "
            "output.dense"
        )
        return
    for number, (layer, own) in enumerate(zip(output.dense, ours, strict=True)):
        for key, value in layer.table.items():
            if key != "file" and own[key] != value:
                said = Said(value, layer.said.file, key)
                yield _sentence(said, f"output.dense[{number}].{key}", own[key])


def _gguf_pool(layout: CheckpointLayout, pools: tuple[str, ...]) -> Iterator[str]:
    checkpoint = GgufCheckpoint(layout.root / layout.weights)
    try:
        key = f"{checkpoint.text('general.architecture')}.pooling_type"
        kind = checkpoint.integer(key)
    finally:
        checkpoint.close()
    if kind in GGUF_POOLS and pools and pools != (GGUF_POOLS[kind],):
        yield (
            f"{layout.weights}: {key} is {kind} ({GGUF_POOLS[kind]}), but model.toml says "
            f"output.steps begin with {', '.join(pools)}"
        )


def _prompts(manifest: Manifest, layout: CheckpointLayout) -> Iterator[str]:
    if layout.suffix == ".gguf":
        return
    for name, said in prompt_facts(layout).prompts.items():
        ours = manifest.prompts.get(name)
        if said.value and ours is not None and ours != said.value:
            yield _sentence(said, f"prompts.{name}", ours)


def _tokenizer(manifest: Manifest, layout: CheckpointLayout) -> Iterator[str]:  # noqa: ARG001
    if layout.suffix != ".gguf":
        yield from tokenizer_contradictions(layout)


def _sentence(said: Said, key: str, ours: object) -> str:
    return f"{said.where} is {shown(said.value)}, but model.toml says {key} = {shown(ours)}"
