"""Pictures of the page for the docs: `make screenshots` writes docs/images/page-*.png.

The server is one of all-minilm-l6-v2, which `make golden` builds, under a little load of this program.
"""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.integration.page.chromium import chromium
from tests.integration.page.served import minilm_store, serve

_FOLDER = Path(__file__).parents[3] / "docs" / "images"
_SIZES = {"": (1280, 900), "-phone": (390, 844)}
_PICTURES = {
    ("light", ""): ("now", "try", "choose", "map"),
    ("dark", ""): ("try", "choose"),
    ("light", "-phone"): ("try", "map"),
    ("dark", "-phone"): ("now", "choose"),
}
_WORDS = [
    "river",
    "stone",
    "light",
    "house",
    "green",
    "paper",
    "wind",
    "over",
    "quiet",
    "long",
    "bridge",
    "apple",
    "letter",
]
_TEXTS = [
    "The river rose two metres after the storm.",
    "Heavy rain flooded the lower town.",
    "The council will vote on the new bridge in May.",
    "When does the council decide about the bridge?",
    "The ♞ moves in an L.",
]
_LOOK_MS = 45_000  # of Now, so that its lines have a shape
_COLOURS = 128


def main() -> None:
    """Write every picture."""
    store = minilm_store()
    if store is None:
        raise SystemExit("The pictures show all-minilm-l6-v2; build it with: make golden")
    _FOLDER.mkdir(exist_ok=True)
    with serve(store) as server, chromium() as browser, _load(server.url):
        for (scheme, suffix), names in _PICTURES.items():
            page = _page(browser, server.url, scheme, *_SIZES[suffix])
            for name in names:
                page.get_by_role("tab", name=name.title()).click()
                _VIEWS[name](page)
                page.evaluate("scrollTo(0, 0)")
                page.mouse.move(0, 0)
                _write(page, f"page-{name}-{scheme}{suffix}.png")
            page.context.close()


def _page(browser: Browser, url: str, scheme: Any, width: int, height: int) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
    )
    page = context.new_page()
    page.goto(f"{url}/")
    page.locator("#panel-now .tile").first.wait_for()
    return page


def _now(page: Page) -> None:
    page.wait_for_timeout(_LOOK_MS)


def _try(page: Page) -> None:
    panel = page.locator("#panel-try")
    area = panel.get_by_label("Texts", exact=True)
    area.fill("\n".join(_TEXTS))
    area.evaluate("element => element.scrollTop = 0")
    panel.get_by_role("button", name="Embed", exact=True).click()
    panel.locator(".tokens").first.wait_for()


def _choose(page: Page) -> None:
    page.locator("#panel-choose").get_by_role("button", name="Take the sample").click()
    page.locator("#panel-choose table").first.wait_for()


def _map(page: Page) -> None:
    page.locator("#panel-map").get_by_role("button", name="Take the sample").click()
    page.locator("#panel-map svg.plot path").first.wait_for()


_VIEWS = {"now": _now, "try": _try, "choose": _choose, "map": _map}


def _write(page: Page, name: str) -> None:
    """Write the page down to one and a half windows, in a palette: a picture of the page has few colours."""
    width, height, whole = page.evaluate(
        "[innerWidth, innerHeight, document.documentElement.scrollHeight]"
    )
    clip: Any = {"x": 0, "y": 0, "width": width, "height": min(whole, height * 3 // 2)}
    shown = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
    path = _FOLDER / name
    shown.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.name, path.stat().st_size)  # noqa: T201 - a program's output


@contextmanager
def _load(url: str) -> Generator[None, None, None]:
    """A few callers, until the block ends."""
    over = threading.Event()

    def call(seed: int) -> None:
        random_ = random.Random(seed)
        with httpx2.Client(base_url=url, timeout=60) as client:
            while not over.wait(random_.uniform(0.02, 0.4)):
                texts = [
                    " ".join(random_.choices(_WORDS, k=random_.randint(4, 60)))
                    for _ in range(random_.choice((1, 1, 1, 4, 16)))
                ]
                body = {"input": texts, "input_type": random_.choice(("query", "document"))}
                client.post("/v1/embeddings", json=body).raise_for_status()

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
