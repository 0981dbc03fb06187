"""Where a checkpoint's own files have the values of a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from matryo.build.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Key:
    """Where a file has one value of a config.

    Attributes:
        names: the names of the value in the file; the first that is there counts. A name may lead
            into a table: `rope_parameters.rope_theta`.
        default: the value that the model's own library takes if the file has none; None if the
            file must have one.
        meanings: our value for a value of the file, where the two differ.
        optional: whether the file may leave the value out, or may have `null`: the config then
            has its own default.
        soft: whether a manifest may have another value than the file, such as the longest text of
            a model without a table of positions.
        only_if: another key of the config, without which the value means nothing.
    """

    names: tuple[str, ...]
    default: object = None
    meanings: Mapping[object, object] = field(default_factory=dict[object, object])
    optional: bool = False
    soft: bool = False
    only_if: str = ""


def n_rows(checkpoint: Checkpoint, name: str) -> int:
    """Rows of a table in a GGUF file, which drops outer axes of 1; 1 if there is no such table."""
    if name not in checkpoint.names:
        return 1
    shape = checkpoint.shape(name)
    return shape[0] if len(shape) > 1 else 1
