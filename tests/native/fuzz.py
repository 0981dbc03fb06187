"""Calls operators with wrong shapes and attributes: `python -m tests.native.fuzz COUNT [SEED]`.

Each call gives a result or an error with a message. The caller sees a crash by the exit status, and
the last line of standard output names the call.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

from tests.native.operators import make_layer, make_rotary, run

_INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 5, 16, 255, 256, 2**20, 2**31, 2**62, 2**63 - 1)
_SIZES = (0, 1, 2, 3, 15, 16, 17, 32, 48, 192, 200)


def right_call(draw: random.Random) -> tuple[str, list[Any], dict[str, float]]:
    """A call as graphs have it."""
    rng = np.random.default_rng(draw.getrandbits(32))
    kind = draw.choice(["bytes", "words", "floats", "attention", "layer norm"])
    rows = draw.choice([0, 1, 5, 50])
    if kind == "attention":
        qkv = rng.standard_normal((rows, 3 * 2 * 32)).astype(np.float32)
        first = draw.randint(0, rows)
        rotary = make_rotary(rows, 32) if draw.random() < 0.5 else ()
        inputs = [qkv, np.array([first, rows - first], np.int64), *rotary]
        return "SelfAttention", inputs, {"num_heads": 2, "floats": draw.randint(0, 1), "scale": 0.5}
    if kind == "layer norm":
        x, scale, bias = (rng.standard_normal(s).astype(np.float32) for s in ((rows, 32), 32, 32))
        return "LayerNormalization", [x, scale, bias], {"epsilon": 1e-5}
    activation = draw.choice(["none", "gelu", "silu_gate"])
    layer = make_layer(rng, kind, draw.choice([1, 40, 200]), 20, activation=activation, bias=True)  # pyright: ignore[reportArgumentType]
    k = layer.panels.shape[-1]
    residual = rng.standard_normal((rows, 20)).astype(np.float32)
    op, inputs, attributes = layer.call(rng.standard_normal((rows, k)).astype(np.float32), residual)
    return op, list(inputs), dict(attributes)


def damage(draw: random.Random, inputs: list[Any], attributes: dict[str, float]) -> str:
    """Makes one input or attribute wrong, and returns what was done."""
    if draw.random() < 0.3:
        if not attributes:
            return "nothing"
        name = draw.choice(sorted(attributes))
        if draw.random() < 0.2:
            del attributes[name]
            return f"without {name}"
        is_float = isinstance(attributes[name], float)
        attributes[name] = draw.choice([0.0, -1.0, 1e38]) if is_float else draw.choice(_INTEGERS)
        return f"{name} = {attributes[name]}"
    present = [i for i, x in enumerate(inputs) if x is not None]
    if not present:
        return "nothing"
    at = draw.choice(present)
    value = inputs[at]
    if value.dtype == np.int64 and draw.random() < 0.5:
        inputs[at] = np.array([draw.choice(_INTEGERS) for _ in range(draw.randint(1, 4))], np.int64)
        return f"lengths {inputs[at].tolist()}"
    how = draw.choice(["missing", "scalar", "empty", "shape", "flat", "longer", "transposed"])
    inputs[at] = {
        "missing": None,
        "scalar": np.ones((), value.dtype),
        "empty": np.atleast_1d(value)[:0],
        "shape": np.ones([draw.choice(_SIZES) for _ in range(draw.randint(1, 3))], value.dtype),
        "flat": value.reshape(-1),
        "longer": np.concatenate([np.atleast_1d(value)] * 2),
        "transposed": np.ascontiguousarray(value.T),
    }[how]
    return f"input {at} {how}"


def main(count: int, seed: int) -> None:
    """Make `count` calls and print how many gave a result and how many an error."""
    draw, given, refused = random.Random(seed), 0, 0
    for i in range(count):
        op, inputs, attributes = right_call(draw)
        done = [damage(draw, inputs, attributes) for _ in range(draw.randint(1, 2))]
        sys.stdout.write(f"{i} of seed {seed}: {op}, {done}\n")
        sys.stdout.flush()
        try:
            run(op, inputs, attributes, threads=draw.choice([1, 2]))
            given += 1
        except Exception as exc:
            if not str(exc).strip():
                raise
            refused += 1
    sys.stdout.write(f"{given} results, {refused} errors\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
