"""The composition root of the server: settings in, application out.

Nothing is global, and nothing is read from the environment unless no settings are given.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute, Route

import matryo
from matryo.assembly.batch import build_runner, open_batch, working
from matryo.assembly.keys import watch_keys
from matryo.assembly.models import load_engines
from matryo.assembly.service import build_service
from matryo.assembly.traces import build_tracer, exporting
from matryo.core.environment import load_settings
from matryo.core.metrics import Metrics
from matryo.core.networks import Networks
from matryo.core.reload import Reloads
from matryo.core.settings import Settings
from matryo.core.tls_keeper import TlsKeeper, watch_tls
from matryo.engine import Engine
from matryo.http import operations
from matryo.http.application import Application
from matryo.http.connections import ConnectionLimits
from matryo.http.context import BatchDoor, BodyLimits, Context
from matryo.http.encoderfile import routes as encoderfile
from matryo.http.guest import guest_route
from matryo.http.listening import Listener
from matryo.http.middleware import Cors, RequestMiddleware
from matryo.http.openai import batch_routes, document, routes
from matryo.http.page import routes as page
from matryo.http.server import Server, ServerConfig
from matryo.http.tei import routes as tei
from matryo.http.threads import Threads
from matryo.http.tls import warning_daily
from matryo.service import Service

if TYPE_CHECKING:
    from matryo.batch.runner import Runner
    from matryo.batch.storage import Storage
    from matryo.grpc.server import GrpcServer

# Uploads and downloads that wait for the storage at the same time; others wait for their turn.
_BATCH_THREADS = 16

_EXPOSED = [
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{kind}"
        for kind in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
    "x-matryo-fingerprint",
    "x-matryo-truncated",
    "x-matryo-unknown",
    "x-matryo-warning",
    "x-matryo-shape",
    "x-matryo-dtype",
    "x-matryo-model",
    "x-matryo-prompt-tokens",
    "content-disposition",
    "content-range",
    "etag",
]


def create_app(
    settings: Settings | None = None,
    engine: Engine | Sequence[Engine] | None = None,
    cores: int | None = None,
) -> FastAPI:
    """The application; its lifespan enters the service.

    Args:
        settings: None to read flags' defaults, environment and `.env`.
        engine: what to serve, the default first; None loads the artefacts of
            `settings.model`.
        cores: that this process uses; None for its part of those that it may use.

    Raises:
        SetupError: settings, manifests or artefacts that cannot be used.
    """
    settings = settings or load_settings()
    engines = _engines(settings, engine)
    metrics = Metrics(CollectorRegistry())
    tracer = build_tracer(settings, matryo.__version__)
    service = build_service(settings, engines, metrics, cores, tracer)
    storage = open_batch(settings)
    runner = build_runner(settings, storage, service, metrics) if storage else None
    batch = _batch_door(settings, storage, runner) if storage and runner else None

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            if batch:
                stack.callback(batch.close)
            await stack.enter_async_context(exporting(tracer))
            await stack.enter_async_context(service)
            if runner:
                await stack.enter_async_context(working(runner))
            await stack.enter_async_context(warning_daily(application.state.tls))
            if grpc_server := application.state.grpc_server:
                await stack.enter_async_context(grpc_server)
            yield

    application = _application(
        settings,
        service,
        metrics,
        lifespan,
        batch,
        description="OpenAI's embeddings endpoint over Matryoshka text models.",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere; ours is plain HTML
        redoc_url=None,
    )
    application.state.runner = runner
    application.state.grpc_server = _grpc_server(
        settings, service, metrics, application.state.tls.grpc
    )
    document.install(application, has_page=settings.page)
    doors = dict.fromkeys(_names(application.router.routes), "operations")
    # Not included as routers: FastAPI would match each request to an included route twice.
    for door, router in (
        ("openai", routes.build_router()),
        ("batch", batch_routes.build_router(is_on=settings.batch)),
        ("tei", tei.build_router()),
        ("encoderfile", encoderfile.build_router()),
        ("operations", operations.build_router(has_metrics=settings.metrics_port is None)),
    ):
        application.router.routes.extend(router.routes)
        doors |= dict.fromkeys(_names(router.routes), door)
    if settings.page:
        router = page.build_router(_page_facts(settings))
        application.router.routes.extend(router.routes)
        doors |= dict.fromkeys(_names(router.routes), "operations")
    if settings.cors_origins:
        application.add_middleware(
            Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            # Mirrored by name in the answer: "*" itself would not cover Authorization.
            allow_headers=["*"],
            expose_headers=_EXPOSED,
            # A page of an allowed origin may call a server on its user's own network.
            allow_private_network=True,
        )
    _count_requests(application, settings, doors)
    return application


def create_mcp_app(settings: Settings, engine: Engine | Sequence[Engine]) -> FastAPI:
    """The application of `matryo mcp` over HTTP: `/mcp` and the operators' routes.

    Args:
        settings: the operator's choices.
        engine: what to serve, the default first.

    Raises:
        SettingsInvalid: a default or an alias that does not fit the models.
    """
    from matryo.mcp.server import build_tools_server
    from matryo.mcp.sessions import PATH, build_sessions

    metrics = Metrics(CollectorRegistry())
    tracer = build_tracer(settings, matryo.__version__)
    service = build_service(settings, _engines(settings, engine), metrics, tracer=tracer)
    sessions = build_sessions(
        build_tools_server(service, matryo.__version__),
        host=settings.host,
        origins=settings.cors_origins,
        has_keys=settings.has_keys,
        max_bytes=settings.max_body_bytes,
    )

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncGenerator[None, None]:
        daily = warning_daily(application.state.tls)
        async with exporting(tracer), service, sessions.run(), daily:
            yield

    application = _application(settings, service, metrics, lifespan, openapi_url=None)
    # The tools send nothing by themselves, which is what a GET would wait for.
    application.router.routes.append(guest_route(PATH, sessions.handle_request, ("POST", "DELETE")))
    router = operations.build_router(has_metrics=settings.metrics_port is None)
    application.router.routes.extend(router.routes)
    doors = dict.fromkeys(_names(router.routes), "operations")
    _count_requests(application, settings, doors | {PATH: "mcp"})
    return application


def _names(routes: Sequence[BaseRoute]) -> list[str]:
    return [route.name for route in routes if isinstance(route, Route)]


def _count_requests(application: FastAPI, settings: Settings, doors: Mapping[str, str]) -> None:
    """Put the outermost layer on an application, which knows the door of each route."""
    context: Context = application.state.context
    application.add_middleware(
        RequestMiddleware,
        metrics=context.metrics,
        doors=doors,
        describe=context.service.describe,
        plain=[route for route in application.router.routes if type(route) is Route],
        log_client=settings.log_client,
        tracer=context.service.tracer,
    )


def _operations_application(settings: Settings, context: Context) -> FastAPI:
    """The operators' routes alone, for a port of their own."""
    application = Application(openapi_url=None, redirect_slashes=False)
    application.state.context = context
    router = operations.build_router()
    application.router.routes.extend(router.routes)
    _count_requests(application, settings, dict.fromkeys(_names(router.routes), "operations"))
    return application


