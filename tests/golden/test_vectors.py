"""Vectors and fingerprints of MiniLM's real weights equal those of an earlier version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matryo import Embedder
from matryo.core.choices import PRECISIONS, Precision
from matryo.engine.onnx.prepacked import machine_key

pytestmark = pytest.mark.golden
EARLIER: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vectors-all-minilm-l6-v2.json").read_text(encoding="utf-8")
)
# Another CPU, or another version of ONNX Runtime, adds in another order. Where numbers are rounded to
# levels, a sum beside a boundary then falls to the next level: measured on AVX-512 beside AVX2, the
# components of int8, q8 and q4 differ by up to 0.0017.
_OTHER_MACHINE = {"fp32": 1e-5, "int8": 5e-3, "q8": 5e-3, "q4": 5e-3}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("precision", "kernels"),
    [*((one, "onnxruntime") for one in PRECISIONS), ("fp32", "native"), ("int8", "native")],
)
def test_the_same_vectors_as_before(
    precision: Precision, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fingerprints are equal. On the machine of the recording, the vectors' bits are equal too."""
    monkeypatch.setenv("MATRYO_KERNELS", kernels)
    suffix = "+native" if kernels == "native" else ""
    noted = EARLIER["precisions"][f"{precision}{suffix}"]
    texts: list[str] = EARLIER["texts"]
    for size in (384, 64):
        with Embedder(
            EARLIER["model"], precision=precision, dimensions=size, truncate=True
        ) as embedder:
            vectors = embedder.embed(texts)
            assert embedder.fingerprint == f"{noted['fingerprint']}/none/{size}/float"
            counts = [min(n, 512) for n in embedder.count_tokens(texts)]
        assert counts == EARLIER["n_tokens"]
        if machine_key() == EARLIER["machine"]:
            assert hashlib.sha256(vectors.tobytes()).hexdigest() == noted["sha256"][str(size)]
        if size == 384:
            off = np.abs(vectors[:, :8] - np.array(noted["first_components"], np.float32)).max()
            assert off <= _OTHER_MACHINE[precision]
