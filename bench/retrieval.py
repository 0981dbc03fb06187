"""The accuracy of smaller vectors: known-item retrieval on Debian's package descriptions.

Each synopsis must find its own description among all descriptions of the sample. MRR@10 is the mean
of 1/rank, where a rank over 10 counts as 0. The model must be built before:

    .venv/bin/python -m bench.retrieval --model all-minilm-l6-v2 --pairs 3000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.corpus import debian_pairs
from matryo.assembly.service import build_local_service
from matryo.core.environment import load_settings
from matryo.engine.postprocess import FloatArray, l2_normalize
from matryo.service import EmbeddingType, LocalService, Options, Texts
from matryo.service.limits import WINDOW_TEXTS
from matryo.service.numbers import quantize


def embed(local: LocalService, texts: Sequence[str], input_type: str) -> FloatArray:
    """Unit vectors of the native size, in the order of the texts; texts over the limit are cut."""
    options = Options(input_type=input_type, truncate=True, priority="bulk")
    windows = (
        Texts(texts[start : start + WINDOW_TEXTS]) for start in range(0, len(texts), WINDOW_TEXTS)
    )
    return np.concatenate([answer.vectors for answer in local.embed_windows(options, windows)])


def mrr(queries: FloatArray, documents: FloatArray, depth: int = 10) -> float:
    """Mean reciprocal rank of document i for query i, by dot product; ranks over `depth` give 0."""
    scores = queries @ documents.T
    own = np.diag(scores)[:, None]
    ranks = (scores > own).sum(axis=1) + 1
    return float(np.where(ranks <= depth, 1 / ranks, 0).mean())


def signs(vectors: FloatArray) -> FloatArray:
    """Binary vectors as ±1: a dot product then ranks in the same order as a Hamming distance."""
    bits: NDArray[np.uint8] = np.asarray(quantize(vectors, "ubinary"), np.uint8)
    return np.unpackbits(bits, axis=-1).astype(np.float32) * 2 - 1


def rescored(queries: FloatArray, documents: FloatArray, *, candidates: int = 100) -> float:
    """MRR@10 of a search in which binary vectors find candidates and float queries rank them."""
    bits = signs(documents)
    near = np.argsort(-(signs(queries) @ bits.T), axis=1, kind="stable")[:, :candidates]
    total = 0.0
    for row, indices in enumerate(near):
        scores = bits[indices] @ queries[row]
        own = np.flatnonzero(indices == row)
        if len(own):
            rank = int((scores > scores[own[0]]).sum()) + 1
            total += 1 / rank if rank <= 10 else 0
    return total / len(queries)


def as_float(vectors: FloatArray, embedding_type: EmbeddingType) -> FloatArray:
    """Vectors of an output type, as the numbers that a database would compare."""
    return np.asarray(quantize(vectors, embedding_type), np.float32)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--pairs", type=int, default=3000)
    options = parser.parse_args()
    settings = load_settings(model=(options.model,))
    pairs = debian_pairs(options.pairs)
    with LocalService(lambda: build_local_service(settings)) as local:
        (engine,) = local.service.directory.engines
        started = time.perf_counter()
        queries = embed(local, [synopsis for synopsis, _ in pairs], "query")
        documents = embed(local, [description for _, description in pairs], "document")
    print(f"{engine.fingerprint}: {len(pairs)} pairs in {time.perf_counter() - started:.0f} s")

    native = engine.manifest.output.dimensions.native
    print(f"{'dimensions':>10} {'type':<22} {'bytes':>6} {'MRR@10':>7}")
    sizes = [native, *(size for size in (512, 256, 128, 64, 32) if size < native)]
    for size in sizes:
        q, d = l2_normalize(queries[:, :size]), l2_normalize(documents[:, :size])
        for output, n_bytes, found in (
            ("float", 4 * size, mrr(q, d)),
            ("int8", size, mrr(as_float(q, "int8"), as_float(d, "int8"))),
            ("binary", size // 8, mrr(signs(q), signs(d))),
            ("binary, rescored", size // 8, rescored(q, d)),
        ):
            print(f"{size:>10} {output:<22} {n_bytes:>6} {found:7.4f}")
    scaled = np.abs(documents) * np.sqrt(native)
    shares = [f"{float((scaled > bound).mean()):.1e} over {bound}" for bound in (3, 4, 5, 6)]
    print(f"components times sqrt(D): {', '.join(shares)}, largest {scaled.max():.1f}")


if __name__ == "__main__":
    main()
