"""How the benchmark talks with an engine that runs in a process of its own.

A request and its answer are each one line of JSON on standard input and output. This module needs
NumPy alone, because the processes of other engines have no Matryo.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Peer(Protocol):
    """An engine under test.

    Attributes:
        about: the library, its version, and what was done with the weights.
        settings: names of the settings to choose from.
    """

    about: str
    settings: Sequence[str]

    def runner(self, setting: str) -> tuple[Callable[[Ids], object], int]:
        """A function that embeds texts of equal length `(B, T)`, and the number of its callers.

        Args:
            setting: one of `settings`.
        """
        ...

    def vectors(self, texts: Sequence[Sequence[int]], setting: str) -> Vectors:
        """Unit vectors `(B, H)` of texts of different lengths, which run as one batch."""
        ...


def rate(run: Callable[[Ids], object], ids: Ids, callers: int, seconds: float) -> dict[str, float]:
    """Tokens a second of concurrent callers, of whom each runs at least once after a warm-up.

    Returns:
        The rate by the wall clock as `wall`, and that of a second of one core as `cpu`: tokens over
        the CPU time of the process.

    Args:
        run: embeds token ids.
        ids: `(B, T)`.
        callers: threads that call `run`.
        seconds: a caller starts no run after so many seconds.
    """
    ready, counts = threading.Barrier(callers + 1), [0] * callers
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            if ids.size <= _WARM_UP_TOKENS:
                run(ids)
            ready.wait()
            started = time.perf_counter()
            while not counts[index] or time.perf_counter() - started < seconds:
                run(ids)
                counts[index] += 1
        except BaseException as exc:
            failures.append(exc)
            ready.abort()
            raise

    threads = [threading.Thread(target=work, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    try:
        ready.wait()
    except threading.BrokenBarrierError:
        raise failures[0] from None
    started, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    n_tokens = sum(counts) * ids.size
    spent = {"wall": time.perf_counter() - started, "cpu": time.process_time() - used}
    return {clock: n_tokens / seconds for clock, seconds in spent.items()}


_WARM_UP_TOKENS = 1024  # a longer run takes seconds, beside which its warm-up is little


def serve(make: Callable[[], Peer]) -> None:
    """Answer requests until standard input ends. What a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    peer = make()

    def answer(facts: object) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    answer({"about": peer.about, "settings": list(peer.settings)})
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "shape" in request:
            run, callers = peer.runner(request["setting"])
            generator = np.random.default_rng(0)
            ids: Ids = generator.integers(0, int(request["vocabulary"]), tuple(request["shape"]))
            answer(rate(run, ids, callers, request["seconds"]))
        else:
            texts = json.loads(Path(request["texts"]).read_text("utf-8"))
            rows = [
                peer.vectors([texts[index] for index in batch], request["setting"])
                for batch in request["batches"]
            ]
            np.save(request["output"], np.concatenate(rows))
            answer(len(texts))
