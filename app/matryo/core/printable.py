"""Texts of callers in a log line: short, and without a character that moves a terminal's cursor."""

from __future__ import annotations

MOST_CHARS = 1024
"""Characters of one value of a log line, such as a path; the rest of the value is cut."""


def cut(text: str, most: int = MOST_CHARS) -> str:
    """The first `most` characters of a text; the end says how long a text was that is cut."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def escaped(text: str) -> str:
    r"""A text with each character that cannot be printed as Python writes it, such as `\n`.

    These are control characters, line separators, characters that change the direction of the
    text, lone surrogates, and every space but the plain one.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def escaped_lines(text: str) -> str:
    r"""A text of several lines, such as a traceback, each escaped, cut and indented.

    Only `\n` ends a line. No line begins as a log line does, whatever an exception's text is.
    """
    return "\n".join(f"    {escaped(cut(line))}" for line in text.split("\n"))
