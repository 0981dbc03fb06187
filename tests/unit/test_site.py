"""README and docs/ as a site: what `make docs` builds, and the pages that are written from the code."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from docs_site import hooks, reference, settings
from matryo.core.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

LOADS = {
    "audio": "src", "embed": "src", "iframe": "src", "img": "src", "link": "href",
    "object": "data", "script": "src", "source": "src", "video": "src",
}  # fmt: skip
"""What a browser fetches by itself."""
MARKUP = re.compile(r"\]\(|```|`|\*\*|\|\s*-{3}|\| |^\s*[-*] |^\d+\. |^#+ |<!--", re.MULTILINE)


@dataclass
class Html(HTMLParser):
    """The parts of a page that tests look at.

    Attributes:
        loads: addresses that a browser fetches.
        links: addresses of links.
        ids: anchors.
        text: of the article, without code.
        navigation: addresses of links in the navigation.
    """

    page: Path
    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    navigation: set[str] = field(default_factory=set)
    text: str = ""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the page."""
        super().__init__()
        self.feed(self.page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note addresses and anchors."""
        values = {name: value or "" for name, value in attrs}
        if tag in LOADS and (url := values.get(LOADS[tag])):
            self.loads.append(url)
        if srcset := values.get("srcset"):
            self.loads += [choice.split()[0] for choice in srcset.split(",")]
        if "style" in values:
            self.loads += re.findall(r"url\(([^)]*)\)", values["style"])
        if "id" in values:
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if "nav" in self._open:
                self.navigation.add(values["href"])
        if tag in ("article", "code", "nav", "pre", "script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leave what was entered."""
        if tag in self._open:
            del self._open[len(self._open) - 1 - self._open[::-1].index(tag)]

    def handle_data(self, data: str) -> None:
        """Keep the text of the article."""
        if "article" in self._open and not {"code", "pre", "script", "style"} & {*self._open}:
            self.text += data


def mkdocs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Build a site."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", *map(str, arguments)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a warning fails."""
    folder = tmp_path_factory.mktemp("site")
    done = mkdocs("--site-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Html]:
    """Every page of the site."""
    return [Html(file) for file in sorted(site.rglob("*.html"))]


def docs() -> list[str]:
    """The pages of docs/, without their ending."""
    return [file.relative_to(DOCS).as_posix()[:-3] for file in sorted(DOCS.rglob("*.md"))]


def is_elsewhere(url: str) -> bool:
    """Whether an address is outside the site."""
    parts = urlsplit(url.strip("\"' "))
    return bool(parts.netloc or parts.scheme not in ("", "data"))


def test_each_page_is_in_the_navigation(site: Path) -> None:
    """From the home page, each page of docs/ is one click away, and so are its README's parts."""
    linked = Html(site / "index.html").navigation
    assert [name for name in docs() if f"{name}.html" not in linked] == []
    assert linked >= {"files/CONTRIBUTING.html", "files/CHANGELOG.html", "files/SECURITY.html"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: list[Html]) -> None:
    """No page and no style sheet names a font, script, style or image of another place."""
    for page in pages:
        assert page.loads, page.page
        assert [url for url in page.loads if is_elsewhere(url)] == [], page.page
        # An absolute path would not work below a folder of a server, or from files.
        assert [url for url in page.loads if url.startswith("/")] == [], page.page
        paths = [unquote(urlsplit(url).path) for url in page.loads if not url.startswith("data:")]
        assert [path for path in paths if not (page.page.parent / path).is_file()] == [], page.page
    for sheet in site.rglob("*.css"):
        urls = re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", sheet.read_text("utf-8"))
        assert [url for pair in urls for url in pair if is_elsewhere(url)] == [], sheet


def test_links_lead_somewhere(site: Path, pages: list[Html]) -> None:
    """Each link within the site leads to a file of the site, and to an anchor that the file has."""
    ids = {page.page: page.ids for page in pages}
    for page in pages:
        for url in page.links:
            parts = urlsplit(url)
            if is_elsewhere(url):
                continue
            path = (page.page.parent / unquote(parts.path)).resolve() if parts.path else page.page
            path = path / "index.html" if path.is_dir() else path
            assert path.is_relative_to(site.resolve()), f"{page.page}: {url}"
            assert path.is_file(), f"{page.page}: {url}"
            if parts.fragment and path.suffix == ".html":
                assert unquote(parts.fragment) in ids[path] | {"__top"}, f"{page.page}: {url}"


def test_markdown_is_rendered(pages: list[Html]) -> None:
    """No list, table, link or code of a page is left as it was written."""
    left = [(page.page.name, found[0]) for page in pages if (found := MARKUP.search(page.text))]
    assert left == []


@pytest.mark.parametrize("page", [*hooks.TOP, "CONTRIBUTING.md", "docs"])
def test_lists_are_indented(page: str) -> None:
    """What follows a blank line in an item is indented by four, or MkDocs ends the list there."""
    for file in (ROOT / page).rglob("*.md") if (ROOT / page).is_dir() else [ROOT / page]:
        # Code at the margin may have any indentation.
        text = re.sub(
            r"^(```+).*?^\1$", "", file.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        assert not re.search(r"\n\n {1,3}\S", text), file


def test_files_of_the_repository(site: Path) -> None:
    """A linked file is shown with its text, a long one is copied, and a folder is listed."""
    files = site / "files"
    shown = Html(files / "deploy" / "nginx" / "nginx.conf.html").page.read_text("utf-8")
    assert "proxy_pass" in shown
    dashboard = "deploy/grafana/dashboards/matryo.json"
    assert (files / dashboard).read_bytes() == (ROOT / dashboard).read_bytes()
    rules = Html(files / "deploy" / "prometheus" / "rules" / "index.html")
    assert {"alerts.yml.html", "recording.yml.html"} <= {*rules.links}
    assert (files / "env.example.html").is_file()
    assert "files/examples/index.html" in Html(site / "index.html").links


def test_search(site: Path) -> None:
    """The search knows each page of docs/ and the README, and no listing of a file."""
    index = (site / "search" / "search_index.json").read_text("utf-8")
    # The same for pages that are opened from files.
    assert (site / "search" / "search_index.js").read_text("utf-8") == f"var __index = {index}"
    found = {urlsplit(entry["location"]).path for entry in json.loads(index)["docs"]}
    assert {f"{name}.html" for name in docs()} <= found
    assert not any(path.startswith("files/deploy/nginx") for path in found)


def test_faults_end_a_build(tmp_path: Path) -> None:
    """A page outside the navigation, a link to nothing, and one to a heading that is not there."""
    shutil.copytree(ROOT / "docs_site", tmp_path / "docs_site")
    config = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[0]
    nav = "\nnav: [{ Home: index.md }, { One: one.md }, { Changes: files/CHANGELOG.md }]\n"
    (tmp_path / "docs").mkdir()
    for name, text in {
        "mkdocs.yml": config + nav,
        "README.md": '# Home\n\n[a](docs/one.md#one)\n\n<img src="none.png">\n',
        "CHANGELOG.md": "# Changes\n",
        "CONTRIBUTING.md": "",
        "SECURITY.md": "",
        "docs/one.md": "# One\n\n[a](lost.md#nowhere) [b](nothing.md) [c](../nothing.conf)\n",
        "docs/lost.md": "# Lost\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = mkdocs("-f", tmp_path / "mkdocs.yml", "--site-dir", tmp_path / "site")
    assert done.returncode != 0
    for words in (
        "  - lost.md\n",
        "docs/one.md links to 'nothing.md', which is not in the repository.",
        "docs/one.md links to '../nothing.conf', which is not in the repository.",
        "does not contain an anchor '#nowhere'",
        "README.md links to 'none.png', which is not in the repository.",
    ):
        assert words in done.stderr
    assert "index.md" not in done.stderr


@pytest.mark.parametrize(
    ("origin", "url", "path", "place"),
    [
        ("README.md", "docs/api.md", "docs/api.md", "api.md"),
        ("docs/api.md", "keys.md", "docs/keys.md", "keys.md"),
        ("docs/adr/0002-a-small-http-server.md", "../LOG.md", "docs/LOG.md", "LOG.md"),
        ("docs/api.md", "../README.md", "README.md", "index.md"),
        ("docs/api.md", "../SECURITY.md#a", "SECURITY.md", "files/SECURITY.md"),
        ("docs/api.md", "../examples/", "examples/README.md", "files/examples/README.md"),
        ("docs/api.md", "../deploy", "deploy/", "files/deploy/index.md"),
        ("deploy/", "release.py", "deploy/release.py", "files/deploy/release.py.md"),
        ("docs/api.md", "../.env.example", ".env.example", "files/env.example.md"),
    ],
)
def test_places(origin: str, url: str, path: str, place: str) -> None:
    """A link means the same file in the site as on a forge."""
    assert hooks.target(origin, url) == path
    assert hooks.place(path) == place


@pytest.mark.parametrize("url", ["https://example.org/a.md", "#limits", "/a", "mailto:a@b.c", ""])
def test_other_links_stay(url: str) -> None:
    """What leads elsewhere, or within the page, is not touched."""
    assert hooks.target("docs/api.md", url) is None


def test_settings_page_is_true() -> None:
    """docs/settings.md is what the code says; `make settings-page` writes it."""
    assert (DOCS / "settings.md").read_text("utf-8") == settings.page()


def test_settings_page_has_each_setting() -> None:
    """Each setting once, with its flag where `matryo serve` has one."""
    text = settings.page()
    names = re.findall(r"^### MATRYO_(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(name.upper() for name in Settings.model_fields)
    port = text.partition("### MATRYO_PORT\n")[2].partition("###")[0]
    assert (
        "| a whole number of at least 0 and at most 65,535 | `8080` | `--port` | nothing |" in port
    )
    assert "never shown" in text.partition("### MATRYO_API_KEYS\n")[2].partition("###")[0]


def test_settings_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new setting must be put into a group; the error names it."""
    monkeypatch.delitem(settings.GROUPS, "Keys")
    with pytest.raises(ValueError, match="api_keys, keys, keys_file, metrics_key: put each"):
        settings.page()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document of the page of routes."""
    return reference.document()


def test_reference_page_is_true(document: dict[str, Any]) -> None:
    """docs/reference.md is what the document says; `make reference-page` writes it."""
    assert (DOCS / "reference.md").read_text("utf-8") == reference.page(document)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Title, description and part of the page of each operation."""
    text = reference.page(document)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            title = f"### {method.upper()} {path}\n"
            assert text.count(title) == 1, title
            yield (
                title,
                operation,
                re.split(r"^##", text.partition(title)[2], flags=re.MULTILINE)[0],
            )


def test_reference_page_has_everything(document: dict[str, Any]) -> None:
    """Each operation with parameters, fields, examples, statuses, headers and objects."""
    text = reference.page(document)
    schemas = document["components"]["schemas"]
    for title, operation, part in operations(document):
        for parameter in operation.get("parameters", ()):
            assert f"| `{parameter['name']}` |" in part, title
        for body in operation.get("requestBody", {}).get("content", {}).values():
            name = body["schema"].get("$ref", "").rpartition("/")[2]
            for one in (schemas[name] if name else body["schema"])["properties"]:
                assert f"| `{one}` |" in part, title
            for example in body.get("examples", {}).values():
                assert example["summary"] in part, title
        for status, answer in operation["responses"].items():
            assert f"| {status} |" in part, title
            # What the introduction says of every answer.
            assert "x-request-id" in answer["headers"], title
            assert all(f"\n| `{name}` |" in text for name in answer["headers"]), title
        assert ("Key.\n" in part) == ("security" in operation), title
    assert reference._ELSEWHERE not in text
    links = set(re.findall(r"\]\(#(\w+)\)", text))
    assert links <= {name.lower() for name in re.findall(r"^##+ (\w+)$", text, re.MULTILINE)}
