"""Chromium, servers, and pages that may do nothing that the policy forbids."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.integration.page.chromium import axe_source, chromium
from tests.integration.page.served import Served, minilm_store, serve, tiny_store

WIDE, NARROW = 1280, 390

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    return axe_source()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a store with two random models."""
    return tiny_store(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="session")
def server(store: dict[str, str]) -> Iterator[Served]:
    """A server of both models, without keys."""
    with serve(store) as started:
        yield started


@pytest.fixture(scope="session")
def real(store: dict[str, str]) -> Iterator[Served]:
    """A server of MiniLM where the machine's store has it, else of the random models."""
    with serve(minilm_store() or store) as started:
        yield started


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """A function that opens a page of a server; see `watched`."""
    with watched(browser) as opened:
        yield opened


@contextmanager
def watched(browser: Browser) -> Generator[Open, None, None]:
    """A function that opens pages: `open_page(url, width=1280, scheme="light", expect=())`.

    At the end, no page may have broken its Content-Security-Policy, written an error to the
    console but for those that contain a text of `expect`, or sent a request to another origin.
    """
    contexts: list[Any] = []
    faults: list[str] = []

    def open_page(
        url: str,
        *,
        width: int = WIDE,
        scheme: Any = "light",
        motion: Any = "no-preference",
        expect: tuple[str, ...] = (),
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion=motion
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)

        def on_console(message: ConsoleMessage) -> None:
            told = message.text
            if message.type in ("error", "warning") and not any(one in told for one in expect):
                faults.append(f"console: {told}")

        def on_request(request: Request) -> None:
            origin = "/".join(url.split("/")[:3])
            if not request.url.startswith((origin + "/", "data:", "blob:")):
                faults.append(f"request to {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("request", on_request)
        page.expose_function("matryoFault", lambda fault: faults.append(f"policy: {fault}"))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => "
            "matryoFault(event.violatedDirective + ' ' + event.blockedURI))"
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def embed(page: Page, *texts: str, whole: bool = False) -> None:
    """Open Try, write texts, and wait for their vectors."""
    page.get_by_role("tab", name="Try").click()
    panel = page.locator("#panel-try")
    panel.get_by_label("Texts", exact=True).fill("\n".join(texts))
    panel.get_by_label("One whole text" if whole else "One text a line").check()
    submit(page)


def submit(page: Page) -> None:
    """Send the form of Try again, and wait until its answer replaces the one before."""
    page.evaluate("document.querySelector('#vectors')?.setAttribute('id', 'old-vectors')")
    page.locator("#panel-try").get_by_role("button", name="Embed", exact=True).click()
    page.locator("#vectors").wait_for()


def copied(page: Page, button: str) -> str:
    """What a button of the page copies."""
    page.get_by_role("button", name=button, exact=True).click()
    return page.evaluate("navigator.clipboard.readText()")


def screen_is_wide_enough(page: Page) -> bool:
    """Whether the page does not scroll sideways."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")
