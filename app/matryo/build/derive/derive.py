"""A manifest, and a summary for people, from what a checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

from matryo.build import arch
from matryo.build.derive.facts import READY, Facts

# Bounds against gross faults only: nobody has measured what rounding costs these weights.
PRECISIONS = {"fp32": 0.99999, "int8": 0.98, "q8": 0.998, "q4": 0.9}


def precisions_of(model_type: str) -> dict[str, float]:
    """The precisions of a derived model, and the least cosine that each must keep.

    A decoder's rounding errors grow with its layers: at 4 bits little is left of a vector.
    """
    if model_type == READY:
        return {"fp32": PRECISIONS["fp32"]}
    if model_type in arch.CAUSAL:
        return {**PRECISIONS, "int8": 0.95, "q8": 0.98, "q4": 0.5}
    return PRECISIONS


def native_size(facts: Facts) -> int:
    """Components of a vector before any cut."""
    if facts.output.dense:
        return facts.output.dense[-1].out_features
    values = {key: said.value for key, said in facts.architecture.items()}
    width = cast("int", cast("Any", arch.validated(facts.model_type.value, values)).hidden_size)
    return width * len(cast("tuple[str, ...]", facts.output.pools.value))


def manifest_tables(
    facts: Facts,
    model_id: str,
    *,
    aliases: tuple[str, ...],
    owned_by: str,
    files: Mapping[str, Mapping[str, Any]],
    sources: list[dict[str, Any]],
) -> dict[str, Any]:
    """The tables of the `model.toml` that the facts make, as `Manifest` validates them.

    Args:
        facts: of the checkpoint.
        model_id: of the new model.
        aliases: other names of the model.
        owned_by: who made the model.
        files: size and hash of each file, by name.
        sources: where the files are from.
    """
    native = native_size(facts)
    declared = facts.sizes.value if facts.sizes else ()
    default = facts.prompts.dimensions.value if facts.prompts.dimensions else None
    trained = {native, *(size for size in (*declared, default or native) if size <= native)}
    dimensions: dict[str, Any] = {
        "native": native,
        "trained": sorted(trained, reverse=True),
        "cut": True,
    }
    if default is not None and default < native:
        dimensions["default"] = default
    output: dict[str, Any] = {
        "steps": facts.output.steps,
        "dimensions": dimensions,
    }
    if facts.output.dense:
        output["dense"] = [layer.table for layer in facts.output.dense]
    tokenizer: dict[str, Any] = {"max_tokens": facts.max_tokens.value}
    if facts.lowercase:
        tokenizer["lowercase"] = True
    if not facts.special_tokens:
        tokenizer["add_special_tokens"] = False
    if facts.drop_unknown:
        tokenizer["drop_unknown"] = True
    tables: dict[str, Any] = {
        "id": model_id,
        "aliases": list(aliases),
        "owned_by": owned_by,
        "created": _created(facts.layout.root / facts.layout.weights),
        "license": facts.license,
        "weights": facts.layout.weights,
        "files": {name: dict(file) for name, file in files.items()},
        "sources": sources,
        "architecture": {
            "model_type": facts.model_type.value,
            **{key: said.value for key, said in facts.architecture.items()},
        },
        "tokenizer": tokenizer,
        "prompts": {name: said.value for name, said in facts.prompts.prompts.items()},
        "output": output,
        "precisions": {
            name: {"min_cosine": cosine}
            for name, cosine in precisions_of(facts.model_type.value).items()
        },
    }
    if facts.prompts.default:
        tables["default_input_type"] = facts.prompts.default.value
    return tables


def _created(weights: Path) -> date:
    """The day of the weights, which is the nearest that a folder tells to a model's date."""
    return datetime.fromtimestamp(weights.stat().st_mtime, UTC).date()


def summary(facts: Facts) -> list[str]:
    """What was derived, in a few lines, with the file that says so."""
    sizes = facts.sizes.where if facts.sizes else "no file says that it was trained to be cut"
    native = native_size(facts)
    declared = facts.sizes.value if facts.sizes else (native,)
    named = [f"{name} {said.value!r}" for name, said in facts.prompts.prompts.items()]
    lines = [
        f"architecture: {facts.model_type.value} ({facts.model_type.where})",
        f"steps: {', '.join(facts.output.steps)} ({facts.output.pools.where})",
        f"limit: {facts.max_tokens.value} tokens ({facts.max_tokens.where})",
        f"sizes: {', '.join(map(str, declared))} ({sizes})",
        f"prompts: {', '.join(named) or 'none'}"
        + (" (config_sentence_transformers.json)" if named else ""),
    ]
    if facts.prompts.default:
        lines.append(f"default prompt: {facts.prompts.default.value}")
    if facts.prompts.dimensions:
        size = facts.prompts.dimensions
        lines.append(f"default size: {size.value} ({size.where})")
    return [*lines, *(f"note: {warning}" for warning in facts.warnings)]
