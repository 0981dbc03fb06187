"""Choose and Map: what they show is what the API gives, and they say what went wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Locator, Page, Request, Route, expect

from tests.integration.page.conftest import NARROW, WIDE, Open, copied, screen_is_wide_enough
from tests.integration.page.served import Served
from tests.integration.page.test_access import faults

WORDS = (
    "red",
    "green",
    "apple",
    "pear",
    "train",
    "night",
    "bread",
    "salt",
    "water",
    "rain",
    "code",
)
DOCUMENTS = [
    " ".join(WORDS[(i * step + step) % len(WORDS)] for step in range(1, 4 + i % 5)) + f" {i}"
    for i in range(24)
]
QUESTIONS = ["Which apple is red?", "night train to the sea", "salt in the bread"]
PLACES = 10
TYPES = {"float": "float32", "int8": "int8", "binary": "binary"}

Matrix = NDArray[np.float64]


def api_rows(served: Served, texts: list[str], **options: Any) -> Matrix:
    """The numbers that the API answers."""
    body = {"input": texts, "encoding_format": "float"} | options
    answer = httpx2.post(f"{served.url}/v1/embeddings", json=body, timeout=60).raise_for_status()
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float64)


def api_rankings(served: Served, kinds: tuple[str, str], **options: Any) -> NDArray[np.intp]:
    """Documents by each question, best first, by the API's numbers; ties as the page has them.

    Args:
        served: the server.
        kinds: input types of questions and of documents.
        options: `dimensions` and `embedding_type` of both.
    """
    questions = api_rows(served, QUESTIONS, input_type=kinds[0], **options)
    documents = api_rows(served, DOCUMENTS, input_type=kinds[1], **options)
    if options.get("embedding_type") == "binary":
        bits = [
            np.unpackbits(each.astype(np.int8).view(np.uint8), axis=1)
            for each in (questions, documents)
        ]
        scores = -(bits[0][:, None] != bits[1][None]).sum(axis=2)
    else:
        scores = questions @ documents.T
    return np.argsort(-scores, axis=1, kind="stable")


def kept(reference: NDArray[np.intp], other: NDArray[np.intp]) -> str:
    """The first places that stay, on average, as the page writes them."""
    each = [
        len(set(one[:PLACES]) & set(two[:PLACES]))
        for one, two in zip(reference, other, strict=True)
    ]
    return f"{np.mean(each):.1f}".removesuffix(".0") + f" of {PLACES}"


def open_choose(page: Page) -> Locator:
    """Open the tab, with the documents and questions of this file."""
    page.get_by_role("tab", name="Choose").click()
    panel = page.locator("#panel-choose")
    panel.get_by_label("Documents", exact=True).fill("\n".join(DOCUMENTS))
    panel.get_by_label("Questions").fill("\n".join(QUESTIONS))
    return panel


def compare(panel: Locator) -> None:
    """Compare, and wait for what the page shows."""
    panel.get_by_role("button", name="Compare").click()
    panel.locator(".verdict").wait_for()


@contextmanager
def requests_for_vectors(page: Page) -> Generator[list[dict[str, Any]], None, None]:
    """The bodies of the requests for vectors that the page sends in the block."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/embeddings"):
            bodies.append(json.loads(request.post_data or ""))

    page.on("request", note)
    yield bodies
    page.remove_listener("request", note)


def sizes_of(served: Served, model: str) -> list[int]:
    """The trained sizes of a model."""
    facts = httpx2.get(f"{served.url}/v1/models/{model}").raise_for_status().json()
    return facts["dimensions"]["trained"]


