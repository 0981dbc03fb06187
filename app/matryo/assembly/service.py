"""Which service do these settings mean?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import CollectorRegistry

from matryo.assembly.models import core_use, ready_engines
from matryo.catalog.catalog import open_catalog
from matryo.core.errors import SettingsInvalid
from matryo.core.fixed import fixed
from matryo.core.memory import available_memory
from matryo.core.metrics import Metrics
from matryo.core.progress import SILENT, Reporter
from matryo.core.settings import Settings
from matryo.core.tracing import NO_TRACER, Tracer
from matryo.engine import Engine
from matryo.scheduler import SchedulerConfig
from matryo.service import Service, ServiceConfig
from matryo.service.choices import Defaults
from matryo.service.limits import RequestLimits
from matryo.service.token_arrays import TokenDecoder
from matryo.store.encodings import find_table
from matryo.store.layout import Store

# A body, its strings, its tokens and its answer together need at most so many times its bytes.
_BODY_SHARES = 4


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


def operator_defaults(settings: Settings) -> Defaults:
    """What the operator chose for requests that leave a choice open, or may not choose."""
    return Defaults(
        settings.default_input_type,
        settings.dimensions,
        settings.strict_dimensions,
        frozenset(name.removeprefix("default_") for name in fixed().locked),
    )


def local_defaults(settings: Settings) -> Defaults | None:
    """What a command gives that makes vectors itself; None as `build_local_service` has it.

    A bundle's own commands give what its server gives.
    """
    return operator_defaults(settings) if fixed().where else None


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
    settings: Settings,
    cores: int | None = None,
    defaults: Defaults | None = None,
    reporter: Reporter = SILENT,
) -> Service:
    """A service for the callers of this very process: ready models, no limits of a request.

    Args:
        settings: as for a server.
        cores: to use; None for all that this process may use.
        defaults: for requests that leave a choice open; None for the input type of `settings`.
        reporter: takes the model that is loaded now.

    Raises:
        SetupError: anything that keeps a model from being served.
        NotPrepared: a build failed, and has said why.
    """
    use = core_use(settings, cores)
    config = ServiceConfig(
        defaults=defaults or Defaults(settings.default_input_type),
        scheduler=SchedulerConfig(workers=use.workers, batch_s=settings.batch_ms / 1000),
    )
    engines = ready_engines(settings, use, reporter=reporter)
    return Service(engines, config, Metrics(CollectorRegistry()))
