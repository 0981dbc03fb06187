"""The one way from a request to its answer, whatever door the request came by."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from matryo.core import trace_names as names
from matryo.core.budget import Budget, Lease, Owner
from matryo.core.errors import CapacityError, EngineError, SettingsInvalid
from matryo.core.metrics import Metrics
from matryo.core.shared import shared_folder
from matryo.core.tracing import NO_SPAN, NO_TRACER, Span, Tracer
from matryo.engine import Engine, Tokens
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import Scheduler, SchedulerConfig
from matryo.service.choices import Choices, Defaults, choose, describe
from matryo.service.directory import Directory
from matryo.service.expectation import check_expected
from matryo.service.keys import KeyRing
from matryo.service.lag import watch_lag
from matryo.service.ledger import Ledger
from matryo.service.limits import BATCH_PIECE_CHARACTERS, PIECE_CHARACTERS, RequestLimits
from matryo.service.numbers import check_embedding_type
from matryo.service.patience import Gone, while_wanted
from matryo.service.request import OPEN, Answer, Caller, Options, Texts
from matryo.service.spelling import join, spell
from matryo.service.text_pool import TextPool
from matryo.service.token_arrays import TokenDecoder
from matryo.service.tokenize import Tokenized, tokenize
from matryo.service.traced import describe_span

if TYPE_CHECKING:
    from matryo.service.canary import Canaries, Canary
    from matryo.service.facts import ModelFacts

T = TypeVar("T")

_LOOKS_A_REFRESH = 5  # of which there are twenty a second


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """The operator's choices, as far as they concern requests.

    Attributes:
        aliases: further names of models; None stands for the default model.
        others: names of models that are known and not served, and the id of each.
        defaults: for requests that leave a choice open.
        limits: of one request.
        scheduler: bounds and times of the scheduler.
        memory_bytes: that all requests may hold at once; None for no bound.
        max_wait_s: that texts may have to wait to be tokenised; None for any time.
    """

    aliases: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    others: Mapping[str, str] = field(default_factory=dict[str, str])
    defaults: Defaults = field(default_factory=Defaults)
    limits: RequestLimits = field(default_factory=RequestLimits)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    memory_bytes: int | None = None
    max_wait_s: float | None = None


class Service:
    """Embeds texts with the models it was given. An asynchronous context: enter it to start.

    Args:
        engines: the models, the default first. The service closes them.
        config: the operator's choices.
        metrics: what is counted.
        decoder: turns token arrays into strings; None where ids are the served model's own.
        tracer: makes the spans of requests and of runs.

    Raises:
        SettingsInvalid: a default or an alias that does not fit the models.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        config: ServiceConfig,
        metrics: Metrics,
        decoder: TokenDecoder | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        _check_defaults(config.defaults, engines)
        self.config = config
        self.directory = Directory(engines, config.aliases, config.others)
        self.defaults = config.defaults
        self.limits = config.limits
        self.keys = KeyRing(self.directory.find, metrics, Ledger(shared_folder()))
        self.decoder = decoder
        self._is_stopping = False
        self._watch: asyncio.Task[None] | None = None
        self.budget = Budget(config.memory_bytes, metrics.rejections.labels("memory").inc)
        self.tracer = tracer
        self._metrics = metrics
        self._n_looks = 0
        metrics.on_refresh(self._show)
        self._scheduler = Scheduler(engines, config.scheduler, metrics, tracer=tracer)
        self._canaries: Canaries | None = None
        self.pool = TextPool(config.scheduler.workers, metrics, config.max_wait_s)

    # --- life

    async def __aenter__(self) -> Self:
        """Start the workers and run every model once.

        Raises:
            EngineError: a model cannot run.
        """
        await self._scheduler.start()
        self._metrics.refresh()
        self._watch = asyncio.create_task(watch_lag(self._observe))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the workers and close the engines; requests that still wait fail with `NotReady`."""
        if self._watch:
            self._watch.cancel()
        await self._scheduler.close()
        if self._canaries:
            await self._canaries.close()
        await self.pool.close()

    def _observe(self, lag_s: float) -> None:
        self._metrics.loop_lag_seconds.observe(lag_s)
        # Here and not at every change, of which a request has several. Another process may answer
        # the next scrape with these gauges.
        self._n_looks += 1
        if not self._n_looks % _LOOKS_A_REFRESH:
            self._metrics.refresh()

    def _show(self) -> None:
        """Set the gauges of the service to what is true now."""
        metrics, budget = self._metrics, self.budget
        metrics.ready.set(self.why_not_ready() is None)
        metrics.memory_budget.set(budget.limit or 0)
        for holder, n_bytes in budget.by_holder.items():
            metrics.memory_held.labels(holder).set(n_bytes)

    def announce_stop(self) -> None:
        """Say that the service stops soon, and go on as before."""
        self._is_stopping = True

    def drain(self, grace_s: float) -> None:
        """Admit nothing more; admitted requests may still run for so many seconds."""
        self._scheduler.drain(grace_s)

    def why_not_ready(self, *engines: Engine) -> str | None:
        """None if these models ran lately; else a sentence for the operator.

        Every model is meant, if none is given.
        """
        return "stopping" if self._is_stopping else self._scheduler.why_not_ready(*engines)

    # --- requests

    def describe(self, options: Options) -> tuple[str, str]:
        """The model and the input type that a request means; see `choices.describe`."""
        return describe(options, self.directory, self.defaults)

    def facts(self, engine: Engine, version: str) -> ModelFacts:
        """The facts of one of the models; see `facts_of`."""
        # Few servers are asked for facts and canaries while they start.
        from matryo.service.facts import facts_of

        return facts_of(engine, self.defaults, version)

    async def canary(self, engine: Engine) -> Canary:
        """The canary of one of the models: computed once, in nobody's name, and kept.

        Raises:
            CapacityError: the service has no room now, is starting or draining.
            InferenceFailed: a run failed.
        """
        if self._canaries is None:
            from matryo.service.canary import Canaries

            self._canaries = Canaries(self._scheduler, self.pool, self.budget)
        return await self._canaries.of(engine)

    def begin(self, caller: Caller) -> None:
        """Count one request of a caller; a door calls this before a request costs anything.

        Raises:
            RequestRateReached: the caller's key has used up its requests.
        """
        if caller.allowance:
            caller.allowance.charge_request()

    def lease(self, caller: Caller) -> Lease:
        """A lease of nothing yet, for a request of a caller."""
        if caller.name is None or len(self.keys) < 2:  # noqa: PLR2004 - nobody to share with
            return self.budget.lease()
        return self.budget.lease(Owner(caller.name, caller.weight))

    async def embed(
        self,
        options: Options,
        texts: Texts,
        caller: Caller = OPEN,
        *,
        gone: Gone | None = None,
        lease: Lease | None = None,
        request_id: str | None = None,
        span: Span = NO_SPAN,
    ) -> Answer:
        """The vectors of one request.

        Args:
            options: what the caller chose.
            texts: at least one.
            caller: who calls; see `KeyRing.caller`.
            gone: see `Gone`; the caller's leaving cancels the work. None for a caller that
                stays.
            lease: of the request, which holds tokens and vectors until the caller ends it; None
                for a lease that ends with this call.
            request_id: names the request in the log; None for a request without a name.
            span: of the request; gets what the conventions say of embeddings.

        Raises:
            RequestError: the request can never succeed as it is, or the caller may not use the
                model.
            CapacityError: the service has no room now, is starting or draining, or the caller has
                used up a limit.
            InferenceFailed: a run with one of the texts failed.
            CallerGone: the caller was gone first.
        """
        self.limits.check_texts(len(texts))
        choices = choose(options, self.directory, self.defaults)
        caller.check_model(choices.engine.manifest.id)
        describe_span(span, options, texts, choices)
        check_embedding_type(
            options.embedding_type, choices.dimensions, normalize=options.normalize
        )
        check_expected(options.expect, choices.fingerprint)
        with contextlib.nullcontext(lease) if lease else self.lease(caller) as held:
            tokenized, vectors = await while_wanted(
                self._embed(options, texts, choices, caller, held, request_id, span),
                gone=gone,
                deadline_s=options.deadline_s,
            )
        self._count(choices, tokenized, caller)
        span.set({names.INPUT_TOKENS: tokenized.n_tokens})
        return Answer(
            vectors=vectors,
            model=choices.engine.manifest.id,
            input_type=choices.input_type,
            n_tokens=tokenized.n_tokens,
            lengths=tuple(map(len, tokenized.ids)),
            truncated=tokenized.truncated,
            unknown=tokenized.unknown,
            fingerprint=choices.fingerprint,
            warnings=choices.warnings,
        )

    async def tokenize(
        self,
        options: Options,
        texts: Texts,
        write: Callable[[Sequence[Tokens]], T],
        caller: Caller = OPEN,
        *,
        add_special_tokens: bool = True,
        gone: Gone | None = None,
        lease: Lease | None = None,
    ) -> list[T]:
        """The tokens that the model reads of some texts, uncut.

        Args:
            options: what the caller chose; the model and the input type count.
            texts: at least one, as strings.
            write: makes what the caller gets of the tokens of some texts; called on a thread, for
                one piece of the request at a time.
            caller: who calls; see `KeyRing.caller`.
            add_special_tokens: whether the special tokens around a text are among its tokens.
            gone: see `embed`.
            lease: of the request, which holds what `write` made; see `embed`.

        Returns:
            What `write` made, in the order of the texts.

        Raises:
            RequestError: the request can never succeed as it is.
            CapacityError: the service has no room now, or is stopping.
            CallerGone: the caller was gone first.
        """
        work = partial(spell, texts, write=write, add_special_tokens=add_special_tokens)
        return await self._read(work, options, texts, caller, gone, lease)

    async def decode(
        self,
        options: Options,
        texts: Texts,
        write: Callable[[Sequence[str]], T],
        caller: Caller = OPEN,
        *,
        skip_special_tokens: bool = True,
        gone: Gone | None = None,
        lease: Lease | None = None,
    ) -> list[T]:
        """The strings of some texts that come as ids of the model.

        Args:
            options: what the caller chose; the model counts.
            texts: at least one, as arrays of the model's own ids.
            write: makes what the caller gets of some strings; see `tokenize`.
            caller: who calls; see `KeyRing.caller`.
            skip_special_tokens: whether special tokens are left out.
            gone: see `embed`.
            lease: see `tokenize`.

        Returns:
            What `write` made, in the order of the texts.

        Raises:
            MatryoError: see `tokenize`.
            CallerGone: the caller was gone first.
        """
        work = partial(join, texts, write=write, skip_special_tokens=skip_special_tokens)
        return await self._read(work, options, texts, caller, gone, lease)

    async def _read(
        self,
        work: Callable[..., Coroutine[Any, Any, list[T]]],
        options: Options,
        texts: Texts,
        caller: Caller,
        gone: Gone | None,
        lease: Lease | None,
    ) -> list[T]:
        """What `work` makes of a request that needs the tokenizer alone."""
        self.limits.check_texts(len(texts))
        choices = choose(options, self.directory, self.defaults)
        caller.check_model(choices.engine.manifest.id)
        with contextlib.nullcontext(lease) if lease else self.lease(caller) as held:
            return await while_wanted(
                work(
                    choices=choices,
                    pool=self.pool,
                    limits=self.limits,
                    lease=held,
                    patience_s=options.deadline_s,
                    tenant=caller.tenant,
                ),
                gone=gone,
                deadline_s=options.deadline_s,
            )

    async def _embed(
        self,
        options: Options,
        texts: Texts,
        choices: Choices,
        caller: Caller,
        lease: Lease,
        request_id: str | None,
        span: Span,
    ) -> tuple[Tokenized, FloatArray]:
        """Tokens, then vectors: the part of a request that its caller's leaving cancels."""
        self._scheduler.check_room(options.priority, options.deadline_s, caller.tenant)
        if caller.allowance:
            caller.allowance.check_tokens()
        started = time.perf_counter()
        with span.stage(names.TOKENIZE):
            tokenized = await tokenize(
                texts,
                choices,
                truncate=options.truncate,
                keep=options.keep,
                pool=self.pool,
                limits=self.limits,
                decoder=self.decoder,
                patience_s=options.deadline_s,
                tenant=caller.tenant,
                piece_characters=(
                    BATCH_PIECE_CHARACTERS if options.priority == "batch" else PIECE_CHARACTERS
                ),
            )
        model = choices.engine.manifest.id
        spent_s = time.perf_counter() - started
        self._metrics.tokenize_seconds.labels(model).observe(spent_s)
        lease.grow(tokenized.n_bytes, "tokens")
        lease.grow(4 * len(tokenized.ids) * choices.dimensions, "vectors")
        with _charged(caller, tokenized.n_tokens):
            vectors = await self._scheduler.run(
                choices.engine,
                tokenized.ids,
                choices.dimensions,
                normalize=options.normalize,
                priority=options.priority,
                patience_s=None if options.deadline_s is None else options.deadline_s - spent_s,
                request_id=request_id,
                span=span,
                tenant=caller.tenant,
            )
        return tokenized, vectors

    def _count(self, choices: Choices, tokenized: Tokenized, caller: Caller) -> None:
        manifest, metrics = choices.engine.manifest, self._metrics
        known = choices.dimensions in manifest.output.dimensions.trained
        size = str(choices.dimensions) if known else "other"
        metrics.texts.labels(manifest.id, choices.input_type, size).inc(len(tokenized.ids))
        metrics.tokens.labels(manifest.id, choices.input_type, size).inc(tokenized.n_tokens)
        metrics.caller_tokens.labels(caller.name or "").inc(tokenized.n_tokens)
        if tokenized.truncated:
            metrics.truncations.labels(manifest.id).inc(len(tokenized.truncated))
        if tokenized.unknown:
            metrics.unknown_texts.labels(manifest.id).inc(len(tokenized.unknown))