def test_agreement_is_that_of_the_api(server: Served, open_page: Open) -> None:
    """At each size and type the page shows what the API's numbers give, after two requests."""
    page = open_page(f"{server.url}/")
    panel = open_choose(page)
    with requests_for_vectors(page) as bodies:
        compare(panel)
        sizes = sizes_of(server, "tiny")
        kinds = ("query", "document")
        reference = api_rankings(server, kinds, dimensions=sizes[0])
        assert len(sizes) > 1
        for size in sizes:
            for kind, name in TYPES.items():
                found = api_rankings(server, kinds, dimensions=size, embedding_type=kind)
                wanted = f"{size} dimensions, {name}: {kept(reference, found)} stay"
                cell = panel.locator(f'[data-key="{size}-{kind}"]')
                expect(cell).to_contain_text(f"{wanted}, ")
                cell.click()
                expect(cell).to_have_attribute("aria-pressed", "true")
                expect(cell).to_be_focused()
    asked = [(body["input_type"], body["dimensions"], body["input"]) for body in bodies]
    assert asked == [
        ("document", sizes[0], DOCUMENTS),
        ("query", sizes[0], QUESTIONS),
    ]
    assert screen_is_wide_enough(page)


def test_rankings_are_those_of_the_api(server: Served, open_page: Open) -> None:
    """Each list holds the API's order, with where each document was at full size."""
    page = open_page(f"{server.url}/")
    panel = open_choose(page)
    compare(panel)
    sizes = sizes_of(server, "tiny")
    reference = api_rankings(server, ("query", "document"), dimensions=sizes[0])
    panel.get_by_label("Question", exact=True).select_option("1")
    moved = 0
    for kind, name in TYPES.items():
        panel.locator("[data-key=type]").select_option(kind)
        for size in sizes:
            if (size, kind) == (sizes[0], "float"):
                continue  # the reference itself
            found = api_rankings(
                server, ("query", "document"), dimensions=size, embedding_type=kind
            )[1]
            was = reference[1].tolist()
            shown = panel.locator(".ranking", has_text=f"{size} {name}").locator("ol > li")
            expect(shown).to_have_count(PLACES)
            for place, (line, document) in enumerate(zip(shown.all(), found, strict=False), 1):
                text = line.inner_text().replace("\n", " ")
                before = was.index(document) + 1
                assert text.endswith(DOCUMENTS[document])
                if before > PLACES:
                    assert f"▲ from {before}" in text
                    assert f"new, was at {before}:" in text
                    moved += 1
                elif before != place:
                    assert f"{'▲' if before > place else '▼'} {abs(before - place)}" in text
                    assert f"{'up' if before > place else 'down'} {abs(before - place)}:" in text
                    moved += 1
    assert moved


def test_numbers_are_those_of_the_api(server: Served, open_page: Open) -> None:
    """What the page makes of vectors of full size is what the API gives for a size and type."""
    page = open_page(f"{server.url}/")
    sizes = sizes_of(server, "tiny")
    full = api_rows(server, DOCUMENTS, dimensions=sizes[0])
    for size in sizes:
        for kind in ("float", "int8", "uint8", "binary", "ubinary"):
            wanted = api_rows(server, DOCUMENTS, dimensions=size, embedding_type=kind)
            found = page.evaluate(
                """async ([rows, size, kind]) => {
                  const { cut, quantize } = await import("./page/numbers.js");
                  const made = rows.map((row) => quantize(cut(Float32Array.from(row), size), kind));
                  return made.map((row) => Array.from(row));
                }""",
                [full.tolist(), size, kind],
            )
            apart = np.abs(np.array(found) - wanted)
            if kind == "float":
                assert apart.max() < 1e-6
            else:
                # A level at a rounding tie may be the next one.
                assert apart.max() <= ("int" in kind)
                assert np.mean(apart > 0) < 0.005


def test_prefixes_are_those_of_the_api(server: Served, open_page: Open) -> None:
    """Without prefixes, and with the same for both: as the API ranks with those input types."""
    page = open_page(f"{server.url}/")
    panel = open_choose(page)
    compare(panel)
    panel.get_by_role("button", name="Try other prefixes").click()
    rows = panel.get_by_role("table", name="other prefixes").locator("tbody tr")
    expect(rows).to_have_count(3)
    reference = api_rankings(server, ("query", "document"))
    for row, kind in zip(rows.all(), ("none", "document", "query"), strict=True):
        found = api_rankings(server, (kind, kind))
        expect(row.locator("td").first).to_have_text(kept(reference, found))
        first = int(np.sum(reference[:, 0] == found[:, 0]))
        expect(row.locator("td").last).to_have_text(f"{first} of {len(QUESTIONS)}")
    assert screen_is_wide_enough(page)


