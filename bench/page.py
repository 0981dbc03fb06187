"""Measures the page: time to the first paint on loopback, and the bytes of its files.

    python -m bench.page [--rounds 20]

Serves two tiny random models, and opens the page in the machine's Chromium with an empty cache each
time. `paint`: from the start of the navigation to the first paint with content. `shown`: until the
models are in the header. `again`: the first paint with a warm cache.
"""

from __future__ import annotations

import gzip
import statistics
import tempfile
from pathlib import Path

import click
from playwright.sync_api import Page

from matryo.http.page.routes import FOLDER
from tests.integration.page.chromium import chromium
from tests.integration.page.served import serve, tiny_store

_PAINT = """new Promise((resolve) => new PerformanceObserver((list) => {
  const [entry] = list.getEntriesByName("first-contentful-paint");
  if (entry) resolve(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Loads to measure.")
def main(rounds: int) -> None:
    """Print times and sizes."""
    sizes = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir())}
    times: dict[str, list[float]] = {"paint": [], "shown": [], "again": []}
    with (
        tempfile.TemporaryDirectory() as root,
        serve(tiny_store(Path(root))) as server,
        chromium() as browser,
    ):
        for _ in range(
            rounds + 1
        ):  # the first load, which starts Chromium's own processes, is left out
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(f"{server.url}/")
            page.wait_for_selector("#facts:not([hidden])")
            times["shown"].append(page.evaluate("performance.now()"))
            times["paint"].append(_paint(page))
            page.reload()
            times["again"].append(_paint(page))
            context.close()
    for name, found in times.items():
        kept = found[1:]
        click.echo(f"{name}: median {statistics.median(kept):.0f} ms, most {max(kept):.0f} ms")
    packed = sum(len(gzip.compress(content)) for content in sizes.values())
    total = sum(map(len, sizes.values()))
    click.echo(f"{len(sizes)} files, {total:,} bytes ({packed:,} on the wire, by gzip)")


def _paint(page: Page) -> float:
    return page.evaluate(_PAINT)


if __name__ == "__main__":
    main()