@contextlib.contextmanager
def _charged(caller: Caller, n_tokens: int) -> Generator[None, None, None]:
    """Charge the caller's key for a run, unless the server refuses the run or fails.

    Raises:
        LimitReached: a limit of the key has no room for so many tokens.
    """
    if caller.allowance is None:
        yield
        return
    caller.allowance.charge_tokens(n_tokens)
    try:
        yield
    except (CapacityError, EngineError):
        caller.allowance.give_back_tokens(n_tokens)
        raise


def _check_defaults(defaults: Defaults, engines: Sequence[Engine]) -> None:
    """Hold the operator's defaults against the models they are for."""
    manifests = [engine.manifest for engine in engines]
    names = [name for manifest in manifests for name in manifest.input_type_names]
    if defaults.input_type not in names:
        raise SettingsInvalid(
            f"MATRYO_DEFAULT_INPUT_TYPE is '{defaults.input_type}', which no served model knows; "
            f"choose one of {', '.join(dict.fromkeys(names))}"
        )
    wanted = defaults.dimensions
    for manifest in manifests:
        sizes = manifest.output.dimensions
        if wanted is None or wanted == sizes.native or (sizes.cut and wanted < sizes.native):
            continue
        allowed = f"1 to {sizes.native}" if sizes.cut else f"{sizes.native} only"
        raise SettingsInvalid(f"MATRYO_DIMENSIONS is {wanted}, but {manifest.id} gives {allowed}")
    if wanted is None or not defaults.strict_dimensions:
        return
    for manifest in manifests:  # else every request that names no size would be refused
        sizes = manifest.output.dimensions
        if wanted != sizes.native and wanted not in sizes.trained:
            trained = ", ".join(map(str, sizes.trained or (sizes.native,)))
            raise SettingsInvalid(
                f"MATRYO_DIMENSIONS is {wanted}, but {manifest.id} was trained for {trained} and "
                "MATRYO_STRICT_DIMENSIONS refuses other sizes. Choose one of those, or unset "
                "MATRYO_STRICT_DIMENSIONS."
            )
