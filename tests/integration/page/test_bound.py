"""Servers that leave less to a request: one size, one input type, few texts."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.integration.page.conftest import Open, embed
from tests.integration.page.served import serve
from tests.integration.page.test_choose import compare, open_choose, requests_for_vectors


@pytest.mark.parametrize("locked", ["dimensions", ""])
def test_a_size_below_the_models_own(store: dict[str, str], open_page: Open, locked: str) -> None:
    """A default is a default; a server that gives one size only is asked for that."""
    only = {"MATRYO_MODEL": "tiny", "MATRYO_DIMENSIONS": "16"}
    with serve(store | only, locked=locked) as bound:
        page = open_page(f"{bound.url}/")
        now = page.locator("#panel-now tbody tr").last
        panel = open_choose(page)
        with requests_for_vectors(page) as bodies:
            compare(panel)
        assert {body["dimensions"] for body in bodies} == {16 if locked else 32}
        sizes = panel.locator("table.sizes tbody th")
        if locked:
            expect(sizes).to_have_text(["16the only size"])
            panel.locator("table.sizes button").first.click()
            expect(panel.locator(".verdict")).to_contain_text("At 16 dimensions in float32")
            expect(now).to_contain_text("this server gives 16 only")
        else:
            expect(sizes).to_have_text(["32full size", "16trained"])
            expect(now).to_contain_text("also trained for 16")
        page.get_by_role("tab", name="Map").click()
        expect(page.locator(".plot").get_by_role("option").first).to_be_visible()
        embed(page, "apple")
        expect(page.locator("#panel-try")).to_contain_text("16 numbers each")
        if locked:
            expect(page.get_by_label("Size", exact=True)).to_be_disabled()
            expect(page.locator("#panel-try")).to_contain_text("gives 16 dimensions only")
        page.close()  # before its server ends


def test_one_input_type(store: dict[str, str], open_page: Open) -> None:
    """A server of one input type embeds all by that, and the page says so of prefixes."""
    only = {"MATRYO_MODEL": "tiny", "MATRYO_DEFAULT_INPUT_TYPE": "query"}
    with serve(store | only, locked="default_input_type") as bound:
        page = open_page(f"{bound.url}/")
        panel = open_choose(page)
        with requests_for_vectors(page) as bodies:
            compare(panel)
        assert {body["input_type"] for body in bodies} == {"query"}
        expect(panel).to_contain_text("This server embeds every text as query")
        page.close()  # before its server ends


def test_few_texts_a_request(store: dict[str, str], open_page: Open) -> None:
    """Texts go in several requests, tokens are those of as many as one takes, and both are said."""
    with serve(store, MATRYO_MAX_INPUTS="2") as small:
        page = open_page(f"{small.url}/")
        embed(page, "a", "b", "c")
        panel = page.locator("#panel-try")
        expect(panel).to_contain_text("of the first 2 texts")
        expect(panel).to_contain_text("has sent these texts in 2 requests")
        page.close()  # before its server ends
