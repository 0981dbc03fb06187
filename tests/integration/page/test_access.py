"""The page for people who see little, use a keyboard, or have a small screen."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.integration.page.conftest import NARROW, WIDE, Open, embed, screen_is_wide_enough
from tests.integration.page.served import Served, serve

TABS = ("Now", "Try", "Choose", "Map")
EXAMPLE = ("A red apple.", "漢字", "word " * 100)


def faults(page: Page, axe: str) -> list[str]:
    """What axe-core finds that is serious or critical."""
    page.evaluate(axe)
    found: Any = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']} ({one['impact']}): {node['html']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_axe(server: Served, open_page: Open, axe: str, scheme: str, width: int) -> None:
    """axe-core finds no serious fault on any tab, before and after work, in light and in dark."""
    page = open_page(f"{server.url}/", scheme=scheme, width=width)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.locator(f"#panel-{tab.lower()} > *").first.wait_for()
        assert faults(page, axe) == [], tab
        assert screen_is_wide_enough(page), tab
    embed(page, *EXAMPLE)
    page.locator("#panel-try .tokens").first.wait_for()
    page.get_by_label("Size", exact=True).fill("20")
    page.locator("#fingerprint").click()
    assert faults(page, axe) == []
    assert screen_is_wide_enough(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_with_a_fault(store: dict[str, str], open_page: Open, axe: str, scheme: str) -> None:
    """The form for a key and the messages of faults have no serious fault either."""
    with serve(store, MATRYO_API_KEYS="good") as keyed:
        page = open_page(f"{keyed.url}/", scheme=scheme, expect=("401",))
        assert faults(page, axe) == []
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        page.locator("#key-fault:not([hidden])").wait_for()
        assert faults(page, axe) == []


def test_keyboard(server: Served, open_page: Open) -> None:
    """Tabs, controls, results and code are reached and used with the keyboard alone."""
    page = open_page(f"{server.url}/")
    page.locator("#panel-now .tile").first.wait_for()

    def focused() -> str:
        return page.evaluate(
            "document.activeElement.id || document.activeElement.getAttribute('aria-label') "
            "|| document.activeElement.textContent.trim()"
        )

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if focused() == name:
                return
        pytest.fail(f"the keyboard does not reach {name}")

    page.keyboard.press("Tab")
    assert focused() == "skip"
    page.keyboard.press("Enter")
    assert focused() == "main"
    page.reload()
    page.locator("#panel-now .tile").first.wait_for()
    tab_to("tab-now")
    for key, expected in (
        ("ArrowLeft", "map"),
        ("ArrowRight", "now"),
        ("End", "map"),
        ("Home", "now"),
        ("ArrowRight", "try"),
    ):
        page.keyboard.press(key)
        assert focused() == f"tab-{expected}"
        expect(page.locator(f"#tab-{expected}")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#panel-{expected}")).to_be_visible()
        assert page.locator("[role=tabpanel]:visible").count() == 1
    page.keyboard.press("Tab")
    assert focused() == "panel-try"
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("one\ntwo")
    page.keyboard.press("Control+Enter")
    page.locator("#vectors").wait_for()
    expect(page.locator("#said")).to_have_text("2 vectors")
    tab_to("Embed")
    tab_to("All 32 numbers of text 1")
    page.keyboard.press("Enter")
    expect(page.locator("#panel-try .numbers").first).to_contain_text(", ")
    assert len(page.locator("#panel-try .numbers").first.inner_text().split(", ")) == 32
    tab_to("Copy the vector of text 2")
    tab_to("Cosine of each pair of texts")
    tab_to("Copy the code")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("region", name="The request as code")).to_contain_text("import OpenAI")
    tab_to("The request as code")


def test_address(server: Served, open_page: Open) -> None:
    """A tab has an address of its own, which opens it."""
    page = open_page(f"{server.url}/#try")
    expect(page.locator("#panel-try")).to_be_visible()
    page.get_by_role("tab", name="Now").click()
    assert page.url.endswith("/#now")
    page.evaluate("location.hash = 'map'")
    expect(page.locator("#panel-map")).to_be_visible()


def test_sparklines_speak(server: Served, open_page: Open) -> None:
    """Each line has a name with its last value."""
    page = open_page(f"{server.url}/")
    chart = page.locator("#panel-now svg[role=img]").first
    expect(chart).to_have_attribute("aria-label", "Requests a second: 0.00 now, 0.00 at most")


def test_less_motion(server: Served, open_page: Open) -> None:
    """Whoever wants less motion gets figures that stand still until asked to go on."""
    page = open_page(f"{server.url}/", motion="reduce")
    button = page.locator("#panel-now").get_by_role("button", name="Go on")
    button.wait_for()
    button.click()
    page.locator("#panel-now").get_by_role("button", name="Pause").wait_for()
