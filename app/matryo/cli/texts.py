"""Commands that embed texts without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from matryo.cli.options import ModelArgument, flag, precision_option, settings_from, trust_option
from matryo.core.errors import SettingsInvalid

if TYPE_CHECKING:
    from matryo.commands.embedding.chunks import Pooling
    from matryo.commands.sinks.block import Dtype
    from matryo.commands.sources.item import Format

_SOME_FAILED = 3


@click.command(
    epilog="""\b
Examples:
  matryo batch requests.jsonl vectors.jsonl
  matryo batch requests.jsonl vectors.jsonl --errors failed.jsonl --precision int8
  zcat requests.jsonl.gz | matryo batch - - > vectors.jsonl

\b
A line, as for OpenAI's Batch API:
  {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "..."}}
"""
)
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("output", metavar="OUTPUT", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--errors",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File for the lines that failed. Default: OUTPUT.",
)
@click.option("--restart", is_flag=True, help="Begin anew; drop what an earlier run has done.")
@click.option(
    "--model",
    multiple=True,
    help="Model; give it again for more, the first is the default. Default: the model that the "
    "lines name, else MATRYO_MODEL.",
)
@flag("--precision", "Numbers of the model: fp32, int8, q8, q4 or auto.")
@trust_option
def batch(
    source: Path,
    output: Path,
    errors: Path | None,
    restart: bool,
    model: tuple[str, ...],
    **flags: str | bool | None,
) -> None:
    """Answer the lines of OpenAI's Batch API, from INPUT to OUTPUT, without a server.

    A line of OUTPUT has the body that POST /v1/embeddings answers. INPUT and OUTPUT may be -,
    standard input and output.

    Given again after it was killed, the same command goes on behind the last line that OUTPUT has.
    OUTPUT.progress says where that is, and is removed at the end.

    The exit status is 1 if INPUT or a setting is wrong, and 3 if some lines failed.
    """
    from matryo.commands.batch import run

    settings = settings_from(model=model or None, **flags)
    if not run(settings, source, output, errors, restart=restart):
        sys.exit(_SOME_FAILED)


@click.command(
    epilog="""\b
Examples:
  matryo embed MODEL texts.txt > vectors.jsonl
  matryo embed MODEL shop.csv --column title --id-column sku --keep price --output shop.parquet
  matryo embed MODEL corpus/ 's3://bucket/*.parquet' --dedupe --resume --output vectors.npy
  matryo embed MODEL books.jsonl --chunk 256 --overlap 32 --pool rows --output books.parquet

