"""The composition root: settings in, application out.

Nothing is global, and nothing is read from the environment unless no settings are given.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import Response

import matryo
from matryo.catalog.catalog import open_catalog
from matryo.core.cores import available_cores
from matryo.core.errors import MatryoError, SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.settings import Settings, load_settings
from matryo.engine import CoreUse, Engine, plan_cores
from matryo.engine.factory import load_engine
from matryo.http import operations
from matryo.http.context import Context, Limits
from matryo.http.errors import error_response
from matryo.http.middleware import Cors, RequestMiddleware
from matryo.http.openai import document as openapi
from matryo.http.openai import routes
from matryo.scheduler import Scheduler, SchedulerConfig
from matryo.service.inputs import Defaults, Directory
from matryo.service.keys import KeyRing
from matryo.service.token_arrays import TokenDecoder
from matryo.store.artifact import find_artifact
from matryo.store.encodings import find_table
from matryo.store.layout import Store

_EXPOSED = [
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "x-matryo-fingerprint",
    "x-matryo-truncated",
    "x-matryo-warning",
]


def create_app(
    settings: Settings | None = None, engine: Engine | Sequence[Engine] | None = None
) -> FastAPI:
    """The application; its lifespan runs the workers and closes the engines.

    Args:
        settings: None to read flags' defaults, environment and `.env`.
        engine: what to serve, the default first; None loads the artefacts of
            `settings.model`.

    Raises:
        SetupError: settings, manifests or artefacts that cannot be used.
    """
    settings = settings or load_settings()
    match engine:
        case None:
            engines = load_engines(settings)
        case Sequence():
            engines = tuple(engine)
        case _:
            engines = (engine,)
    check_dimensions(settings, engines)
    directory = Directory(engines, settings.alias_map)
    metrics = Metrics(CollectorRegistry())
    config = scheduler_config(settings)
    scheduler = Scheduler(engines, config, metrics)
    own_ids = settings.token_input == "model"  # noqa: S105 - not a secret
    find = partial(find_table, Store(settings.home))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        with ThreadPoolExecutor(config.workers, thread_name_prefix="matryo-text") as tokenizers:
            app.state.context = Context(
                directory=directory,
                defaults=Defaults(
                    settings.default_input_type,
                    settings.dimensions,
                    settings.strict_dimensions,
                ),
                limits=Limits(settings.max_body_bytes, settings.body_timeout_s),
                keys=KeyRing(settings.api_keys),
                scheduler=scheduler,
                tokenizers=tokenizers,
                metrics=metrics,
                decoder=None if own_ids else TokenDecoder(find),
            )
            await scheduler.start()
            try:
                yield
            finally:
                await scheduler.close()

    application = FastAPI(
        title="Matryo",
        version=matryo.__version__,
        description="OpenAI's embeddings endpoint over Matryoshka text models.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    application.state.scheduler = scheduler
    openapi.install(application)
    application.include_router(routes.build_router())
    application.include_router(operations.build_router())
    for kind in (MatryoError, HTTPException):
        application.add_exception_handler(kind, _answer)
    if settings.cors_origins:
        application.add_middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            # Mirrored by name in the answer: "*" itself would not cover Authorization.
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    application.add_middleware(RequestMiddleware, metrics=metrics)

    metrics.start_at_zero(served.manifest.id for served in engines)
    for served in engines:
        facts = (served.manifest.id, matryo.__version__, served.precision, served.fingerprint)
        metrics.build_info.labels(*facts).set(1)
    return application


async def _answer(request: Request, exc: Exception) -> Response:
    return error_response(
        exc, request.state.request_id, method=request.method, path=request.url.path
    )


def load_engines(settings: Settings) -> tuple[Engine, ...]:
    """The models of `settings.model`, loaded from the store.

    Raises:
        SetupError: an unknown model, a bad manifest, or an artefact missing or damaged.
    """
    catalog = open_catalog(settings)
    store = Store(settings.home)
    use = _core_use(settings)
    engines: list[Engine] = []
    for model_id in settings.model:
        manifest = catalog.manifest(model_id)
        artifact = find_artifact(store, manifest, manifest.precision_for(settings.precision))
        engines.append(load_engine(manifest, artifact, use))
    return tuple(engines)


def check_dimensions(settings: Settings, engines: Sequence[Engine]) -> None:
    """Hold the default output size against the models it is for.

    Raises:
        SettingsInvalid: a model cannot give it.
    """
    wanted = settings.dimensions
    for manifest in (engine.manifest for engine in engines):
        sizes = manifest.output.dimensions
        if wanted is None or wanted == sizes.native or (sizes.cut and wanted < sizes.native):
            continue
        allowed = f"1 to {sizes.native}" if sizes.cut else f"{sizes.native} only"
        raise SettingsInvalid(f"MATRYO_DIMENSIONS is {wanted}, but {manifest.id} gives {allowed}")


def scheduler_config(settings: Settings) -> SchedulerConfig:
    """The scheduler's part of the settings."""
    return SchedulerConfig(
        workers=_core_use(settings).workers,
        queue_tokens=settings.queue_tokens,
        batch_s=settings.batch_ms / 1000,
        ready_interval_s=settings.ready_interval_s,
    )


def _core_use(settings: Settings) -> CoreUse:
    """How the cores of this process, one of `settings.processes`, are used."""
    cores = max(1, available_cores() // settings.processes)
    return plan_cores(cores, settings.workers, settings.threads)
