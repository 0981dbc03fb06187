"""From settings to a service that is ready to enter; no door is chosen here.

Models that are missing from the store are pulled and built first, in a process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, cast

from prometheus_client import CollectorRegistry

from matryo.catalog.catalog import Catalog, open_catalog
from matryo.catalog.manifest import Manifest
from matryo.core import logging as logs
from matryo.core.cores import available_cores
from matryo.core.errors import ArtifactDamaged, ArtifactMissing, ModelNotFound, SettingsInvalid
from matryo.core.fixed import fixed
from matryo.core.logging import ERROR_PREFIX
from matryo.core.memory import available_memory, is_in_memory
from matryo.core.metrics import Metrics
from matryo.core.reload import Reloads
from matryo.core.settings import Settings
from matryo.core.signals import held_back
from matryo.core.steps import Steps
from matryo.core.tracing import NO_TRACER, Tracer
from matryo.engine import CoreUse, Engine, plan_cores
from matryo.engine.factory import is_prepared, load_engine
from matryo.scheduler import SchedulerConfig
from matryo.service import Service, ServiceConfig
from matryo.service.choices import Defaults
from matryo.service.key_file import NamedKey, bare_keys, merged, parse_keys, read_keys
from matryo.service.keys import KeyRing
from matryo.service.limits import RequestLimits
from matryo.service.token_arrays import TokenDecoder
from matryo.store.artifact import find_artifact
from matryo.store.bundle import running, running_check
from matryo.store.derived import find_derived, read_derived
from matryo.store.encodings import find_table
from matryo.store.layout import Store, open_store
from matryo.store.references import Reference, is_path, parse_reference

log = logging.getLogger("matryo")

# A body, its strings, its tokens and its answer together need at most so many times its bytes.
_BODY_SHARES = 4
_CHILD_END_S = 3.0
_LAST_SPANS_S = 3.0  # part of the margin that a process has after its grace
_LEAST_OF_SIGNALS = 128  # a status above is that of a signal, by a shell's rule


def build_service(
    settings: Settings,
    engines: Sequence[Engine],
    metrics: Metrics | None = None,
    cores: int | None = None,
    tracer: Tracer = NO_TRACER,
) -> Service:
    """A service of these engines, not started.

    Args:
        settings: the operator's choices.
        engines: what to serve, the default first.
        metrics: what is counted; None for metrics that nobody reads.
        cores: as for `core_use`.
        tracer: makes the spans of requests; the caller closes it.

    Raises:
        SettingsInvalid: a default or an alias that does not fit the models.
    """
    metrics = metrics or Metrics(CollectorRegistry())
    config = ServiceConfig(
        aliases=settings.alias_map,
        others=open_catalog(settings).names,
        defaults=operator_defaults(settings),
        limits=RequestLimits(settings.max_inputs, settings.max_request_tokens),
        scheduler=SchedulerConfig(
            workers=core_use(settings, cores).workers,
            queue_tokens=settings.queue_tokens,
            max_requests=settings.max_waiting_requests,
            max_wait_s=settings.max_wait_s,
            batch_s=settings.batch_ms / 1000,
            ready_interval_s=settings.ready_interval_s,
        ),
        memory_bytes=memory_budget(settings),
        max_wait_s=settings.max_wait_s,
    )
    own_ids = settings.token_input == "model"  # noqa: S105 - not a secret
    decoder = None if own_ids else TokenDecoder(partial(find_table, Store(settings.home)))
    return Service(engines, config, metrics, decoder, tracer)


def build_tracer(settings: Settings, version: str) -> Tracer:
    """The tracer of this process; one that does nothing without MATRYO_TRACING.

    Args:
        settings: as for a server.
        version: of the service, which every span has.

    Raises:
        SettingsInvalid: a package is missing, or a variable of OpenTelemetry cannot be used.
    """
    if not settings.tracing:
        return NO_TRACER
    # FastAPI depends on the package opentelemetry-api, which has none of these.
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.common"):
        if not _is_installed(package):
            raise SettingsInvalid(
                f"MATRYO_TRACING is true, but the package of {package} is not installed. Install "
                "it with: pip install 'matryo[otel]'"
            )
    from matryo.core.otel.export import build_otel_tracer

    return build_otel_tracer(version)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor is its parent
        return False


@contextlib.asynccontextmanager
async def exporting(tracer: Tracer) -> AsyncGenerator[None, None]:
    """Export what a tracer has left at the end of the block, within `_LAST_SPANS_S`."""
    try:
        yield
    finally:
        if tracer.is_on:
            await asyncio.to_thread(tracer.close, _LAST_SPANS_S)


def watch_keys(settings: Settings, ring: KeyRing, reloads: Reloads) -> None:
    """Let the keys of `settings` call, and follow the changes of their file.

    Args:
        settings: the operator's choices; without keys the server is open to all.
        ring: of the service.
        reloads: the files that the server reads again.

    Raises:
        SettingsInvalid: a key is wrong, or there are keys and none can be read.
    """

    def load() -> tuple[NamedKey, ...]:
        keys = load_keys(settings)
        ring.reserve(keys)
        return keys

    if settings.keys_file:
        reloads.watch("keys", [settings.keys_file], load, ring.replace)
    elif settings.has_keys:
        ring.replace(load())


def load_keys(settings: Settings) -> tuple[NamedKey, ...]:
    """The keys of all sources together, at least one where a source is set.

    Raises:
        SettingsInvalid: a key is wrong, or a source has no key.
    """
    found = read_keys(settings.keys_file) if settings.keys_file else []
    if settings.keys:
        found += parse_keys(settings.keys, "MATRYO_KEYS")
    return merged([*found, *bare_keys(settings.api_keys, "MATRYO_API_KEYS")])


def operator_defaults(settings: Settings) -> Defaults:
    """What the operator chose for requests that leave a choice open, or may not choose."""
    return Defaults(
        settings.default_input_type,
        settings.dimensions,
        settings.strict_dimensions,
        frozenset(name.removeprefix("default_") for name in fixed().locked),
    )


def memory_budget(settings: Settings) -> int:
    """Bytes that the requests of this process, one of `settings.processes`, may hold at once.

    Raises:
        SettingsInvalid: the budget has no room for one body and what is made of the body.
    """
    given = settings.memory_budget_bytes
    budget = (given or available_memory() // 4) // settings.processes
    least = _BODY_SHARES * settings.max_body_bytes
    if budget >= least:
        return budget
    raise SettingsInvalid(
        f"the memory budget is {budget} bytes for each process, but one request of "
        f"MATRYO_MAX_BODY_BYTES={settings.max_body_bytes} may need {least}. Lower "
        "MATRYO_MAX_BODY_BYTES, or raise MATRYO_MEMORY_BUDGET_BYTES"
        + ("." if given else " or the container's memory, a quarter of which is the budget.")
    )


def build_local_service(
    settings: Settings, cores: int | None = None, defaults: Defaults | None = None
) -> Service:
    """A service for the callers of this very process: ready models, no limits of a request.

    Args:
        settings: as for a server.
        cores: to use; None for all that this process may use.
        defaults: for requests that leave a choice open; None for the input type of `settings`.

    Raises:
        SetupError: anything that keeps a model from being served.
        SystemExit: a build failed, and has said why.
    """
    use = core_use(settings, cores)
    config = ServiceConfig(
        defaults=defaults or Defaults(settings.default_input_type),
        scheduler=SchedulerConfig(workers=use.workers, batch_s=settings.batch_ms / 1000),
    )
    return Service(ready_engines(settings, use), config, Metrics(CollectorRegistry()))


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
        SystemExit: a derivation failed, and has said why.
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
    settings: Settings, use: CoreUse | None = None, steps: Steps | None = None
) -> tuple[Engine, ...]:
    """The models of `settings`, loaded; missing and damaged artefacts are built.

    Args:
        settings: as for a server.
        use: of the cores; None as the settings say.
        steps: gets the seconds of each step.

    Raises:
        SetupError: anything that keeps a model from being served.
        SystemExit: a build failed, and has said why.
    """
    steps = steps or Steps()
    settings = make_ready(settings, steps)
    try:
        return load_engines(settings, use)
    except ArtifactDamaged as exc:
        if running():
            raise  # a bundle has nothing to build from
        log.warning("%s Building it again.", exc.message)
    for manifest in _manifests(settings, open_catalog(settings)):
        _prepare_apart(settings, manifest.id, steps)
    return load_engines(settings, use)


def load_engines(settings: Settings, use: CoreUse | None = None) -> tuple[Engine, ...]:
    """The models of `settings.model`, loaded from the store; they share the cores.

    Args:
        settings: as for a server.
        use: of the cores; None as the settings say.

    Raises:
        SetupError: an unknown model, a bad manifest, or an artefact or a bundle that is missing
            or damaged.
    """
    check = running_check()  # goes on while the models load
    try:
        return _load_all(settings, use or core_use(settings))
    finally:
        if check:
            check.result()  # a damaged bundle is the cause of any failure above


def _load_all(settings: Settings, use: CoreUse) -> tuple[Engine, ...]:
    catalog, store = open_catalog(settings), open_store(settings)
    engines: list[Engine] = []
    for manifest in _manifests(settings, catalog):
        artifact = find_artifact(store, manifest, manifest.precision_for(settings.precision))
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
        SystemExit: a build failed, and has said why.
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
        logs.fatal(
            f"making {model_id} ready was ended by {name}. The system ends a process with SIGKILL "
            "when memory is short."
        )
    if status:
        sys.exit(1)  # the child, or the line above, has said why
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