\b
They embed a text a line; columns of a table; a corpus, where the same command goes on after a
kill; and windows of long texts.
"""
)
@click.argument("model_id", cls=ModelArgument)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option("--input-type", help="query, document, classification, clustering or none.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Output size.")
@click.option("--truncate", is_flag=True, help="Cut texts over the limit in place of stopping.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lines", "jsonl", "csv", "parquet"]),
    help="Format of every INPUT. Default: jsonl for .jsonl and .ndjson, csv for .csv and .tsv, "
    "parquet for .parquet, else lines; a pipe's is guessed.",
)
@click.option("--column", metavar="NAME", help="Column of the texts. Default: text, or input.")
@click.option("--id-column", metavar="NAME", help="Column of the ids. Default: id, or custom_id.")
@click.option("--keep", metavar="NAME", multiple=True, help="Column to hand through; repeatable.")
@click.option("--delimiter", metavar="CHARACTER", help="Of CSV. Default: by the header.")
@click.option("--output", metavar="FILE|URL", help="FILE.jsonl, .npy or .parquet, or s3://...")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float32",
    show_default=True,
    help="Numbers of the output.",
)
@click.option(
    "--expect-fingerprint",
    metavar="FINGERPRINT",
    help="Fingerprint of the index, or its leading part up to a slash. Write nothing if the "
    "vectors have another one.",
)
@click.option("--dedupe", is_flag=True, help="Compute equal texts of the whole input once.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on after the last row that a run of this command wrote, however it was stopped.",
)
@click.option(
    "--chunk",
    metavar="TOKENS",
    type=click.IntRange(min=1),
    help="Split texts of more tokens into windows of at most so many.",
)
@click.option(
    "--overlap",
    metavar="TOKENS",
    type=click.IntRange(min=0),
    help="With --chunk: tokens that neighbouring windows share. Default: 0.",
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "rows"]),
    help="With --chunk: one vector, the mean of a text's windows (default), or a row for each.",
)
@click.option(
    "--compare",
    metavar="URL|PRECISION|FILE|INDEX.json",
    help="Embed nothing; say whether vectors of an endpoint (http://.../v1), another precision, or "
    "a .npy or .jsonl file may share an index with these. Without INPUT, on a few built-in texts. "
    "Or INDEX.json, a record of matryo guard.",
)
@click.option("--compare-model", metavar="NAME", help="The model's name at the endpoint.")
@click.option("--json", "as_json", is_flag=True, help="With --compare: one JSON object.")
@precision_option
def embed(
    model_id: str,
    inputs: tuple[str, ...],
    input_type: str | None,
    dimensions: int | None,
    truncate: bool,
    form: Format | None,
    column: str | None,
    id_column: str | None,
    keep: tuple[str, ...],
    delimiter: str | None,
    output: str | None,
    dtype: Dtype,
    expect_fingerprint: str | None,
    dedupe: bool,
    resume: bool,
    chunk: int | None,
    overlap: int | None,
    pool: Pooling | None,
    compare: str | None,
    compare_model: str | None,
    as_json: bool,
    precision: str | None,
) -> None:
    """Embed the texts of every INPUT (or of standard input) without a server.

    An INPUT is a file, a folder, a glob, or a URL such as s3://bucket/texts.parquet. A row of JSON
    lines gives its "text" (or "input"), and may give an "id" and the fields of a request; a row of
    a table has columns. Writes JSON lines to standard output, or to --output in the format of its
    name. With --compare the exit status is 1 if vectors may not share an index.
    """
    from matryo.commands import compare as comparing
    from matryo.commands.embedding.chunks import Chunking
    from matryo.commands.embedding.command import Wish, run
    from matryo.commands.sources.item import Reading
    from matryo.service import Options

    if compare is not None and output is not None:
        raise SettingsInvalid("--compare writes no vectors; leave --output out")
    if compare is None and (compare_model is not None or as_json):
        raise SettingsInvalid("--compare-model and --json go with --compare only")
    if chunk is None and (overlap is not None or pool is not None):
        raise SettingsInvalid("--overlap and --pool say how --chunk splits texts; give --chunk")
    if delimiter is not None and len(delimiter) != 1:
        raise SettingsInvalid(f"--delimiter is {delimiter!r}; give one character")
    options = Options(
        input_type=input_type,
        dimensions=dimensions,
        truncate=truncate,
        priority="bulk",
        expect=expect_fingerprint,
    )
    reading = Reading(form, column, id_column, tuple(dict.fromkeys(keep)), delimiter)
    settings = settings_from(model=(model_id,), precision=precision)
    if compare is None:
        chunking = Chunking(chunk, overlap or 0, pool or "mean") if chunk else None
        run(
            settings,
            Wish(inputs or ("-",), reading, output, options, dtype, dedupe, resume, chunking),
        )
        return
    if chunk is not None or dedupe or resume or keep or dtype != "float32":
        raise SettingsInvalid(
            "--chunk, --dedupe, --resume, --keep and --dtype shape an output, and --compare writes "
            "none; leave them out"
        )
    if expect_fingerprint is not None:
        raise SettingsInvalid(
            "--compare finds out whether vectors fit, and --expect-fingerprint refuses those that "
            "do not; give one"
        )
    if not comparing.run(
        settings, inputs, compare, options, model=compare_model, as_json=as_json, reading=reading
    ):
        sys.exit(1)
