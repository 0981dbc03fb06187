"""The engine alone: what a server cannot exceed."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from matryo.core.cores import available_cores
from matryo.engine import Engine, TokenIds


def engine_rate(
    engine: Engine, texts: Sequence[TokenIds], seconds: float, *, runs: int, size: int
) -> float:
    """Tokens a second with `runs` concurrent runs, on batches of `size` texts of similar length."""
    native = engine.manifest.output.dimensions.native
    ordered = sorted(texts, key=len)
    batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    batches = batches[::3] + batches[1::3] + batches[2::3]  # mixes long and short batches over time
    lock, done, n_taken = threading.Lock(), 0, 0
    started = time.perf_counter()

    def work() -> None:
        nonlocal done, n_taken
        while time.perf_counter() - started < seconds:
            with lock:
                batch = batches[n_taken % len(batches)]
                n_taken += 1
            engine.embed(batch, [native] * len(batch))
            with lock:
                done += sum(map(len, batch))

    threads = [threading.Thread(target=work) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done / (time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use an engine.

    Attributes:
        tokens_per_s: that the way has given.
        runs: at a time.
        size: texts of a batch.
    """

    tokens_per_s: float
    runs: int
    size: int


def best_way(
    engine: Engine, texts: Sequence[TokenIds], seconds: float, sizes: Sequence[int] = (4, 16)
) -> Way:
    """The best of several numbers of runs and batch sizes."""
    ways = [(runs, size) for runs in sorted({1, available_cores()}) for size in sizes]
    found = (
        Way(engine_rate(engine, texts, seconds / len(ways), runs=runs, size=size), runs, size)
        for runs, size in ways
    )
    return max(found, key=lambda way: way.tokens_per_s)


def best_rate(
    engine: Engine, texts: Sequence[TokenIds], seconds: float, sizes: Sequence[int] = (4, 16)
) -> float:
    """The tokens a second of the best way."""
    return best_way(engine, texts, seconds, sizes).tokens_per_s


def lone_ms(engine: Engine, texts: Sequence[TokenIds], seconds: float) -> float:
    """The median milliseconds of a run with one text, on every core."""
    native = engine.manifest.output.dimensions.native
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end or not times:
        engine.embed([texts[len(times) % len(texts)]], [native])
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
