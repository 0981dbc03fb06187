"""The command that keeps an index true."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from matryo.core import logging as logs
from matryo.core.errors import MatryoError, SettingsInvalid

_CHANGED, _NOT_MADE = 1, 2

_file = click.argument("file", metavar="INDEX.json", type=click.Path(path_type=Path))
_precision = click.option(
    "--precision", help="Of the model on this machine: fp32, int8, q8, q4 or auto."
)


@contextmanager
def _two_for_failures() -> Generator[None]:
    """End with status 2 whatever fails: 1 is an answer."""
    try:
        yield
    except MatryoError as exc:
        logs.fatal(exc.message)
    except BrokenPipeError:
        raise
    except OSError as exc:
        name = f"{exc.filename}: " if exc.filename else ""
        logs.fatal(f"{name}{exc.strerror or exc}")
    except SystemExit as exc:  # the process that prepares a model has said why
        if exc.code != 1:
            raise
    except Exception:
        traceback.print_exc()
    else:
        return
    sys.exit(_NOT_MADE)


@click.group(
    epilog="""\b
Examples:
  matryo guard record index.json --model nomic-embed-text-v1.5 --input-type document
  matryo guard record index.json --url http://embeddings:8080/v1
  matryo guard check index.json && deploy
"""
)
def guard() -> None:
    """Say whether the vectors that are made today still belong to an index.

    Record once what made an index, keep the file beside the index, and check before a rollout, in
    CI, or every night. docs/guard.md says what to do about each answer.
    """


@guard.command(
    epilog="""\b
Examples:
  matryo guard record index.json --model nomic-embed-text-v1.5 --dimensions 256
  matryo guard record index.json --url http://embeddings:8080/v1 --input-type document
  matryo guard record index.json --url https://api.openai.com/v1 --model text-embedding-3-small

\b
They record vectors of this machine; of a server of Matryo; and of another server, which says
nothing of its model, so that the record has vectors of a few texts alone.
"""
)
@_file
@click.option(
    "--url",
    metavar="URL",
    help="The server that made the index (http://.../v1; OPENAI_API_KEY is its key). Default: the "
    "model on this machine.",
)
@click.option("--model", metavar="NAME", help="As requests name it. Default: the default model.")
@_precision
@click.option(
    "--input-type",
    metavar="TYPE",
    help="As requests for the documents name it: document, ... Leave out if they name none.",
)
@click.option(
    "--dimensions", type=click.IntRange(min=1), help="Likewise. Leave out if they name none."
)
@click.option(
    "--embedding-type",
    type=click.Choice(["float", "int8", "uint8", "binary", "ubinary"]),
    default="float",
    show_default=True,
    help="Numbers of the index.",
)
@click.option("--force", is_flag=True, help="Replace the file: the index was made anew.")
def record(
    file: Path,
    url: str | None,
    model: str | None,
    precision: str | None,
    input_type: str | None,
    dimensions: int | None,
    embedding_type: str,
    force: bool,
) -> None:
    """Write INDEX.json: what makes the vectors of an index now.

    The file holds facts of the model, and the vectors of a few fixed texts. It holds no key, and
    nothing of the index. The exit status is 2 if nothing could be recorded.
    """
    with _two_for_failures():
        from matryo.commands.guard import command
        from matryo.commands.guard.facts import Asked

        if url is not None and precision is not None:
            raise SettingsInvalid(
                "--precision is of the model on this machine; a server has its own"
            )
        asked = Asked(input_type, dimensions, embedding_type)
        command.record(file, command.Place(url, model, precision), asked, force=force)


@guard.command(
    epilog="""\b
Examples:
  matryo guard check index.json
  matryo guard check index.json --url http://staging:8080/v1
  matryo guard check index.json --local --precision int8
  matryo guard check index.json --json --strict | jq -r .verdict

\b
They check where the index was made; a server before it takes over; what this machine would give;
and in a script.
"""
)
@_file
@click.option(
    "--url",
    metavar="URL",
    help="Ask this server. Default: that of the record, or the model on this machine.",
)
@click.option("--local", is_flag=True, help="Ask the model on this machine.")
@click.option("--model", metavar="NAME", help="Ask for this model. Default: that of the record.")
@_precision
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of sentences.")
@click.option("--strict", is_flag=True, help="Exit with 1 for a drift within rounding, too.")
def check(
    file: Path,
    url: str | None,
    local: bool,
    model: str | None,
    precision: str | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Compare what is made now with INDEX.json; name every cause of a difference.

    \b
    The verdict is one of
      same     the same bits
      renamed  the same bits under another fingerprint
      drifted  other bits, by rounding alone: another CPU or library
      changed  vectors that do not belong to the index

    The exit status is 0 if the vectors may share the index, 1 if they may not, and 2 if the check
    could not be made.
    """  # noqa: D301 - click's mark
    with _two_for_failures():
        from matryo.commands.guard import command

        if url is not None and local:
            raise SettingsInvalid("--url and --local name two models to ask; give one of them")
        place = command.Place(url) if url is not None or local else None
        found = command.check(file, place, model=model, precision=precision, as_json=as_json)
    if found.verdict == "changed" or (strict and found.verdict == "drifted"):
        sys.exit(_CHANGED)
