"""The command `matryo`. Each command imports what it needs and calls one function."""

from __future__ import annotations

import click

import matryo
from matryo.cli.group import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(matryo.__version__, prog_name="matryo")
def main() -> None:
    """OpenAI's embeddings endpoint over Matryoshka text models.

    Settings come from flags, the environment (MATRYO_NAME) and .env; `matryo serve --help`
    lists them.
    """
