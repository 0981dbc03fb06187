"""What smaller vectors cost: known-item retrieval on Debian's package descriptions.

Each synopsis must find its own description among all of the sample; MRR@10 is the mean of
1/rank, 0 beyond ten. Run with a model that is built:

    .venv/bin/python -m bench.retrieval --model all-minilm-l6-v2 --pairs 3000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bench.corpus import debian_pairs
from matryo.core.settings import load_settings
from matryo.engine import Engine
from matryo.engine.postprocess import FloatArray, l2_normalize
from matryo.http.openai.encoding import quantize
from matryo.http.openai.wire import EmbeddingType
from matryo.main import load_engines
from matryo.service.inputs import add_prefix

_BATCH = 16


def embed(engine: Engine, texts: Sequence[str], input_type: str) -> FloatArray:
    """Unit vectors at native size, in order; texts over the limit are cut."""
    native = engine.manifest.output.dimensions.native
    encoded = engine.tokenize(add_prefix(texts, engine.manifest, input_type))
    ids = [engine.cut(text.ids) for text in encoded]
    vectors = np.empty((len(ids), native), np.float32)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        batch = engine.embed([ids[place] for place in places], [native] * len(places))
        vectors[places] = batch.embeddings
    return vectors


def mrr(queries: FloatArray, documents: FloatArray, depth: int = 10) -> float:
    """Mean reciprocal rank of document i for query i, by dot product."""
    scores = queries @ documents.T
    own = np.diag(scores)[:, None]
    ranks = (scores > own).sum(axis=1) + 1
    return float(np.where(ranks <= depth, 1 / ranks, 0).mean())


def signs(vectors: FloatArray) -> FloatArray:
    """Binary vectors as ±1, so that a dot product is a Hamming distance."""
    packed: NDArray[np.uint8] = np.asarray(quantize(vectors, "ubinary"), np.uint8)
    return np.unpackbits(packed, axis=-1).astype(np.float32) * 2 - 1


def rescored(queries: FloatArray, documents: FloatArray, *, candidates: int = 100) -> float:
    """MRR@10 where binary vectors find candidates, and float queries rank them."""
    bits = signs(documents)
    near = np.argsort(-(signs(queries) @ bits.T), axis=1, kind="stable")[:, :candidates]
    total = 0.0
    for row, places in enumerate(near):
        scores = bits[places] @ queries[row]
        own = np.flatnonzero(places == row)
        if len(own):
            rank = int((scores > scores[own[0]]).sum()) + 1
            total += 1 / rank if rank <= 10 else 0
    return total / len(queries)


def as_float(vectors: FloatArray, embedding_type: EmbeddingType) -> FloatArray:
    """Vectors as a database would compare them."""
    return np.asarray(quantize(vectors, embedding_type), np.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--pairs", type=int, default=3000)
    options = parser.parse_args()
    (engine,) = load_engines(load_settings(model=(options.model,)))
    pairs = debian_pairs(options.pairs)
    started = time.perf_counter()
    queries = embed(engine, [synopsis for synopsis, _ in pairs], "query")
    documents = embed(engine, [description for _, description in pairs], "document")
    print(f"{engine.fingerprint}: {len(pairs)} pairs in {time.perf_counter() - started:.0f} s")

    native = engine.manifest.output.dimensions.native
    print(f"{'dimensions':>10} {'type':<22} {'bytes':>6} {'MRR@10':>7}")
    sizes = [native, *(size for size in (512, 256, 128, 64, 32) if size < native)]
    for size in sizes:
        q, d = l2_normalize(queries[:, :size]), l2_normalize(documents[:, :size])
        for kind, n_bytes, found in (
            ("float", 4 * size, mrr(q, d)),
            ("int8", size, mrr(as_float(q, "int8"), as_float(d, "int8"))),
            ("binary", size // 8, mrr(signs(q), signs(d))),
            ("binary, rescored", size // 8, rescored(q, d)),
        ):
            print(f"{size:>10} {kind:<22} {n_bytes:>6} {found:7.4f}")
    scaled = np.abs(documents) * np.sqrt(native)
    shares = [f"{float((scaled > bound).mean()):.1e} over {bound}" for bound in (3, 4, 5, 6)]
    print(f"components times sqrt(D): {', '.join(shares)}, largest {scaled.max():.1f}")


if __name__ == "__main__":
    main()
