"""`--help`: every command is in a section, and has examples that the command line takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from matryo.cli import main
from matryo.core.fixed import Fixed, fix

# What a shell puts before, between and behind commands.
_ENDS = re.compile(r"\s(?:\||&&|>>?|<)\s")


def commands(
    group: click.Group = main, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and subcommand, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command, name
        yield (*above, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))


def help_of(words: tuple[str, ...]) -> str:
    """What `--help` says of a command."""
    done = CliRunner().invoke(main, [*words, "--help"], prog_name="matryo")
    assert done.exit_code == 0, done.output
    return done.stdout


def examples(words: tuple[str, ...]) -> list[str]:
    """The lines of a command's examples, continued lines joined."""
    found = re.search(r"^ *Examples:\n((?: {2,}\S.*\n)+)", help_of(words), re.MULTILINE)
    assert found, words
    return [line.strip() for line in re.sub(r"\\\n\s*", "", found[1]).splitlines()]


def calls(line: str) -> list[list[str]]:
    """The arguments of each `matryo` in a line of a shell."""
    parts = [shlex.split(part) for part in _ENDS.split(line)]
    bare = [[word for word in part if not re.match(r"[A-Z_]+=", word)] for part in parts]
    return [part[1:] for part in bare if part[:1] == ["matryo"]]


def parse(arguments: list[str]) -> None:
    """Parse a command line as far as click does, and run nothing."""
    context, command = click.Context(main), main
    name, *rest = arguments
    while True:
        found = command.get_command(context, name)
        assert found, arguments
        if not isinstance(found, click.Group):
            found.make_context(name, rest, parent=context)
            return
        context, command = click.Context(found, parent=context), found
        name, *rest = rest


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_examples(words: tuple[str, ...]) -> None:
    """Each command has examples of itself, with arguments and options that there are."""
    lines = examples(words)
    for line in lines:
        for arguments in calls(line):
            parse(arguments)
    own = [call for line in lines for call in calls(line) if call[: len(words)] == list(words)]
    assert len(own) == sum("matryo" in line for line in lines)
    assert own


@pytest.mark.parametrize("line", ["matryo models --jsn", "matryo key nw a", "matryo embedd a"])
def test_a_wrong_example_is_found(line: str) -> None:
    """The test above sees a flag and a command that do not exist."""
    (arguments,) = calls(line)
    with pytest.raises((click.UsageError, AssertionError)):
        parse(arguments)


def test_sections() -> None:
    """The help of the whole has each command once, by what it is for, and the first steps."""
    text = help_of(())
    top = [words[0] for words, _ in commands() if len(words) == 1]
    for name in top:
        assert len(re.findall(rf"^  {name} +[A-Z]", text, re.MULTILINE)) == 1, name
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert [title for title in titles if title != "Indexes"] == [
        *("Options", "Serve", "Models", "Texts", "Keys", "First steps"),
    ]
    steps = re.findall(r"^  matryo (\S.*?)  +\S", text, re.MULTILINE)
    assert len(steps) == 3
    for step in steps:
        parse(shlex.split(step))
    assert max(map(len, text.splitlines())) <= 80


def test_sections_of_a_bundle() -> None:
    """A bundle's help names no command that a bundle lacks, and no other model."""
    fix(Fixed(where="minilm"))
    try:
        text = help_of(())
    finally:
        fix(Fixed())
    assert not re.search(r"^  (pull|build|add|remove|bundle) ", text, re.MULTILINE)
    assert "all-minilm" not in text
    assert "matryo serve  " in text
