"""Commands of API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.group(
    epilog="""\b
Examples:
  matryo key new search
  matryo key check keys.toml
"""
)
def key() -> None:
    """Make API keys, and check a file of keys."""


@key.command(
    epilog="""\b
Examples:
  matryo key new search
  matryo key new crawler --requests-per-minute 600 --tokens-per-day 50000000
  matryo key new team-a --model all-minilm-l6-v2 --expires 2099-01-31 --weight 2
"""
)
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Default: no limit.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Default: no limit.")
@click.option("--tokens-per-day", type=click.IntRange(min=1), help="Quota. Default: none.")
@click.option("--model", "models", multiple=True, help="Model that the key may use; repeatable.")
@click.option("--expires", metavar="MOMENT", help="Such as 2027-01-31 or 2027-01-31T12:00:00Z.")
@click.option("--weight", type=click.FloatRange(0.01, 100), help="Share beside other keys [1].")
def new(name: str, **limits: Any) -> None:
    """Print a new key, this once, and the line for the file of keys.

    The first line of standard output is the key for the caller. The second is for the file that
    MATRYO_KEYS_FILE names; it holds the key's hash.
    """
    from matryo.commands.key import make

    make(name, limits)


@key.command(
    name="hash",
    epilog="""\b
Examples:
  matryo key hash
  printenv OPENAI_API_KEY | matryo key hash
""",
)
def hash_key() -> None:
    """Print the SHA-256 of a key, which is read from standard input."""
    from matryo.commands.key import print_hash

    print_hash()


@key.command(
    epilog="""\b
Examples:
  matryo key check keys.toml
"""
)
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Say what a file of keys has, or what is wrong in it; then the exit status is 1."""
    from matryo.commands.key import check_file

    check_file(file)
