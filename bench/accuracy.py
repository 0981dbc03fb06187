"""What a precision costs: cosines to fp32 and known-item retrieval, on real text.

    .venv/bin/python -m bench.accuracy --model all-minilm-l6-v2 --pairs 3000

Each precision that the manifest offers is built if need be. Cosines are over documents and
queries together; MRR@10 is that of `bench.retrieval`. The last column compares each of 300
texts alone with itself in random batches, at another number of threads.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import numpy as np

from app.commands.ready import make_ready
from app.core.manifest import Precision
from app.core.settings import load_settings
from app.engine import Engine, OnnxEngine, SessionConfig, TokenIds
from app.graph.artifact import find_artifact
from app.graph.store import Store
from bench.corpus import debian_pairs
from bench.retrieval import embed, mrr


def company_moves(one: Engine, other: Engine, texts: Sequence[TokenIds], seed: int = 0) -> float:
    """Largest difference of a component, alone on one engine against in company on another."""
    native = one.manifest.output.dimensions.native
    alone = [one.embed([text], [native]).embeddings[0] for text in texts]
    order = list(range(len(texts)))
    generator, largest = random.Random(seed), 0.0
    generator.shuffle(order)
    while order:
        places = [order.pop() for _ in range(min(len(order), generator.randint(1, 16)))]
        together = other.embed([texts[i] for i in places], [native] * len(places)).embeddings
        for place, vector in zip(places, together, strict=True):
            largest = max(largest, float(np.abs(vector - alone[place]).max()))
    return largest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--pairs", type=int, default=3000)
    options = parser.parse_args()
    pairs = debian_pairs(options.pairs)
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]

    settings = load_settings(None, model=options.model)
    manifest = settings.catalog().manifest(options.model)
    reference: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None = None
    print(f"{'precision':<10} {'mean':>9} {'least':>9} {'MRR@10':>7} {'in company':>11}")
    precisions: list[Precision] = ["fp32", *(p for p in manifest.precisions if p != "fp32")]
    for precision in precisions:
        make_ready(load_settings(None, model=options.model, precision=precision))
        artifact = find_artifact(Store(settings.home), manifest, precision)
        one = OnnxEngine(manifest, artifact, SessionConfig(1, 1))
        two = OnnxEngine(manifest, artifact, SessionConfig(2, 2))
        asked, held = embed(two, queries, "query"), embed(two, documents, "document")
        vectors = np.concatenate([asked, held])
        reference = vectors if reference is None else reference
        cosines = (vectors * reference).sum(1)
        # Long ones, too: several descriptions in one text.
        texts = [*documents[:200], *queries[:60]]
        texts += [" ".join(documents[n : n + n % 20]) for n in range(200, 240)]
        ids = [one.cut(encoded.ids) for encoded in one.tokenize(texts)]
        print(
            f"{precision:<10} {cosines.mean():9.6f} {cosines.min():9.6f} {mrr(asked, held):7.4f} "
            f"{company_moves(one, two, ids):11g}",
            flush=True,
        )
        one.close()
        two.close()


if __name__ == "__main__":
    main()
