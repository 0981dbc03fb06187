"""A bundle beside `matryo serve` from the store: start, memory, size.

    .venv/bin/python -m bench.bundle ./nomic --home ~/.cache/matryo --runs 5

Starts both in turn, from a cold page cache and from a warm one, and prints medians. The first start
of the bundle, which unpacks its code, is measured once. Root drops the whole page cache; another
user drops the files of both from it, as far as no process maps them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.service import Service
from matryo.catalog.catalog import open_catalog
from matryo.core.environment import load_settings
from matryo.store.artifact import find_artifact
from matryo.store.bundle import Bundle, read_bundle
from matryo.store.layout import Store

_DROP = Path("/proc/sys/vm/drop_caches")
_SUBJECTS = ("bundle", "store")


@dataclass(slots=True)
class Seen:
    """What the starts of one program gave.

    Attributes:
        cold_s: seconds from the start of the process until ready, from a cold page cache.
        warm_s: likewise, from a warm one.
        rss_mb: resident memory after one request.
    """

    cold_s: list[float] = field(default_factory=list[float])
    warm_s: list[float] = field(default_factory=list[float])
    rss_mb: list[float] = field(default_factory=list[float])


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the bundle")
    parser.add_argument("--home", type=Path, help="the store with the model; default: MATRYO_HOME")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args(given)
    bundle = read_bundle(arguments.file.resolve())
    settings = load_settings(
        None, home=arguments.home, model=bundle.index.model_id, precision=bundle.index.precision
    )
    store = Store(settings.home)  # a bundle has ONNX Runtime's own operators
    artifact = find_artifact(
        store, open_catalog(settings).manifest(bundle.index.model_id), bundle.index.precision
    )
    with tempfile.TemporaryDirectory(prefix="bench-bundle-", dir=settings.home) as cache:
        drop, how = _dropper([bundle.file, Path(cache), settings.home])
        starts = {
            "bundle": lambda: Service(
                command=[str(bundle.file), "serve"], environ={"MATRYO_HOME": cache}
            ),
            "store": lambda: Service(
                *_flags(bundle),
                environ={"MATRYO_HOME": str(settings.home), "MATRYO_KERNELS": "onnxruntime"},
            ),
        }
        drop()
        with starts["bundle"]() as service:
            first_s = service.ready_s
        with starts["store"]():  # lays out the weights, if that was not done before
            pass
        seen = measure(starts, drop, arguments.runs)
    print(f"page cache dropped by {how}; medians of {arguments.runs} starts\n")
    print(table(seen, first_s, bundle.file.stat().st_size, artifact.n_bytes))


def measure(
    starts: dict[str, Callable[[], Service]], drop: Callable[[], None], runs: int
) -> dict[str, Seen]:
    """Start each program in turn, cold and warm."""
    seen = {name: Seen() for name in _SUBJECTS}
    for run in range(runs):
        for name in _SUBJECTS if run % 2 else reversed(_SUBJECTS):
            drop()
            with starts[name]() as service:
                seen[name].cold_s.append(service.ready_s)
            with starts[name]() as service:
                seen[name].warm_s.append(service.ready_s)
                _ask(service.port)
                seen[name].rss_mb.append(service.rss_mb)
    return seen


def table(seen: dict[str, Seen], first_s: float, file_bytes: int, artifact_bytes: int) -> str:
    """The figures as a table of Markdown."""
    bundle, store = (seen[name] for name in _SUBJECTS)
    rows = [
        ("second start, cold cache, s", bundle.cold_s, store.cold_s),
        ("second start, warm cache, s", bundle.warm_s, store.warm_s),
        ("resident memory, MB", bundle.rss_mb, store.rss_mb),
    ]
    lines = ["| | bundle | `matryo serve` | ratio |", "|---|---|---|---|"]
    lines.append(f"| first start, cold cache, s | {first_s:.2f} | | |")
    for name, ours, others in rows:
        a, b = statistics.median(ours), statistics.median(others)
        ratio = statistics.median(x / y for x, y in zip(ours, others, strict=True))
        lines.append(f"| {name} | {a:.2f} | {b:.2f} | {ratio:.2f} |")
    mb = [round(n_bytes / 1e6) for n_bytes in (file_bytes, artifact_bytes)]
    lines.append(f"| size, MB | {mb[0]} | {mb[1]}, the artefact | + {mb[0] - mb[1]} MB |")
    return "\n".join(lines)


def _flags(bundle: Bundle) -> tuple[str, ...]:
    return ("--model", bundle.index.model_id, "--precision", bundle.index.precision)


def _ask(port: int) -> None:
    """Embed a text."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"input": "The sky is blue."})
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    if (status := connection.getresponse().status) != http.client.OK:
        raise SystemExit(f"the server answered {status}")
    connection.close()


def _dropper(folders: Iterable[Path]) -> tuple[Callable[[], None], str]:
    """A function that empties the page cache, and what the function does in words."""
    if os.access(_DROP, os.W_OK):

        def drop_all() -> None:
            os.sync()
            _DROP.write_text("3", encoding="ascii")

        return drop_all, "drop_caches"
    python = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib")}
    roots = [*folders, *python, Path(sys.executable).resolve()]

    def drop_files() -> None:
        for root in roots:
            for path in [root, *root.rglob("*")] if root.is_dir() else [root]:
                if path.is_file():
                    _drop_file(path)

    return drop_files, "posix_fadvise of the files of both programs"


def _drop_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fdatasync(descriptor)  # only what the disk holds can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
