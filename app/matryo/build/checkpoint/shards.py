"""A checkpoint in several safetensors files, with an index of which file holds each tensor.

Source: transformers, `save_pretrained` with `max_shard_size`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from matryo.build.checkpoint.base import Blocks, FloatArray
from matryo.build.checkpoint.safetensors import SafetensorsCheckpoint
from matryo.build.limits import FACTS_MAX_BYTES, MAX_SHARDS
from matryo.core.errors import CheckpointMismatch
from matryo.core.untrusted import read_json, refusing
from matryo.store.unread import INDEX_FILE


def shard_files(weights: Path) -> tuple[Path, ...]:
    """The shards that an index names, sorted; empty if `weights` is no index.

    Raises:
        CheckpointMismatch: the index cannot be read, or a shard is missing or lies elsewhere.
    """
    if weights.name != INDEX_FILE:
        return ()
    names = sorted(set(_weight_map(weights).values()))
    if len(names) > MAX_SHARDS:
        raise CheckpointMismatch(
            f"{weights} names {len(names):,} shards; at most {MAX_SHARDS} are read."
        )
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointMismatch(
                f"{weights} names the shard {name[:80]!r}; shards must lie beside the index and be "
                "safetensors."
            )
    files = tuple(weights.parent / name for name in names)
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointMismatch(
            f"{weights} needs {', '.join(missing[:5])}, which {weights.parent} lacks. Fetch every "
            "shard."
        )
    return files


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, by the tensor's name."""

    def odd(reason: str) -> CheckpointMismatch:
        return CheckpointMismatch(
            f"{index} is not an index of shards: {reason}. Fetch the file again."
        )

    with refusing(odd):
        found = read_json(index, FACTS_MAX_BYTES)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")  # noqa: TRY004 - one error for any content
        table = cast("dict[str, Any]", found)["weight_map"]
        shards = {str(name): shard for name, shard in cast("dict[str, Any]", table).items()}
        if not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError("weight_map does not name a file for each tensor")
    return shards


class ShardedCheckpoint:
    """The tensors of every shard of an index.

    Args:
        index: `model.safetensors.index.json`.

    Raises:
        CheckpointMismatch: a shard is missing or damaged, or lacks a tensor that the index names.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        self._shards = [SafetensorsCheckpoint(path) for path in shard_files(index)]
        self._of = {name: shard for shard in self._shards for name in shard.names}
        self.names = frozenset(self._of)
        if lost := sorted(_weight_map(index).keys() - self.names):
            raise CheckpointMismatch(
                f"{index} names the tensor '{lost[0][:80]}', which no shard holds. Fetch every "
                "shard again."
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._of[name].shape(name)

    def read(self, name: str, rows: slice | None = None) -> FloatArray:
        """One tensor, or some rows of its first axis; see `SafetensorsCheckpoint.read`."""
        return self._of[name].read(name, rows)

    def indices(self, name: str) -> NDArray[np.int64]:
        """One tensor of integers; see `SafetensorsCheckpoint.indices`."""
        return self._of[name].indices(name)

    def blocks(self, name: str, rows: slice, bits: int) -> Blocks | None:  # noqa: ARG002
        """None: these files hold plain floats."""
        return None

    def close(self) -> None:
        """Give the mappings back."""
        for shard in self._shards:
            shard.close()
