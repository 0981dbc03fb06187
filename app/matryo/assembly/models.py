"""Which engines do these settings mean, and are they there?

Models that are missing from the store are pulled and built first, in a process of their own.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, cast

from matryo.catalog.catalog import Catalog, open_catalog
from matryo.catalog.manifest import Manifest
from matryo.core import logging as logs
from matryo.core.cores import available_cores
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, ModelNotFound
from matryo.core.logging import ERROR_PREFIX
from matryo.core.memory import is_in_memory
from matryo.core.progress import SILENT, Reporter
from matryo.core.settings import Settings
from matryo.core.signals import held_back
from matryo.core.steps import Steps
from matryo.engine import CoreUse, Engine, plan_cores
from matryo.engine.factory import is_prepared, load_engine
from matryo.store.artifact import find_artifact
from matryo.store.bundle import running, running_check
from matryo.store.derived import find_derived, read_derived
from matryo.store.layout import open_store
from matryo.store.references import Reference, is_path, parse_reference

log = logging.getLogger("matryo")

_CHILD_END_S = 3.0
_LEAST_OF_SIGNALS = 128  # a status above is that of a signal, by a shell's rule


class NotPrepared(SystemExit):
    """The process that makes a model ready has failed.

    Commands let this end them with status 1: standard error has said why.

    Attributes:
        reason: why, as a sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(1)
        self.reason = reason


def core_use(settings: Settings, cores: int | None = None) -> CoreUse:
    """How this process uses its cores.

    Args:
        settings: as for a server.
        cores: of this process; None for an equal part of the cores that all
            `settings.processes` may use.
    """
    return plan_cores(cores or equal_part(settings), settings.workers, settings.threads)


