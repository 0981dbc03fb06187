"""Where a checkpoint's own files have the values of a config."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """Where a file has one value of a config.

    Attributes:
        names: the names of the value in the file; the first that is there counts. A name may lead
            into a table: `rope_parameters.rope_theta`.
        default: the value that the model's own library takes if the file has none; None if the
            file must have one.
    """

    names: tuple[str, ...]
    default: object = None
