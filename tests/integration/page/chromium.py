"""The machine's Chromium, and axe-core from the npm registry."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_AXE = "axe-core@4.14.1"
# Of the registry, `npm view axe-core@4.14.1 dist.integrity`.
_AXE_SHA512 = (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
_CACHE = Path(__file__).parents[3] / "build"  # git ignores it


@contextmanager
def chromium() -> Generator[Browser, None, None]:
    """A Chromium without a window, until the block ends."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise SystemExit("The tests of the page need Chromium: apt-get install chromium")
    # Its sandbox refuses to work for root.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=args)
        try:
            yield browser
        finally:
            browser.close()


def axe_source() -> str:
    """The script of axe-core; npm fetches it once."""
    packed = _CACHE / "axe-core-4.14.1.tgz"
    if not packed.is_file():
        if shutil.which("npm") is None:
            raise SystemExit(
                "The tests of the page need npm, which fetches axe-core: apt-get install npm"
            )
        _CACHE.mkdir(exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", _AXE], cwd=_CACHE, check=True, stdout=subprocess.DEVNULL
        )
    digest = hashlib.sha512(packed.read_bytes()).digest()
    assert base64.b64encode(digest).decode() == _AXE_SHA512, f"{packed} is another file"
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member
        return member.read().decode()
