"""`matryo key`: makes keys, hashes them, checks a file of keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from matryo.cli import main
from matryo.service.key_file import hash_of, parse_keys


def run(*arguments: str, stdin: str = "") -> Result:
    """What a command says."""
    return CliRunner().invoke(main, ["key", *arguments], input=stdin)


def test_new() -> None:
    """Standard output has the key and its line, which a file of keys takes."""
    found = run("new", "search")
    key, line = found.stdout.splitlines()
    assert key.startswith("sk-matryo-")
    assert len(key) == len("sk-matryo-") + 43
    (one,) = parse_keys(line, "keys")
    assert (one.name, one.key.sha256) == ("search", (hash_of(key),))
    assert key not in line
    assert run("new", "search").stdout.splitlines()[0] != key


def test_new_with_limits() -> None:
    """Every limit has an option."""
    options = {
        "--requests-per-minute": "600",
        "--tokens-per-minute": "1000000",
        "--tokens-per-day": "50000000",
        "--model": "a",
        "--expires": "2999-01-31",
        "--weight": "0.5",
    }
    words = [word for pair in options.items() for word in pair]
    line = run("new", "team.a", *words, "--model", "b").stdout.splitlines()[1]
    (one,) = parse_keys(line, "keys")
    key = one.key
    assert one.name == "team.a"
    limits = (key.requests_per_minute, key.tokens_per_minute, key.tokens_per_day)
    assert limits == (600, 1_000_000, 50_000_000)
    assert key.models == ("a", "b")
    assert key.expires == datetime(2999, 1, 31, tzinfo=UTC)
    assert key.weight == 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a b"], "is no name of a key"),
        (["a", "--expires", "tomorrow"], "must be a moment"),
        (["a", "--expires", "2001-01-01"], "is past"),
        (["a", "--requests-per-minute", "0"], "0 is not in the range"),
        (["a", "--weight", "0"], "is not in the range"),
        (["a", "--model", " "], "models must be a list of names"),
    ],
)
def test_new_refused(arguments: list[str], words: str) -> None:
    """No key is printed where the line would be wrong."""
    found = run("new", *arguments)
    assert found.exit_code
    assert words in found.stderr
    assert not found.stdout


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_hash(end: str) -> None:
    """A key is read from standard input, with or without an end of line."""
    key = "sk-0123456789abcdefghijkl"
    found = run("hash", stdin=key + end)
    assert found.stdout == f"{hash_of(key)}\n"
    assert not found.stderr


def test_short_key() -> None:
    """A key that can be guessed is hashed, with a warning."""
    found = run("hash", stdin="secret")
    assert found.stdout == f"{hash_of('secret')}\n"
    assert "may guess it" in found.stderr


@pytest.mark.parametrize("key", ["", "\n", "sk-a b", "é" * 30, "a\nb", "x" * 5000])
def test_hash_refused(key: str) -> None:
    """What no caller could send as a key is refused, and not repeated."""
    found = run("hash", stdin=key)
    assert found.exit_code == 1
    assert not found.stdout
    assert not key.strip() or key not in found.stderr


def test_check(tmp_path: Path) -> None:
    """A file in order is shown as a table: limits, and keys whose time is past."""
    file = tmp_path / "keys.toml"
    file.write_text(
        f'a = {{ sha256 = "{hash_of("a")}", requests_per_minute = 6000 }}\n'
        f'b = {{ sha256 = "{hash_of("b")}", expires = 2001-01-31T00:00:00Z, models = ["m"] }}\n'
    )
    found = run("check", str(file))
    assert found.exit_code == 0
    assert "6,000" in found.stdout
    assert "2001-01-31T00:00:00Z PAST" in found.stdout
    assert "has 2 keys" in found.stdout


def test_check_refused(tmp_path: Path) -> None:
    """A wrong file ends with status 1 and the line that is wrong."""
    file = tmp_path / "keys.toml"
    file.write_text("\na = { sha256 = 5 }")
    found = run("check", str(file))
    assert found.exit_code == 1
    assert f"{file} line 2: key 'a': sha256" in found.stderr
