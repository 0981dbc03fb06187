"""Browsers that allow little, readers with a keyboard alone, and texts from right to left."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.integration.page.conftest import NARROW, WIDE, Open, embed
from tests.integration.page.served import Served
from tests.integration.page.test_access import faults

ARABIC = "مرحبا بالعالم هذا نص طويل لا يتسع له السطر " * 8
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_no_clipboard(server: Served, open_page: Open) -> None:
    """Where the browser keeps the clipboard from the page, copying works, and the focus stays."""
    page = open_page(f"{server.url}/")
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.reload()
    embed(page, "apple")
    button = page.get_by_role("button", name="Copy the vector of text 1")
    button.press("Enter")
    expect(button).to_have_text("Copied")
    expect(button).to_be_focused()


def test_no_storage(server: Served, open_page: Open) -> None:
    """A browser that keeps nothing for the page shows it all the same."""
    page = open_page(f"{server.url}/")
    page.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', "
        "{get() { throw new DOMException('blocked', 'SecurityError'); }})"
    )
    page.reload()
    embed(page, "apple")


def test_a_file_beside_its_field(server: Served, open_page: Open) -> None:
    """A file that is dropped elsewhere does not take the page's place; a dragged text is free."""
    page = open_page(f"{server.url}/")
    drop = """(isFile) => {
      const dataTransfer = new DataTransfer();
      if (isFile) dataTransfer.items.add(new File(["a"], "a.txt"));
      else dataTransfer.setData("text/plain", "a");
      const event = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
      document.querySelector("h1").dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    assert page.evaluate(drop, True) is True
    assert page.evaluate(drop, False) is False


def test_a_file_again(server: Served, open_page: Open, tmp_path: Path) -> None:
    """A file that is chosen again takes its own place, however many texts it has."""
    page = open_page(f"{server.url}/#choose")
    panel = page.locator("#panel-choose")
    file = tmp_path / "many.txt"
    for count in (1500, 1600):
        file.write_text("a\n" * count)
        panel.get_by_label("Files", exact=True).set_input_files(file)
        expect(panel.get_by_text(f"many.txt: {count:,}")).to_be_visible()
    expect(panel.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_long_and_hostile_texts(server: Served, open_page: Open, axe: str, width: int) -> None:
    """Texts of 20,000 characters without a blank, from right to left, and with markup."""
    page = open_page(f"{server.url}/", width=width)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    embed(page, ARABIC, HOSTILE, "x" * 20_000, *(["word " * 300] * 4))
    shown = page.locator("#panel-try .items .text")
    expect(shown.nth(1)).to_have_text(HOSTILE)
    # The start of a text stays when the rest has no room: on the right, of these.
    assert shown.nth(0).evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert shown.nth(1).evaluate("element => getComputedStyle(element).direction") == "ltr"
    page.get_by_text("As the model reads them").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults(page, axe) == []


def test_colours_of_the_system(server: Served, open_page: Open) -> None:
    """With colours that the system forces, what is chosen is still told apart."""
    page = open_page(f"{server.url}/#choose")
    page.emulate_media(forced_colors="active")
    page.get_by_role("button", name="Take the sample").click()
    cells = page.locator("table.sizes button")
    cells.nth(1).click()
    outlines = cells.evaluate_all("all => all.map((one) => getComputedStyle(one).outlineStyle)")
    assert outlines[1] == "solid"
    assert set(outlines[2:]) == {"none"}
    borders = page.get_by_role("tab").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).borderBottomColor)"
    )
    assert len(set(borders)) == 2  # the open tab, and the others