def test_a_model_without_prompts_or_smaller_sizes(server: Served, open_page: Open) -> None:
    """Halves and quarters are marked as not trained, and no prefix is offered."""
    native = sizes_of(server, "other")[0]

    def full_size_alone(route: Route) -> None:
        facts = route.fetch().json()
        facts["dimensions"]["trained"] = [native]
        route.fulfill(json=facts)

    page = open_page(f"{server.url}/")
    page.route("**/v1/models/other", full_size_alone)
    page.reload()
    page.locator("#model").select_option("other")
    panel = open_choose(page)
    compare(panel)
    heads = panel.locator(".sizes tbody th").all_inner_texts()
    assert [" ".join(head.split()) for head in heads] == [
        f"{native} full size", f"{native // 2} not trained", f"{native // 4} not trained",
    ]  # fmt: skip
    # Each of these finds itself at any size, and yet what was not trained is not suggested.
    panel.get_by_label("Documents", exact=True).fill("\n".join(DOCUMENTS[:2]))
    panel.get_by_label("Questions").fill("\n".join(DOCUMENTS[:2]))
    compare(panel)
    expect(panel.locator(f'[data-key="{native // 4}-float"]')).to_contain_text("1 of 1 stay")
    chosen = panel.locator("[aria-pressed=true]").get_attribute("data-key") or ""
    assert chosen.startswith(f"{native}-")
    expect(panel.get_by_text("other puts no prefix")).to_be_visible()
    expect(panel.get_by_role("button", name="Try other prefixes")).to_have_count(0)
    # Another model has other results.
    page.locator("#model").select_option("tiny")
    expect(panel.locator(".verdict")).to_have_count(0)


@pytest.mark.parametrize("kind", ["float", "uint8", "ubinary"])
def test_copied_code(server: Served, open_page: Open, kind: str) -> None:
    """The code of a chosen size runs, and asks for that size and type."""
    page = open_page(f"{server.url}/")
    panel = open_choose(page)
    compare(panel)
    size = sizes_of(server, "tiny")[-1]
    cell = {"float": "float", "uint8": "int8", "ubinary": "binary"}[kind]
    panel.locator(f'[data-key="{size}-{cell}"]').click()
    panel.get_by_label("Language").select_option("curl")
    panel.get_by_label("For", exact=True).select_option("query")
    if kind != "float":
        panel.locator("[data-key=exact]").select_option(kind)
    done = subprocess.run(
        ["sh", "-c", copied(page, "Copy the code")], capture_output=True, text=True, check=True
    )
    row = np.array(json.loads(done.stdout)["data"][0]["embedding"], np.float64)
    options = {"dimensions": size, "embedding_type": kind, "input_type": "query"}
    np.testing.assert_array_equal(row, api_rows(server, ["A text of yours."], **options)[0])


