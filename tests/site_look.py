"""`make docs-look`: the built site in a real browser, from files and from a folder of a server.

Every page opens without a request to elsewhere, without an error and without scrolling sideways on
a small screen; the search finds pages; axe-core finds no serious fault. Screenshots of some pages
lie in build/site-look afterwards, for eyes.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"
LOOK = ROOT / "build" / "site-look"
AXE = "axe-core@4.14.1"
LOOKED_AT = ("index", "settings", "reference", "models", "serve", "files/deploy/nginx/nginx.conf")
Size = tuple[int, int]
Scheme = Literal["light", "dark"]
SMALL: Size = (390, 844)
WIDE: Size = (1280, 900)
WINDOWS: tuple[tuple[Size, Scheme], ...] = ((SMALL, "light"), (WIDE, "light"), (WIDE, "dark"))
FOLDER = "some/folder"


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a log."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Say nothing."""


@contextmanager
def served() -> Generator[str, None, None]:
    """The URL of the site below a folder of a server."""
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / FOLDER).parent.mkdir()
        (Path(top) / FOLDER).symlink_to(SITE)
        handler = functools.partial(Quiet, directory=top)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/{FOLDER}"
            finally:
                server.shutdown()
                thread.join()


def axe() -> str:
    """The script of axe-core, fetched by npm once."""
    folder = ROOT / "build" / "npm"
    script = folder / f"{AXE}.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", AXE, "--silent"], cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member
            script.write_bytes(member.read())
    return script.read_text("utf-8")


class Look:
    """A window on the site, and what is wrong in it.

    Args:
        browser: opens it.
        base: the address of the site.
        size: width and height of the window.
        scheme: light or dark.
    """

    def __init__(
        self,
        browser: Browser,
        base: str,
        size: Size,
        scheme: Scheme = "light",
    ) -> None:
        self.base, self.size, self.scheme = base, size, scheme
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        self.page: Page = context.new_page()
        self.faults: list[str] = []
        self.page.on("request", lambda request: self._see(request.url))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on(
            "console", lambda line: self._note(line.text) if line.type == "error" else None
        )

    def open(self, name: str) -> None:
        """Show a page, which must not be wider than the window."""
        self.page.goto(f"{self.base}/{name}.html")
        width = self.page.evaluate("document.documentElement.scrollWidth")
        if width > self.size[0]:
            self._note(f"is {width} px wide")

    def search(self, words: str, title: str) -> None:
        """Find a page by words of it, and open it."""
        if self.size == SMALL:
            self.page.locator("label.md-header__button[for=__search]").click()
        self.page.get_by_role("textbox", name="Search").press_sequentially(words)
        found = self.page.locator(".md-search-result__link").filter(has_text=title).first
        expect(found).to_be_visible(timeout=10_000)
        self.shoot("search")
        found.click()
        expect(self.page.locator("h1")).to_contain_text(title)

    def check(self, script: str) -> None:
        """Note serious faults that axe-core finds in the page."""
        self.page.evaluate(script)
        found = self.page.evaluate("axe.run({preload: false})")
        for fault in found["violations"]:
            if fault["impact"] in ("serious", "critical"):
                targets = [node["target"] for node in fault["nodes"]][:5]
                self._note(f"{fault['id']}: {fault['help']}: {json.dumps(targets)}")

    def shoot(self, name: str) -> None:
        """Write a screenshot."""
        LOOK.mkdir(parents=True, exist_ok=True)
        file = f"{name.replace('/', '-')}-{self.size[0]}-{self.scheme}.png"
        self.page.screenshot(path=LOOK / file)

    def _see(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self._note(f"asks {url}")

    def _note(self, fault: str) -> None:
        where = self.page.url.removeprefix(self.base)
        self.faults.append(f"{where} at {self.size[0]} px, {self.scheme}: {fault}")


def look_from_files(browser: Browser, names: list[str]) -> list[str]:
    """The faults of every page on a small screen, and of the search."""
    small = Look(browser, SITE.as_uri(), SMALL)
    for name in names:
        small.open(name)
    small.open("index")
    small.search("MatryoVersionsDiffer", "Runbook")
    return small.faults


def look_from_server(browser: Browser, url: str) -> list[str]:
    """The faults of the largest and most different pages, for every eye."""
    script = axe()
    faults: list[str] = []
    for size, scheme in WINDOWS:
        window = Look(browser, url, size, scheme)
        for name in LOOKED_AT:
            window.open(name)
            window.check(script)
            window.shoot(name)
        window.open("index")
        window.search("MATRYO_GRACE_S", "Settings")
        faults += window.faults
    return faults


def main() -> None:
    """Look at the site from files and from a server; end with status 1 if anything is wrong."""
    names = [file.relative_to(SITE).as_posix()[:-5] for file in sorted(SITE.rglob("*.html"))]
    with sync_playwright() as playwright, served() as url:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        faults = look_from_files(browser, names) + look_from_server(browser, url)
        browser.close()
    sys.stdout.write("".join(f"{fault}\n" for fault in dict.fromkeys(faults)))
    sys.stdout.write(f"{len(names)} pages, {len(faults)} faults; screenshots in {LOOK}\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
