"""The architecture that a `config.json`, or the metadata of a GGUF file, describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from matryo.build import arch
from matryo.build.arch import ArchitectureModule
from matryo.build.checkpoint.gguf import GgufCheckpoint
from matryo.build.derive.said import JsonFile, Said, shown
from matryo.core.errors import CheckpointMismatch, UnsupportedArchitecture

_ONE_OF = "must be one of {}: other values give another graph. Serve an ONNX export of the model"


def model_type_of(config: JsonFile) -> Said:
    """The `model_type` that a `config.json` names, as the name of our module.

    Raises:
        CheckpointMismatch: the file names none.
        UnsupportedArchitecture: there is no graph for that `model_type`.
    """
    said = config.said("model_type")
    if said is None or not isinstance(said.value, str):
        raise CheckpointMismatch(
            f"{config.path} has no model_type, so that nothing tells how the weights compute. "
            "Put the model's own config.json beside the weights."
        )
    module = arch.MODEL_TYPES.get(said.value)
    if module is None:
        raise UnsupportedArchitecture(
            f"{config.path}: there is no graph for model_type {shown(said.value)}; known: "
            f"{', '.join(sorted(arch.MODEL_TYPES))}. An ONNX export of the model can be served: "
            "give the .onnx file."
        )
    return Said(module, said.file, said.key)


def hub_facts(module: ArchitectureModule, config: JsonFile) -> dict[str, Said]:
    """What a `config.json` says of each key of the architecture's config.

    Raises:
        CheckpointMismatch: a value is missing, or the graph computes another one.
    """
    for name, allowed in module.HUB_FIXED.items():
        said = config.said(name)
        if said is not None and not _allows(allowed, said.value):
            raise config.refuse(said, _ONE_OF.format(", ".join(map(repr, allowed))))
    facts: dict[str, Said] = {}
    for ours, key in module.HUB_KEYS.items():
        said = config.said(*key.names)
        if said is not None and said.value is None and (key.optional or key.default is not None):
            said = None
        if said is None:
            if key.optional:
                continue
            if key.default is None:
                raise CheckpointMismatch(
                    f"{config.path} has no {key.names[0]}, which the graph needs. Put the model's "
                    "own config.json beside the weights."
                )
            said = Said(key.default, config.name, f"{key.names[0]} (the default)")
        facts[ours] = _in_our_words(said, key.meanings)
    return _meaningful(module.HUB_KEYS, facts)


def _allows(allowed: tuple[object, ...], value: object) -> bool:
    """Whether a value, or each item of a list, is one that the graph computes."""
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    return all(item in allowed for item in items)


def _in_our_words(said: Said, meanings: Mapping[object, object]) -> Said:
    value = said.value
    if isinstance(value, str | int | bool) and value in meanings:
        value = meanings[value]
    return Said(value, said.file, said.key)


def _meaningful(keys: Mapping[str, arch.Key], facts: dict[str, Said]) -> dict[str, Said]:
    """The facts without those that another fact makes meaningless."""

    def means_something(ours: str) -> bool:
        needs = keys[ours].only_if if ours in keys else ""
        return not needs or bool(facts[needs].value if needs in facts else False)

    return {ours: said for ours, said in facts.items() if means_something(ours)}


def gguf_module(checkpoint: GgufCheckpoint) -> Said:
    """The `model_type` of a GGUF file's `general.architecture`.

    Raises:
        CheckpointMismatch: the file names none.
        UnsupportedArchitecture: there is no graph for that architecture.
    """
    name = checkpoint.text("general.architecture")
    if name is None:
        raise CheckpointMismatch(
            f"{checkpoint.path} has no general.architecture in its metadata. Convert the model "
            "again with llama.cpp's convert_hf_to_gguf.py."
        )
    if name == "bert":
        return Said(_kind_of_bert(checkpoint), checkpoint.path.name, "general.architecture")
    for model_type in arch.known():
        if name in arch.module(model_type).GGUF_ARCHITECTURES:
            return Said(model_type, checkpoint.path.name, "general.architecture")
    names = [name for known in arch.known() for name in arch.module(known).GGUF_ARCHITECTURES]
    raise UnsupportedArchitecture(
        f"{checkpoint.path}: there is no graph for the architecture {shown(name)} of GGUF; known: "
        f"{', '.join(sorted(set(names)))}."
    )


def _kind_of_bert(checkpoint: GgufCheckpoint) -> str:
    """The architecture of a file that llama.cpp calls `bert`, which several architectures share.

    A RoBERTa has a tokenizer of another kind; a DistilBERT has no token types.
    """
    if checkpoint.text("tokenizer.ggml.model") in ("t5", "gpt2"):
        return "xlm_roberta"
    return "bert" if "token_types.weight" in checkpoint.names else "distilbert"


def gguf_facts(module: ArchitectureModule, checkpoint: GgufCheckpoint) -> dict[str, Said]:
    """What the metadata and the tensors of a GGUF file say of each key of the config.

    Raises:
        CheckpointMismatch: a value is missing.
    """
    prefix, file = checkpoint.text("general.architecture") or "", checkpoint.path.name
    facts = {
        ours: Said(value, file, f"{ours}, by its tensors,")
        for ours, value in module.from_gguf(checkpoint).items()
    }
    for ours, key in module.GGUF_KEYS.items():
        names = [name.format(arch=prefix) for name in key.names]
        found = next(
            ((name, value) for name in names if (value := _value(checkpoint, name)) is not None),
            None,
        )
        if found is not None:
            facts[ours] = Said(found[1], file, found[0])
        elif key.default is not None:
            facts[ours] = Said(key.default, file, f"{names[0]} (the default)")
        elif not key.optional and ours not in facts:
            raise CheckpointMismatch(
                f"{checkpoint.path} has no {names[0]} in its metadata. Convert the model again "
                "with llama.cpp's convert_hf_to_gguf.py."
            )
    return _meaningful(module.GGUF_KEYS, facts)


def _value(checkpoint: GgufCheckpoint, key: str) -> Any:  # noqa: ANN401 - of several types
    """The number of a metadata key, its flag or its text; None if there is none."""
    for read in (checkpoint.integer, checkpoint.number, checkpoint.flag, checkpoint.text):
        try:
            value = read(key)
        except CheckpointMismatch:
            continue
        if isinstance(value, float):  # the file has float32: 1e-12 there is 9.99999996e-13
            return float(str(np.float32(value)))
        if value is not None:
            return value
    return None


def same(one: object, other: object) -> bool:
    """Whether two values of a config are one, with floats rounded to float32."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one == other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or np.float32(one) == np.float32(other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        a, b = cast("tuple[object, ...]", one), cast("tuple[object, ...]", other)
        return len(a) == len(b) and all(map(same, a, b))
    return one == other