def _engines(settings: Settings, engine: Engine | Sequence[Engine] | None) -> tuple[Engine, ...]:
    match engine:
        case None:
            return load_engines(settings)
        case Sequence():
            return tuple(engine)
        case _:
            return (engine,)


def _application(
    settings: Settings,
    service: Service,
    metrics: Metrics,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
    batch: BatchDoor | None = None,
    **options: Any,
) -> Application:
    """An application without routes and middleware: context, errors, and the models' metrics."""
    application = Application(
        title="Matryo",
        version=matryo.__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        **options,
    )
    application.prefix = settings.root_path or ""
    body_limits = BodyLimits(settings.max_body_bytes, settings.body_timeout_s)
    application.state.grpc_server = application.state.runner = None
    reloads = Reloads(lambda what, outcome: metrics.reloads.labels(what, outcome).inc())
    watch_keys(settings, service.keys, reloads)
    application.state.reloads = reloads
    application.state.tls = watch_tls(settings, metrics, reloads)
    context = application.state.context = Context(
        service, body_limits, settings.unknown_fields, metrics, settings.metrics_key, batch
    )
    application.state.operations = None
    if settings.metrics_port is not None:
        application.state.operations = _operations_application(settings, context)
    engines = service.directory.engines
    metrics.start_at_zero(served.manifest.id for served in engines)
    for served in engines:
        facts = (served.manifest.id, matryo.__version__, served.precision, served.fingerprint)
        metrics.build_info.labels(*facts).set(1)
    metrics.start_time_seconds.set_to_current_time()
    return application


def _page_facts(settings: Settings) -> page.PageFacts:
    """What the page says of the server."""
    metrics = "here" if settings.metrics_key is None else "key"
    if settings.metrics_port is not None:
        metrics = "elsewhere"
    return page.PageFacts(
        matryo.__version__, settings.has_keys, metrics, prefix=settings.root_path or ""
    )


def _batch_door(settings: Settings, storage: Storage, runner: Runner) -> BatchDoor:
    """What the routes of the Batch API need."""
    return BatchDoor(
        storage,
        Threads(_BATCH_THREADS, "matryo-files"),
        settings.batch_max_file_bytes,
        settings.min_read_rate,
        runner.nudge,
    )


def _grpc_server(
    settings: Settings, service: Service, metrics: Metrics, tls: TlsKeeper | None
) -> GrpcServer | None:
    """The gRPC server, if there is a port for it."""
    if settings.grpc_port is None:
        return None
    from matryo.grpc.listening import check_installed

    check_installed()
    from matryo.grpc.server import GrpcServer, config_of

    return GrpcServer(service, config_of(settings, matryo.__version__), metrics, tls)


def build_server(
    application: FastAPI,
    listener: Listener,
    settings: Settings,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
) -> Server:
    """A server of the application, which runs until a signal to stop.

    Args:
        application: of `create_app`.
        listener: the sockets to serve on.
        settings: the operator's choices.
        on_ready: called once the server has answered a request of its own.
        on_stop: called when the server begins to stop.
    """
    context: Context = application.state.context
    beside: tuple[GrpcServer | Runner | None, ...] = (
        application.state.grpc_server,
        application.state.runner,
    )
    config = ServerConfig(
        ConnectionLimits(
            settings.max_connections,
            settings.keep_alive_s,
            settings.head_timeout_s,
            settings.write_timeout_s,
            settings.min_read_rate,
        ),
        settings.grace_s,
        settings.drain_delay_s,
        is_shared=settings.processes > 1,
        proxies=Networks(settings.forwarded_allow_ips),
        backlog=settings.backlog,
    )
    return Server(
        application,
        application.router.lifespan_context(application),
        context.service,
        listener,
        config,
        context.metrics,
        on_ready,
        [door for door in beside if door],
        on_stop,
        application.state.reloads,
        application.state.tls.http,
        application.state.operations,
    )
