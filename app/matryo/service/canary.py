"""Vectors of fixed texts as this process computes them, which show whether vectors changed.

Two processes with the same fingerprint and other canaries differ in their CPU or in a library. The
texts are never changed but with `VERSION`, since clients compare canaries of years ago.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import numpy as np

from matryo.catalog.manifest import Manifest
from matryo.catalog.prompts import NONE
from matryo.core.budget import Budget, Lease
from matryo.core.errors import CapacityError
from matryo.engine import Engine, TokenIds
from matryo.engine.postprocess import FloatArray
from matryo.scheduler import Scheduler
from matryo.service.choices import Choices
from matryo.service.limits import RequestLimits
from matryo.service.request import Texts
from matryo.service.text_pool import TextPool
from matryo.service.tokenize import tokenize

log = logging.getLogger(__name__)

VERSION = 1
"""Raised with every change of `TEXTS`."""

_LONG = (
    "A library keeps its books in the order of their subjects, so that a reader who looks for one "
    "finds others beside it. An index of vectors does the same for texts: each text becomes a list "
    "of numbers, and texts of like meaning have like numbers. The numbers of two models cannot be "
    "compared, and neither can those of two versions of a model. Whoever changes the model must "
    "embed every text again, as a library that changes its order must move every book."
)

TEXTS = (
    "The sky is blue because air scatters short waves of light more than long ones.",
    "Im Herbst überqueren Gänse die Ostsee; un œuf naïf, mañana, Łódź.",
    "Москва — столица России; Волга впадает в Каспийское море.",
    "東京は日本の首都で、人口は約1400万人です。",
    "القطط تنام كثيرا، والكلاب تحرس البيت.",
    "def area(r: float) -> float:\n    return 3.14159 * r**2  # of a circle",
    "Invoice 2024-03-17: 1,299.00 EUR (19 % VAT), order A-70813, 12 x 0.5 kg.",
    _LONG,
)
"""Prose, scripts, code, numbers, and a longer text; each within the limit of every model."""

N_COMPONENTS = 4
"""Components of each vector that are shown beside the digest."""


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """The vectors of `TEXTS` by one model.

    Attributes:
        vectors: by input type, `(len(TEXTS), native)` float32, unit vectors in the order of the
            texts.
    """

    vectors: Mapping[str, FloatArray]

    def sha256(self, input_type: str) -> str:
        """The digest of a matrix: float32, least significant byte first, row after row."""
        return hashlib.sha256(self.vectors[input_type].astype("<f4").tobytes()).hexdigest()

    def components(self, input_type: str) -> FloatArray:
        """The first components of each row, `(len(TEXTS), N_COMPONENTS)`."""
        return np.ascontiguousarray(self.vectors[input_type][:, :N_COMPONENTS])


def input_types_of(manifest: Manifest) -> tuple[str, ...]:
    """The input types that a canary has: those with a prompt, and `none`."""
    return (*(name for name, prompt in manifest.prompts.items() if prompt), NONE)


async def compute(engine: Engine, scheduler: Scheduler, pool: TextPool, lease: Lease) -> Canary:
    """The canary of a model, by the way of every request; every other request goes first.

    Args:
        engine: the model.
        scheduler: runs the model.
        pool: threads to tokenise on.
        lease: holds tokens and vectors meanwhile.

    Raises:
        CapacityError: the service has no room now, is starting or draining.
        InferenceFailed: a run failed.
    """
    scheduler.check_room("bulk")
    size = engine.manifest.output.dimensions.native
    kinds = input_types_of(engine.manifest)
    ids: list[TokenIds] = []
    for kind in kinds:
        # A limit or a default of the operator has no part in what the model computes.
        choices = Choices(engine, kind, size, "float", ())
        tokenized = await tokenize(
            Texts(TEXTS), choices, truncate=True, pool=pool, limits=RequestLimits()
        )
        lease.grow(tokenized.n_bytes, "tokens")
        ids += tokenized.ids
    lease.grow(4 * len(ids) * size, "vectors")
    rows = await scheduler.run(engine, ids, size, priority="bulk")
    return Canary(dict(zip(kinds, np.split(rows, len(kinds)), strict=True)))


class Canaries:
    """The canaries of a service's models, each computed when it is first asked for, and kept.

    Args:
        scheduler: runs the models.
        pool: threads to tokenise on.
        budget: holds tokens and vectors meanwhile.
    """

    def __init__(self, scheduler: Scheduler, pool: TextPool, budget: Budget) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._budget = budget
        self._tasks: dict[Engine, asyncio.Task[Canary]] = {}

    async def _compute(self, engine: Engine) -> Canary:
        with self._budget.lease() as lease:
            return await compute(engine, self._scheduler, self._pool, lease)

    def of(self, engine: Engine) -> Awaitable[Canary]:
        """The canary of a model. Who stops to wait leaves the computation running.

        Raises:
            CapacityError: see `compute`. Whoever asks next has the computation begun again.
            InferenceFailed: likewise.
        """
        task = self._tasks.get(engine)
        if task is None:
            task = self._tasks[engine] = asyncio.create_task(self._compute(engine))
            task.add_done_callback(lambda done: self._settle(engine, done))
        return asyncio.shield(task)

    def _settle(self, engine: Engine, task: asyncio.Task[Canary]) -> None:
        """Forget a computation that failed."""
        exc = None if task.cancelled() else task.exception()
        if exc is None and not task.cancelled():
            return
        del self._tasks[engine]
        if exc and not isinstance(exc, CapacityError):
            log.error("the canary of %s cannot be computed", engine.manifest.id, exc_info=exc)

    async def close(self) -> None:
        """End the computations that run."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
