"""A server whose engine costs nothing: what is measured of it is the cost of serving.

python -m bench.instant --port 8080
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence

import numpy as np

from matryo.assembly.models import equal_part
from matryo.commands.processes import run_processes
from matryo.core.environment import load_settings
from matryo.core.settings import Settings
from matryo.engine import BatchResult, Encoded, Interrupt, Side, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.http.listening import Listener, bind
from matryo.main import build_server, create_app
from tests.fakes import FakeEngine


class InstantEngine(FakeEngine):
    """An engine whose tokens and vectors cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        native = self.manifest.output.dimensions.native
        self._row = super().vector(np.zeros(1, np.int64), native)
        self._known: dict[tuple[str, str], Encoded] = {}

    def tokenize(
        self, texts: Sequence[str], prefix: str = "", side: Side = "start"
    ) -> list[Encoded]:
        """The tokens of each text, which are found once for equal texts."""
        for text in texts:
            if (prefix, text) not in self._known:
                (self._known[prefix, text],) = super().tokenize([text], prefix, side)
        return [self._known[prefix, text] for text in texts]

    def embed(
        self,
        texts: Sequence[TokenIds],
        dimensions: Sequence[int],
        normalize: Sequence[bool] | None = None,  # noqa: ARG002 - as its class
        interrupt: Interrupt | None = None,  # noqa: ARG002 - as its class
    ) -> BatchResult:
        """A vector for each text."""
        return BatchResult(list(map(self.vector, texts, dimensions)), 0, 1e-5, 0.0)

    def vector(self, ids: TokenIds, dimensions: int) -> FloatArray:  # noqa: ARG002 - as its class
        """The same vector for every text."""
        return self._row[:dimensions]


def serve(
    settings: Settings, listener: Listener, on_ready: Callable[[], None], cores: int | None = None
) -> None:
    """Serve `InstantEngine` in this process until a signal to stop."""

    def ready() -> None:
        gc.collect()
        gc.freeze()  # as `matryo serve` does
        on_ready()

    build_server(create_app(settings, InstantEngine(), cores), listener, settings, ready).run()


def _nothing() -> None:
    """Take no note of the server's being ready."""


def main(flags_given: Sequence[str] | None = None) -> None:
    """Serve until a signal to stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args(flags_given)
    settings = load_settings(
        None, port=given.port, grpc_port=given.grpc_port, processes=given.processes
    )
    listener = bind("127.0.0.1", given.port)
    if given.processes == 1:
        serve(settings, listener, _nothing)
    else:
        run_processes(settings, listener, serve, _nothing, equal_part(settings))


if __name__ == "__main__":
    main()
