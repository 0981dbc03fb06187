"""`matryo bundle`: one executable file that holds the server, its command line and a model."""

from __future__ import annotations

from pathlib import Path

import matryo
from matryo.assembly.models import make_ready
from matryo.assembly.service import build_local_service
from matryo.catalog.catalog import open_catalog
from matryo.core.errors import RequestError, SettingsInvalid
from matryo.core.progress import TerminalReporter
from matryo.core.settings import Settings
from matryo.service import LocalService, Options
from matryo.service.choices import choose
from matryo.store.artifact import find_artifact
from matryo.store.files import given_path
from matryo.store.layout import open_store


def run(
    settings: Settings,
    output: Path,
    *,
    dimensions: int | None = None,
    input_type: str | None = None,
    lock: bool = False,
) -> None:
    """Write a bundle of the first model of `settings`; the model is built first if need be.

    Args:
        settings: as for a server.
        output: the file to write.
        dimensions: the bundle's default size; None for the model's own.
        input_type: the bundle's default input type; None for the usual one.
        lock: refuse requests for another size or input type than the two above.

    Raises:
        SettingsInvalid: the model does not offer the size or the input type, or nothing is locked.
        SetupError: the model cannot be made ready, or the bundle cannot be written.
    """
    from matryo.build.bundle.freeze import bundle_platform
    from matryo.build.bundle.write import write_bundle

    fixed = {
        "dimensions": None if dimensions is None else str(dimensions),
        "default_input_type": input_type,
    }
    named = {name: value for name, value in fixed.items() if value}
    if lock and not named:
        raise SettingsInvalid("--lock needs --dimensions or --input-type, which it locks")
    output = given_path(output)
    if output.is_dir() or not output.parent.is_dir():
        raise SettingsInvalid(f"--output {output} is a folder, or in no folder; name a file")
    if settings.kernels == "native":
        raise SettingsInvalid(
            "MATRYO_KERNELS is native, but a bundle has ONNX Runtime's operators alone; set auto"
        )
    settings = settings.model_copy(update={"kernels": "onnxruntime"})
    bundle_platform()  # what is missing here is known before a model is pulled
    settings = make_ready(settings)
    catalog, store = open_catalog(settings), open_store(settings)
    manifest = catalog.manifest(settings.model[0])
    artifact = find_artifact(store, manifest, manifest.precision_for(settings.precision))
    artifact.check_files()
    # Loads the artefact, and asks the service itself what the model offers.
    with LocalService(lambda: build_local_service(settings, reporter=TerminalReporter())) as local:
        options = Options(input_type=input_type, dimensions=dimensions)
        try:
            choose(options, local.service.directory, local.service.defaults)
        except RequestError as exc:
            raise SettingsInvalid(exc.message) from exc
    held: dict[str, str] = {"model": manifest.id, "precision": artifact.record.precision}
    if settings.rotary_scaling_factor:
        held["rotary_scaling_factor"] = str(settings.rotary_scaling_factor)
    reporter = TerminalReporter()
    write_bundle(
        output,
        artifact,
        store,
        catalog.folder(manifest.id),
        held | named,
        tuple(sorted(named)) if lock else (),
        matryo.__version__,
        reporter,
    )
    reporter.say(f"{output} ({output.stat().st_size / 1e6:.0f} MB): try {output} serve")