def equal_part(settings: Settings) -> int:
    """Cores of each of `settings.processes`, if this process may use the cores of them all."""
    return max(1, available_cores() // settings.processes)


# --- models


def resolve_models(settings: Settings, steps: Steps | None = None) -> Settings:
    """The settings with the id of a model in place of each path and repository.

    What was not derived before is derived in a process of its own.

    Args:
        settings: as for a server.
        steps: gets the seconds of what was done.

    Raises:
        ModelNotFound: a name is neither a model, nor a path, nor a repository.
        SetupError: a checkpoint cannot be read.
        NotPrepared: a derivation failed, and has said why.
    """
    ids = dict.fromkeys(_resolve(settings, name, steps or Steps()) for name in settings.model)
    return settings.model_copy(update={"model": tuple(ids)})


def _resolve(settings: Settings, name: str, steps: Steps) -> str:
    reference = referred(open_catalog(settings), name)
    if reference is None:
        return name
    known = find_derived(settings.home, reference.text)
    if known is None:
        _prepare_apart(settings, reference.text, steps)
        known = find_derived(settings.home, reference.text)
    if known is None:  # the files change while they are read
        raise ModelNotFound(
            f"{name} was changed while it was read. Run the command again once its files are "
            "complete."
        )
    return known


def referred(catalog: Catalog, name: str) -> Reference | None:
    """The path or the repository that a name means; None for a model that was not derived.

    The name of a derived model means what the model was derived from, which may have changed.

    Raises:
        ModelNotFound: the name is none of these.
    """
    if not is_path(name) and catalog.find(name) is not None:
        record = read_derived(catalog.folder(name))
        return parse_reference(record.reference) if record else None
    reference = parse_reference(name)
    if reference is None:
        catalog.folder(name)  # says what models there are
    return reference


# --- engines


def ready_engines(
    settings: Settings,
    use: CoreUse | None = None,
    steps: Steps | None = None,
    reporter: Reporter = SILENT,
) -> tuple[Engine, ...]:
    """The models of `settings`, loaded; missing and damaged artefacts are built.

    Args:
        settings: as for a server.
        use: of the cores; None as the settings say.
        steps: gets the seconds of each step.
        reporter: takes the model that is loaded now.

    Raises:
        SetupError: anything that keeps a model from being served.
        NotPrepared: a build failed, and has said why.
    """
    steps = steps or Steps()
    settings = make_ready(settings, steps)
    try:
        return load_engines(settings, use, reporter)
    except ArtifactDamaged as exc:
        if running():
            raise  # a bundle has nothing to build from
        log.warning("%s Building it again.", exc.message)
    for manifest in _manifests(settings, open_catalog(settings)):
        _prepare_apart(settings, manifest.id, steps)
    return load_engines(settings, use, reporter)


def load_engines(
    settings: Settings, use: CoreUse | None = None, reporter: Reporter = SILENT
) -> tuple[Engine, ...]:
    """The models of `settings.model`, loaded from the store; they share the cores.

    Args:
        settings: as for a server.
        use: of the cores; None as the settings say.
        reporter: takes the model that is loaded now.

    Raises:
        SetupError: an unknown model, a bad manifest, or an artefact or a bundle that is missing
            or damaged.
    """
    check = running_check()  # goes on while the models load
    try:
        return _load_all(settings, use or core_use(settings), reporter)
    finally:
        if check:
            check.result()  # a damaged bundle is the cause of any failure above


def _load_all(settings: Settings, use: CoreUse, reporter: Reporter) -> tuple[Engine, ...]:
    catalog, store = open_catalog(settings), open_store(settings)
    engines: list[Engine] = []
    manifests = _manifests(settings, catalog)
    for number, manifest in enumerate(manifests, 1):
        precision = manifest.precision_for(settings.precision)
        of = f", {number} of {len(manifests)}" if len(manifests) > 1 else ""
        artifact = find_artifact(store, manifest, precision)
        with reporter.step(f"loading {manifest.id} ({precision}){of}"):
            engines.append(load_engine(manifest, artifact, use))
    return tuple(engines)


def make_ready(settings: Settings, steps: Steps | None = None) -> Settings:
    """Derive, pull, build and lay out what is missing of the models of `settings`.

    Args:
        settings: as for a server.
        steps: gets the seconds of what was done.

    Returns:
        The settings with the id of a model in place of each path and repository.

    Raises:
        SetupError: an unknown model, a bad manifest, or a precision that a model does not offer.
        NotPrepared: a build failed, and has said why.
    """
    steps = steps or Steps()
    settings = resolve_models(settings, steps)
    manifests = _manifests(settings, open_catalog(settings))
    for manifest in manifests:  # a refusal of the last comes before a build of the first
        manifest.precision_for(settings.precision)
    for manifest in manifests:
        if not _is_ready(settings, manifest):
            _prepare_apart(settings, manifest.id, steps)
    return settings


def _manifests(settings: Settings, catalog: Catalog) -> list[Manifest]:
    """The manifests of `settings.model`, each once, whatever names the operator used."""
    found = [catalog.manifest(name) for name in settings.model]
    return list({manifest.id: manifest for manifest in found}.values())


def _is_ready(settings: Settings, manifest: Manifest) -> bool:
    precision = manifest.precision_for(settings.precision)
    try:
        artifact = find_artifact(open_store(settings), manifest, precision)
    except (ArtifactMissing, ArtifactDamaged):
        if running():
            raise
        log.info("%s has no artefact in %s to serve; making one", manifest.id, precision)
        return False
    # In a store that we may not write, weights cannot be laid out, and need not be.
    if is_prepared(artifact) or not os.access(artifact.folder, os.W_OK):
        return True
    # Laid out in a tmpfs, the weights of a bundle would take memory twice.
    return artifact.weights is not None and is_in_memory(artifact.folder)


def _prepare_apart(settings: Settings, model_id: str, steps: Steps) -> None:
    """Pull and build in a process of its own; `steps` gets the seconds of each.

    A server that had built once would keep the build's libraries and memory for good. A fresh
    interpreter, and not a child of `multiprocessing`, since that would run a library user's own
    main module again.
    """
    if check := running_check():
        check.result()  # weights of a damaged bundle would be laid out, and kept
    job = settings.model_dump(mode="json") | {"model": [model_id], "api_keys": []}
    job |= {"keys": None, "keys_file": None}  # a build asks nobody for a key
    # On a terminal the child draws its own bars. A log of JSON lines gets one for each line of it.
    piped = subprocess.PIPE if logs.writes_json() else None
    child: subprocess.Popen[str] | None = None
    try:
        with held_back():
            child = subprocess.Popen(
                [sys.executable, "-m", "matryo.commands.prepare"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=piped,
                text=True,
                errors="replace",
            )
        pipe = cast("IO[str]", child.stdin)
        with suppress(BrokenPipeError):  # it has ended, and its status says why
            pipe.write(json.dumps(job) + "\n")
            pipe.flush()
        for line in child.stderr or ():
            _log_line(line.strip())
        report = cast("IO[str]", child.stdout).read()
        # The pipe stays open until then: the child ends when the pipe is closed.
        status = child.wait()
    finally:
        if child:
            _end(child)
    if status < 0 or status > _LEAST_OF_SIGNALS:
        name = signal.Signals(-status if status < 0 else status - _LEAST_OF_SIGNALS).name
        reason = (
            f"making {model_id} ready was ended by {name}. The system ends a process with SIGKILL "
            "when memory is short."
        )
        logs.fatal(reason)
        raise NotPrepared(reason)
    if status:  # the child has said why on standard error, too
        raise NotPrepared(json.loads(report)["error"] if report else "standard error says why.")
    steps.add(json.loads(report))


def _end(child: subprocess.Popen[str]) -> None:
    """Stop a child that still runs, in order or else by force, and close its pipes."""
    try:
        if child.poll() is None:
            child.terminate()
            child.wait(_CHILD_END_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        child.kill()
        with suppress(BrokenPipeError), child:
            pass


def _log_line(line: str) -> None:
    if line.startswith(ERROR_PREFIX):
        log.error(line.removeprefix(ERROR_PREFIX))
    elif line:
        log.info(line)
