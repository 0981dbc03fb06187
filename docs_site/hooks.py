"""Hooks of MkDocs: the site has every file of the repository that a page links to.

The Markdown stays as a forge shows it: README.md links to `docs/api.md`, and a page of docs/ to
`../deploy/nginx/nginx.conf`. MkDocs knows docs/ alone. These hooks therefore put further files into
the site, and let each link lead to the place of its file there:

- a file of docs/ lies at its own path,
- README.md is the home page,
- any other file is `files/<its path>`: Markdown is a page, other text is shown as code, and what is
  long or no text is copied,
- a folder is its README.md, or else a list of its files.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOME = "README.md"
TOP = (HOME, "CHANGELOG.md")
"""Pages at the top that need no link to be in the site."""
MOST_SHOWN = 32 * 1024
"""Bytes of a file that is still shown as code; a longer one makes a slow page."""

_TAG = re.compile(r"<(?:a|img|source)\s[^>]*>")
_ATTRIBUTE = re.compile(r'(\s(?:href|src|srcset)=)"([^"\s]*)"')
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_LANGUAGES = {
    "": "text",
    ".cfg": "text",
    ".conf": "nginx",
    ".h": "cpp",
    ".service": "ini",
    ".socket": "ini",
    ".tpl": "text",
}
_LESS = {"LOG.md": 0.2, "files/CHANGELOG.md": 0.2}
"""Weights in the search of pages that have every word."""

log = logging.getLogger("mkdocs.hooks.repository")


def place(path: str) -> str:
    """Where a file or folder of the repository lies in the site's sources.

    Args:
        path: from the repository's top, with slashes; that of a folder ends with one.
    """
    if path.startswith("docs/") and not path.endswith("/"):
        return path.removeprefix("docs/")
    if path == HOME:
        return "index.md"
    # Servers may not show files that begin with a dot.
    below = posixpath.join("files", *(part.lstrip(".") for part in path.split("/")))
    if path.endswith("/"):
        return f"{below}index.md"
    return below if path.endswith(".md") or not _is_shown(path) else f"{below}.md"


def target(origin: str, url: str) -> str | None:
    """The file or folder of the repository that a link names; None for a link to elsewhere.

    Args:
        origin: the file or folder that has the link, as `place` takes it.
        url: as the Markdown has it.
    """
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), unquote(parts.path)))
    if not (ROOT / path).is_dir():
        return path
    readme = posixpath.join(path, "README.md")
    return readme if (ROOT / readme).is_file() else f"{path}/"


def is_known(path: str) -> bool:
    """Whether the repository has a file or folder."""
    return not path.startswith("..") and (ROOT / path).exists()


def additions(pages: Iterable[str]) -> dict[str, str]:
    """What the site needs beside docs/, by path: its Markdown, empty for what is copied.

    Args:
        pages: the Markdown files of docs/, which are looked through for links.
    """
    found: dict[str, str] = {}
    seen = {*TOP, *pages}
    waiting = sorted(seen)
    while waiting:
        path = waiting.pop()
        text = _markdown(path)
        if not path.startswith("docs/") or path.endswith("/"):
            found[path] = text
        if path.endswith((".md", "/")):
            linked = {target(path, url) for url in _LINK.findall(text)} - seen - {None}
            known = [to for to in linked if to and is_known(to)]
            seen.update(known)
            waiting += known
    return found


def _is_shown(path: str) -> bool:
    """Whether a file is short text."""
    file = ROOT / path
    if file.stat().st_size > MOST_SHOWN:
        return False
    try:
        return "\0" not in file.read_text("utf-8")
    except UnicodeDecodeError:
        return False


def _markdown(path: str) -> str:
    """A file or folder as Markdown; empty for one that is copied."""
    file = ROOT / path
    if path.endswith("/"):
        inside = (
            one for one in file.rglob("*") if one.is_file() and "__pycache__" not in one.parts
        )
        names = sorted(one.relative_to(file).as_posix() for one in inside)
        return "\n".join([f"# {path}\n", *(f"- [{name}]({name})" for name in names), ""])
    if path.endswith(".md"):
        return file.read_text("utf-8")
    if not _is_shown(path):
        return ""
    text = file.read_text("utf-8")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    language = _LANGUAGES.get(file.suffix, file.suffix[1:])
    return f"# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


class _Links(Treeprocessor):
    """Turns links to files of the repository into links to their places in the site."""

    def __init__(self) -> None:
        super().__init__()
        self.page = ""
        self.origin = ""

    def run(self, root: Element) -> None:
        """Rewrite the links of the page that is being rendered."""
        for element in root.iter():
            for name in ("href", "src"):
                if url := element.get(name):
                    element.set(name, self._rewritten(url))
        # HTML that a page has as such is no element, and MkDocs checks none of its links.
        blocks = self.md.htmlStash.rawHtmlBlocks
        for i, block in enumerate(blocks):
            if isinstance(block, str):  # pyright: ignore[reportUnnecessaryIsInstance] - or an Element
                blocks[i] = _TAG.sub(self._rewritten_tag, block)

    def _rewritten_tag(self, tag: re.Match[str]) -> str:
        return _ATTRIBUTE.sub(lambda found: f'{found[1]}"{self._rewritten(found[2])}"', tag.group())

    def _rewritten(self, url: str) -> str:
        path = target(self.origin, url)
        if path is None:
            return url
        if not is_known(path):
            log.warning("%s links to '%s', which is not in the repository.", self.origin, url)
            return url
        relative = posixpath.relpath(place(path), posixpath.dirname(self.page) or ".")
        fragment = urlsplit(url).fragment
        return f"{relative}#{fragment}" if fragment else relative


class _LinksExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Run before MkDocs checks each link, which it does last."""
        _links.md = md
        md.treeprocessors.register(_links, "repository", 1)


_links = _Links()
_origins: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Rewrite links; leave out what needs to know the address of the site."""
    config.markdown_extensions = [*config.markdown_extensions, _LinksExtension()]  # type: ignore[list-item]
    config.theme.static_templates -= {"404.html", "sitemap.xml"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to."""
    own = (f"docs/{file.src_uri}" for file in files.documentation_pages())
    _origins.clear()
    for path, text in additions(own).items():
        uri = place(path)
        if not text:
            copied = File.generated(config, uri, abs_src_path=str(ROOT / path))
        else:
            _origins[uri] = path
            copied = File.generated(config, uri, content=text, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(copied)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remember which file's links are rewritten next; weigh the page for the search."""
    uri = page.file.src_uri
    _links.page, _links.origin = uri, _origins.get(uri, f"docs/{uri}")
    if page.file.inclusion.is_not_in_nav() and not page.parent and not page.is_homepage:
        page.meta["search"] = {"exclude": True}
    elif uri in _LESS:
        page.meta["search"] = {"boost": _LESS[uri]}
    return markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Give the theme's search a name for screen readers."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