def test_cancel(server: Served, open_page: Open) -> None:
    """Embedding stops when the reader cancels; nothing is shown, and the button has the focus."""
    page = open_page(f"{server.url}/")

    def hold(_: Route) -> None:
        """Never answer."""

    page.route("**/v1/embeddings", hold)
    panel = open_choose(page)
    panel.get_by_role("button", name="Compare").click()
    expect(panel.get_by_role("button", name="Compare")).to_be_disabled()
    expect(panel.get_by_role("progressbar")).to_be_visible()
    expect(panel.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(panel.get_by_role("button", name="Compare")).to_be_focused()
    expect(panel.get_by_role("progressbar")).to_be_hidden()
    expect(panel.get_by_role("alert")).to_have_count(0)
    expect(panel.locator(".verdict")).to_have_count(0)
    page.unroute("**/v1/embeddings")
    compare(panel)


def test_a_refusal_is_shown(server: Served, open_page: Open) -> None:
    """The server's own message stands at the top of the panel until the next try."""
    page = open_page(f"{server.url}/", expect=("500",))
    body = {"error": {"message": "The disk is on fire.", "type": "server_error"}}
    page.route("**/v1/embeddings", lambda route: route.fulfill(status=500, json=body))
    panel = open_choose(page)
    panel.get_by_role("button", name="Compare").click()
    expect(panel.get_by_role("alert")).to_have_text("The disk is on fire.")
    page.unroute("**/v1/embeddings")
    compare(panel)
    expect(panel.get_by_role("alert")).to_have_count(0)


def test_what_is_missing_is_said(server: Served, open_page: Open) -> None:
    """No documents, no questions, too many of each."""
    # The page tells mistakes of its own from refusals, and writes both where the reader looks.
    page = open_page(f"{server.url}/", expect=("Error: ",))
    page.get_by_role("tab", name="Choose").click()
    panel = page.locator("#panel-choose")
    for documents, questions, message in (
        ("", "a?", "There are no documents."),
        ("a\nb", "", "There are no questions."),
        ("a", "a?", "There is one document"),
        ("a\nb", "a?\n" * 11, "There are 11 questions, and this page compares at most 10."),
        ("a\n" * 2001, "a?", "There are 2,001 documents, and this page compares at most 2,000."),
    ):
        # Chromium takes seconds to type thousands of lines.
        panel.get_by_label("Documents", exact=True).evaluate(
            "(area, text) => { area.value = text; area.dispatchEvent(new Event('input')); }",
            documents,
        )
        panel.get_by_label("Questions").fill(questions)
        panel.get_by_role("button", name="Compare").click()
        expect(panel.get_by_role("alert")).to_contain_text(message)


def test_files(server: Served, open_page: Open, tmp_path: Path) -> None:
    """Files of every kind are taken, told apart on the map, and taken away again."""
    files = {
        "a.csv": 'text,n\n"one, two",1\nthree,2\n',
        "b.jsonl": '{"text": "four"}\n{"text": "five"}\n',
        "c.md": "# six\nseven\n\neight",
        "d.txt": "nine\nten",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    page = open_page(f"{server.url}/", expect=("Error: ",))
    page.get_by_role("tab", name="Map").click()
    panel = page.locator("#panel-map")
    panel.get_by_label("Files", exact=True).set_input_files([tmp_path / name for name in files])
    expect(panel.get_by_text("8 documents")).to_be_visible()
    panel.get_by_role("button", name="Draw").click()
    expect(panel.locator(".plot").get_by_role("option")).to_have_count(8)
    expect(panel.get_by_role("list", name="Legend").locator("li")).to_have_text(
        [f"{name} (2)" for name in files]
    )
    expect(panel.locator(".plot").get_by_role("option").nth(4)).to_have_accessible_name(
        "# six seven (c.md)"
    )
    shapes = [path.get_attribute("d") for path in panel.locator(".legend path").all()]
    colours = panel.locator(".legend path").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).fill)"
    )
    assert len(set(shapes)) == len(set(colours)) == len(files)

    panel.get_by_role("button", name="Remove b.jsonl").click()
    expect(panel.get_by_text("6 documents")).to_be_visible()
    expect(panel.locator(".plot")).to_have_count(0)
    (tmp_path / "e.bin").write_bytes(b"\xff\xfe\x00")
    panel.get_by_label("Files", exact=True).set_input_files(tmp_path / "e.bin")
    expect(panel.get_by_role("alert")).to_contain_text("e.bin is no text in UTF-8")
    # Both tabs have the same documents.
    page.get_by_role("tab", name="Choose").click()
    expect(page.locator("#panel-choose").get_by_text("6 documents")).to_be_visible()


