"""What a service says of a model: everything that shapes its vectors, and what a request may ask.

`GET /v1/models/{id}` shows these facts, and a record of an index keeps them.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from matryo.core.choices import Precision
from matryo.engine import Engine
from matryo.engine.cpu import cpu_features
from matryo.service.choices import Defaults, default_dimensions_of, default_type_of


@dataclass(frozen=True, slots=True)
class SizeFacts:
    """How many components a vector has.

    Attributes:
        native: the model's own number, which is the largest.
        trained: numbers that the model was trained to be cut to, largest first.
        can_be_cut: whether a request may ask for fewer than `native`.
        default: of a request that asks for no number.
        strict: whether a number that is not in `trained` is refused.
    """

    native: int
    trained: tuple[int, ...]
    can_be_cut: bool
    default: int
    strict: bool


@dataclass(frozen=True, slots=True)
class Runtime:
    """What computes the vectors.

    Attributes:
        matryo: version of Matryo.
        onnxruntime: version of ONNX Runtime.
        artifact_sha256: of the files that the model was built into.
        native: the interface of matryo-native that the graph uses; 0 for none.
        machine: the kind of machine, as `uname -m` has it.
        cpu: the vector instructions that this process may use.
    """

    matryo: str
    onnxruntime: str
    artifact_sha256: str
    native: int
    machine: str
    cpu: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts of one model.

    Attributes:
        id: of the model.
        precision: of its products.
        fingerprint: the leading part of the fingerprint of every vector of the model.
        weights_sha256: of the checkpoint's weights.
        tokenizer_sha256: of the checkpoint's tokenizer.
        output_steps: from the graph's output to a vector, in order.
        settings_key: changes with any other setting of the manifest that shapes a vector.
        dimensions: see `SizeFacts`.
        prompts: the text before an input, by input type; empty for a model without prompts.
        input_types: names that a request may use, synonyms included.
        default_input_type: of a request that names none.
        max_tokens: the model's limit of one text.
        unknown_token_id: of everything that the vocabulary lacks; None if it lacks nothing.
        runtime: see `Runtime`.
    """

    id: str
    precision: Precision
    fingerprint: str
    weights_sha256: str
    tokenizer_sha256: str
    output_steps: tuple[str, ...]
    settings_key: str
    dimensions: SizeFacts
    prompts: Mapping[str, str]
    input_types: tuple[str, ...]
    default_input_type: str
    max_tokens: int
    unknown_token_id: int | None
    runtime: Runtime


def facts_of(engine: Engine, defaults: Defaults, version: str) -> ModelFacts:
    """The facts of a loaded model.

    Args:
        engine: the model.
        defaults: the operator's choices.
        version: of Matryo.
    """
    manifest, made = engine.manifest, engine.facts
    sizes = manifest.output.dimensions
    default_type = default_type_of(manifest, defaults)
    names = manifest.input_type_names
    if "input_type" in defaults.locked:
        names = {name: meaning for name, meaning in names.items() if meaning == default_type}
    return ModelFacts(
        id=manifest.id,
        precision=engine.precision,
        fingerprint=engine.fingerprint,
        weights_sha256=made.weights_sha256,
        tokenizer_sha256=made.tokenizer_sha256,
        output_steps=manifest.output.steps,
        settings_key=manifest.settings_key,
        dimensions=SizeFacts(
            native=sizes.native,
            trained=sizes.trained,
            can_be_cut=sizes.cut and "dimensions" not in defaults.locked,
            default=default_dimensions_of(manifest, defaults),
            strict=defaults.strict_dimensions,
        ),
        prompts=dict(manifest.prompts) if manifest.has_prompts else {},
        input_types=tuple(names),
        default_input_type=default_type,
        max_tokens=manifest.tokenizer.max_tokens,
        unknown_token_id=engine.unknown_id,
        runtime=Runtime(
            matryo=version,
            onnxruntime=made.onnxruntime,
            artifact_sha256=made.artifact_sha256,
            native=made.native,
            machine=platform.machine(),
            cpu=cpu_features(),
        ),
    )
