"""Prints a hash of each operator's results: `python -m tests.native.bits [LIBRARY]`.

Two runs with other kernels (MATRYO_NATIVE_ISA) print the same lines.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.native.operators import (
    ACTIVATIONS,
    Floats,
    attention,
    layer_norm,
    make_layer,
    make_rotary,
)


def results(library: Path | None) -> Iterator[tuple[str, Floats]]:
    """Names of cases and the results of each.

    Args:
        library: the shared library; None for the one that is installed.
    """
    rng = np.random.default_rng(0)
    shapes = itertools.cycle([(1, 1), (5, 7), (47, 193), (13, 200), (130, 768), (49, 192), (6, 40)])
    for numbers, activation, columns in itertools.product(
        ("bytes", "words", "floats"), ACTIVATIONS, (1, 16, 50)
    ):
        rows, k = next(shapes)
        for size, zero_point in ((1, 128), (1e-3, 1), (30, 32), (1e25, 254)):
            layer = make_layer(
                rng,
                numbers,
                k,
                columns,
                activation=activation,
                bias=size != 1,
                channels=size != 30,
                zero_point=zero_point,
            )
            x = rng.standard_normal((rows, k)).astype(np.float32) * np.float32(size)
            x[rows // 2, k // 2] = np.nan if size == 30 else x[rows // 2, k // 2]
            residual = rng.standard_normal((rows, columns)).astype(np.float32)
            y = layer.run(x, residual if size == 1 else None, library=library)
            yield f"{numbers} {activation} {rows}x{k}x{columns} {size}", y
    for floats, head, size in itertools.product((False, True), (32, 64, 96, 256), (0.01, 1, 300)):
        for lengths in ([1], [0, 64, 5], [130, 17], [300]):
            qkv = rng.standard_normal((sum(lengths), 3 * 2 * head)).astype(np.float32)
            qkv *= np.float32(size)
            rotary = make_rotary(max(lengths), head) if head % 64 == 0 else None
            y = attention(qkv, lengths, num_heads=2, floats=floats, rotary=rotary, library=library)
            yield f"attention {floats} {head} {size} {lengths}", y
    for width, bias in itertools.product((16, 48, 768), (False, True)):
        x = rng.standard_normal((50, width)).astype(np.float32) + np.float32(3)
        scale, shift = rng.standard_normal((2, width)).astype(np.float32)
        y = layer_norm(x, scale, shift if bias else None, library=library)
        yield f"layer norm {width} {bias}", y


def main(library: Path | None) -> None:
    """Print a line for each case."""
    for name, y in results(library):
        # CPUs write different bits for NaN.
        same = np.where(np.isnan(y), np.float32(np.nan), y)
        sys.stdout.write(f"{hashlib.sha256(same.tobytes()).hexdigest()[:16]} {name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
