"""Matryo's own engine as a peer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from bench.peers.protocol import Ids, Vectors, serve
from matryo.assembly.models import make_ready
from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.engine import plan_cores
from matryo.engine.factory import load_engine
from matryo.store.artifact import find_artifact
from matryo.store.layout import open_store


class Ours:
    """The engine that `matryo serve` runs; `Peer` describes its attributes and methods.

    Args:
        model: id of the model.
        precision: of the artefact, which is built if missing.
        kernels: whose operators the artefact uses.
        cores: number of concurrent runs, each of one thread.
    """

    about: str
    settings: Sequence[str]

    def __init__(self, model: str, precision: str, kernels: str, cores: int) -> None:
        settings = make_ready(
            load_settings(None, model=(model,), precision=precision, kernels=kernels)
        )
        manifest = open_catalog(settings).manifest(settings.model[0])
        artifact = find_artifact(
            open_store(settings), manifest, manifest.precision_for(settings.precision)
        )
        self._engine = load_engine(manifest, artifact, plan_cores(cores, workers=cores, threads=1))
        self._native = manifest.output.dimensions.native
        self._cores = cores
        self.about = f"Matryo {precision}, {self._engine.fingerprint}"
        self.settings = (f"{cores} runs of 1 thread",)

    def runner(self, setting: str) -> tuple[Callable[[Ids], object], int]:
        """See `Peer.runner`."""
        del setting  # there is one
        return lambda ids: self._engine.embed(list(ids), [self._native] * len(ids)), self._cores

    def vectors(self, texts: Sequence[Sequence[int]], setting: str) -> Vectors:
        """See `Peer.vectors`."""
        del setting  # there is one
        rows = [np.array(ids, np.int64) for ids in texts]
        return np.stack(self._engine.embed(rows, [self._native] * len(rows)).embeddings)


def main() -> None:
    """Serve one precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--kernels", required=True)
    parser.add_argument("--cores", type=int, required=True)
    given = parser.parse_args()
    serve(lambda: Ours(given.model, given.precision, given.kernels, given.cores))


if __name__ == "__main__":
    main()
