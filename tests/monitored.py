"""`matryo serve` with an engine that fails, waits and blocks when it is bidden.

    .venv/bin/python -m tests.monitored NAME [OPTIONS OF matryo serve]

`NAME` ends the engine's fingerprint. Standard input has one command a line: `fail` and `work` for
every run, `hold` and `release` for every run, `delay SECONDS` for the time of a run, `block SECONDS`
for the event loop. `tests.monitoring` runs this module.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from matryo import cli
from matryo.commands import serve
from matryo.http.server import Server
from tests.fakes import MINILM, FakeEngine


def main() -> None:
    """Serve, and obey standard input."""
    name = sys.argv.pop(1)
    engine = FakeEngine(MINILM)
    engine.fingerprint = f"{MINILM.id}/fp32/{name}"
    engine.delay_s = 0.005
    started: list[Server] = []
    build_server = serve.build_server

    def build(*args: Any, **kwargs: Any) -> Server:
        started.append(build_server(*args, **kwargs))
        return started[0]

    serve.ready_engines = lambda *_: (engine,)
    serve.build_server = build
    threading.Thread(target=_obey, args=(engine, started), daemon=True).start()
    sys.argv = ["matryo", "serve", *sys.argv[1:]]
    cli.main()


def _obey(engine: FakeEngine, started: list[Server]) -> None:
    for line in sys.stdin:
        command, *values = line.split()
        match command:
            case "fail":
                engine.before = _fail
            case "work":
                engine.before = lambda _: None
            case "hold":
                engine.gate.clear()
            case "release":
                engine.gate.set()
            case "delay":
                engine.delay_s = float(values[0])
            case "block":
                loop = started[0]._loop
                assert loop
                loop.call_soon_threadsafe(time.sleep, float(values[0]))
            case _:
                os._exit(2)


def _fail(_: object) -> None:
    raise RuntimeError("bidden to fail")


if __name__ == "__main__":
    main()
