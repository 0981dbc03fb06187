"""README and docs: links lead somewhere, and commands are those of the command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from matryo.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `matryo` command in the shell blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = [re.sub(r" (&|> \S+)$", "", line) for line in lines if line.startswith("matryo ")]
    return [shlex.split(call, comments=True)[1:] for call in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Each link to a file of the repository names one that exists, and a heading that it has."""
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    for path, anchor in links:
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path) -> None:
    """Each `matryo` command is one that the command line takes, options included."""
    for name, *arguments in commands(page):
        context = click.Context(main)
        command = main.get_command(context, name)
        assert command, name
        command.make_context(name, arguments, parent=context)


def test_pages_have_commands() -> None:
    """The tests above do not pass because they found nothing."""
    assert sum(len(commands(page)) for page in PAGES) >= 12
    assert anchors(ROOT / "docs" / "library.md") >= {"in-python", "compare-two-servers"}
