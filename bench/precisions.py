"""Accuracy, speed and memory of each precision, measured in one run.

    .venv/bin/python -m bench.precisions --model all-minilm-l6-v2 --output docs

The benchmark builds each precision that the manifest offers, and measures on real text:

- the cosines to fp32 of queries and documents, and the MRR@10 of known-item retrieval (see
  `bench.retrieval`) with vectors as floats, as int8, and as bits with rescoring;
- the largest difference of a component between a text that runs alone and the same text in a random
  batch with another number of threads, for texts of 1 to 2,000 tokens;
- tokens a second on the documents, in batches of 16, with a run of one thread for each core. All
  precisions run in turn, for three rounds; the median of the rounds counts;
- the memory of the process of an idle server.

Use `--pairs 0` for random weights, which have no accuracy to measure.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.corpus import debian_pairs
from bench.retrieval import as_float, embed, mrr, rescored
from bench.service import Service
from matryo.assembly.models import make_ready
from matryo.assembly.service import build_local_service
from matryo.catalog.catalog import open_catalog
from matryo.catalog.manifest import Manifest
from matryo.commands.bench.engine import engine_rate
from matryo.core.choices import Precision
from matryo.core.cores import available_cores
from matryo.core.environment import load_settings
from matryo.engine import Engine, TokenIds, plan_cores
from matryo.engine.factory import load_engine
from matryo.engine.postprocess import FloatArray
from matryo.service import LocalService
from matryo.store.artifact import find_artifact
from matryo.store.layout import open_store

_SAMPLE, _ROUNDS = 3000, 3
_LONGEST = 2000


def texts_of_all_lengths(documents: Sequence[str], n: int, longest: int) -> list[str]:
    """`n` texts of 1 to `longest` words; the logarithms of their lengths are evenly spaced."""
    words = " ".join(documents).split()
    generator = random.Random(0)
    lengths = np.geomspace(1, longest, n).astype(int)
    starts = [generator.randrange(len(words) - longest) for _ in lengths]
    return [
        " ".join(words[start : start + length])
        for start, length in zip(starts, lengths, strict=True)
    ]


def company_moves(one: Engine, other: Engine, texts: Sequence[TokenIds], seed: int = 0) -> float:
    """Largest difference of a component between a text alone on `one` and in a batch on `other`."""
    native = one.manifest.output.dimensions.native
    alone = [one.embed([text], [native]).embeddings[0] for text in texts]
    order = list(range(len(texts)))
    generator, largest = random.Random(seed), 0.0
    generator.shuffle(order)
    while order:
        batch = [order.pop() for _ in range(min(len(order), generator.randint(1, 16)))]
        together = other.embed([texts[i] for i in batch], [native] * len(batch)).embeddings
        for i, vector in zip(batch, together, strict=True):
            largest = max(largest, float(np.abs(vector - alone[i]).max()))
    return largest


def accuracy(queries: FloatArray, documents: FloatArray, reference: FloatArray) -> dict[str, float]:
    """Cosines to the reference (queries, then documents), and MRR@10 for each output type."""
    cosines = (np.concatenate([queries, documents]) * reference).sum(1)
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "mrr": mrr(queries, documents),
        "mrr_int8": mrr(as_float(queries, "int8"), as_float(documents, "int8")),
        "mrr_binary_rescored": rescored(queries, documents),
    }


def measure(
    manifest: Manifest, n_pairs: int, n_company: int, seconds: float
) -> dict[Precision, dict[str, float]]:
    """All measurements of each precision, fp32 first."""
    pairs = debian_pairs(_SAMPLE)
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
    company = texts_of_all_lengths(documents, n_company, _LONGEST)
    precisions: list[Precision] = ["fp32", *(p for p in manifest.precisions if p != "fp32")]
    facts: dict[Precision, dict[str, float]] = {}
    engines: dict[Precision, Engine] = {}
    reference: FloatArray | None = None
    for precision in precisions:
        settings = load_settings(None, model=manifest.id, precision=precision)
        make_ready(settings)
        artifact = find_artifact(open_store(settings), manifest, precision)
        facts[precision] = found = {"artifact_mb": artifact.n_bytes / 1e6}
        flags = ("--model", manifest.id, "--precision", precision)
        with Service(*flags, environ={"MATRYO_HOME": str(settings.home)}) as service:
            found["idle_rss_mb"] = service.rss_mb
        one = engines[precision] = load_engine(manifest, artifact, plan_cores(1))
        two = load_engine(manifest, artifact, plan_cores(2, workers=1))
        if n_pairs:
            with LocalService(partial(build_local_service, settings)) as local:
                asked = embed(local, queries[:n_pairs], "query")
                held = embed(local, documents[:n_pairs], "document")
            if reference is None:
                reference = np.concatenate([asked, held])
            found |= accuracy(asked, held, reference)
        if n_company:
            ids = [two.cut(encoded.ids)[:_LONGEST] for encoded in two.tokenize(company)]
            found["company_tokens"] = sum(map(len, ids))
            found["company_longest"] = max(map(len, ids))
            found["company_moves"] = company_moves(one, two, ids)
        print(precision, json.dumps(found), flush=True)
        two.close()
    sample = [engines["fp32"].cut(e.ids) for e in engines["fp32"].tokenize(documents[:256])]
    rates: dict[Precision, list[float]] = {precision: [] for precision in precisions}
    for _ in range(_ROUNDS if seconds else 0):
        for precision, engine in engines.items():
            rate = engine_rate(engine, sample, seconds, runs=available_cores(), size=16)
            rates[precision].append(rate)
    for precision, rounds in rates.items():
        if rounds:
            facts[precision]["tokens_per_s"] = statistics.median(rounds)
    return facts


def table(facts: dict[Precision, dict[str, float]]) -> str:
    """The measurements as a table; a speed is relative to fp32."""
    columns = (
        ("cosine", "cosine_mean", ".6f"),
        ("least", "cosine_min", ".6f"),
        ("MRR@10", "mrr", ".4f"),
        ("as int8", "mrr_int8", ".4f"),
        ("as bits", "mrr_binary_rescored", ".4f"),
        ("company", "company_moves", "g"),
        ("speed", "speed", ".2f"),
        ("artefact", "artifact_mb", ".0f"),
        ("idle RSS", "idle_rss_mb", ".0f"),
    )
    lines = ["precision " + "".join(f"{title:>10}" for title, _, _ in columns)]
    slow = facts["fp32"].get("tokens_per_s")
    for precision, found in facts.items():
        if slow:
            found["speed"] = found["tokens_per_s"] / slow
        cells = (f"{found[key]:{form}}" if key in found else "" for _, key, form in columns)
        lines.append(f"{precision:<10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def plot(model_id: str, facts: dict[Precision, dict[str, float]], path: Path) -> None:
    """Plot accuracy over speed; the area of a point is the size of the artefact."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("svg")
    cast("Any", mpl).rcParams["svg.hashsalt"] = "matryo"  # equal measurements give equal bytes
    figure, axes = cast("Any", plt).subplots(figsize=(6, 3.6))
    slow, large = facts["fp32"]["tokens_per_s"], facts["fp32"]["artifact_mb"]
    by_speed = sorted(facts.items(), key=lambda item: item[1]["tokens_per_s"])
    for index, (precision, found) in enumerate(by_speed):
        x, y = found["tokens_per_s"] / slow, found["cosine_mean"]
        axes.scatter(x, y, s=900 * found["artifact_mb"] / large, alpha=0.5)
        label = f"{precision}, {found['artifact_mb']:.0f} MB"
        offset = (0, 19 if index % 2 else -27)  # labels of neighbours do not overlap
        axes.annotate(label, (x, y), xytext=offset, textcoords="offset points", ha="center")
    axes.set(
        xlabel="speed, times fp32",
        ylabel="mean cosine to fp32",
        title=f"{model_id}: area is memory",
    )
    axes.margins(0.2, 0.35)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(flags_given: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write a JSON file and a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument(
        "--pairs", type=int, default=_SAMPLE, help="pairs of retrieval; 0 measures no accuracy"
    )
    parser.add_argument(
        "--company", type=int, default=300, help="texts to run alone and in batches; 0 for none"
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="length of a round; 0 measures no speed"
    )
    parser.add_argument("--output", type=Path, default=Path("bench/out"))
    options = parser.parse_args(flags_given)
    manifest = open_catalog(load_settings(None)).manifest(options.model)
    facts = measure(manifest, options.pairs, options.company, options.seconds)
    print(table(facts))
    options.output.mkdir(parents=True, exist_ok=True)
    written = options.output / f"precisions-{options.model}.json"
    written.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if options.pairs and options.seconds:
        plot(options.model, facts, written.with_suffix(".svg"))
    print(f"written to {written}")


if __name__ == "__main__":
    main()