def test_dropped_file(server: Served, open_page: Open) -> None:
    """A file that is dropped is taken as a chosen one."""
    page = open_page(f"{server.url}/")
    page.get_by_role("tab", name="Choose").click()
    panel = page.locator("#panel-choose")
    transfer = page.evaluate_handle(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["one\\ntwo\\nthree"], "dropped.txt"));
          return transfer;
        }"""
    )
    panel.locator(".documents").dispatch_event("drop", {"dataTransfer": transfer})
    expect(panel.get_by_text("dropped.txt: 3")).to_be_visible()


def test_map(server: Served, open_page: Open) -> None:
    """The map takes the vectors of Choose; the keyboard goes through the texts."""
    page = open_page(f"{server.url}/")
    panel = open_choose(page)
    compare(panel)
    panel = page.locator("#panel-map")
    with requests_for_vectors(page) as bodies:
        page.get_by_role("tab", name="Map").click()
        options = panel.locator(".plot").get_by_role("option")
        expect(options).to_have_count(len(DOCUMENTS))
        assert bodies == []

    facts = panel.get_by_text("of the variance").inner_text()
    rows = api_rows(server, DOCUMENTS, input_type="document")
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    first, second = 100 * variances[:2] / variances.sum()
    for share in (first, second, first + second):
        assert f"{share:.1f} %" in facts or f"{share:.2f} %" in facts

    panel.get_by_role("button", name="Take the sample").focus()
    page.keyboard.press("Tab")
    expect(panel.get_by_label("Clusters")).to_be_focused()
    page.keyboard.press("Tab")
    spots = [box for each in options.all() if (box := each.bounding_box())]
    across = sorted(range(len(spots)), key=lambda i: spots[i]["x"] + spots[i]["width"] / 2)
    down = sorted(range(len(spots)), key=lambda i: spots[i]["y"] + spots[i]["height"] / 2)
    at = down.index(across[-1])
    for keys, texts in (
        ([], across[:1]),
        (["ArrowLeft"], across[:1]),
        (["ArrowRight"] * (len(across) - 1), across[1:]),
        (["Home", "End"], [across[0], across[-1]]),
        (["ArrowDown"], down[at + 1 : at + 2] or [down[-1]]),
        (["ArrowUp"] * 2, [down[at], down[at - 1]] if at + 1 < len(down) else down[-2:-4:-1]),
    ):
        for key, text in zip(keys or ["Shift"], texts, strict=True):
            page.keyboard.press(key)
            expect(options.nth(text)).to_be_focused()
            expect(panel.locator(".tip")).to_contain_text(DOCUMENTS[text])
    page.keyboard.press("Escape")
    expect(panel.locator(".tip")).to_be_hidden()
    options.nth(5).hover()
    expect(panel.locator(".tip")).to_contain_text(DOCUMENTS[5])

    panel.get_by_label("Clusters").select_option("4")
    table = panel.get_by_role("table", name="The texts of each group").locator("tbody tr")
    expect(table).to_have_count(4)
    counts = [int(row.locator("td").first.inner_text()) for row in table.all()]
    assert sum(counts) == len(DOCUMENTS)
    for i, row in enumerate(table.all(), 1):
        nearest = row.locator("li").first.inner_text()
        expect(panel.get_by_role("option", name=f"{nearest} (Cluster {i})")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_axe_with_results(real: Served, open_page: Open, axe: str, scheme: str, width: int) -> None:
    """With results, axe-core finds no serious fault, and the page does not scroll sideways."""
    page = open_page(f"{real.url}/", scheme=scheme, width=width)
    page.get_by_role("tab", name="Choose").click()
    panel = page.locator("#panel-choose")
    panel.get_by_role("button", name="Take the sample").click()
    panel.locator(".verdict").wait_for()
    panel.get_by_text("How to read the table").click()
    assert faults(page, axe) == []
    assert screen_is_wide_enough(page)
    page.get_by_role("tab", name="Map").click()
    page.locator("#panel-map .plot").wait_for()
    page.locator("#panel-map [role=option]").first.focus()
    assert faults(page, axe) == []
    assert screen_is_wide_enough(page)
