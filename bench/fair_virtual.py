"""The clients of `bench.fair` in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import numpy as np

from bench.fair_load import BULK, POLITE, QUERY, Greed, Load, Seen
from bench.virtual import VirtualEngine, VirtualLoop, in_virtual_time
from matryo.core.errors import Overloaded
from matryo.engine import TokenIds
from matryo.scheduler import Scheduler, Tenant


def simulate(
    load: Load, greed: Greed, *, cores: int, weights: Sequence[float] = (1.0,), seed: int = 0
) -> Seen:
    """What clients see of the scheduler in virtual time.

    Args:
        load: what they send.
        greed: what the greedy tenants send.
        cores: of the machine.
        weights: of the greedy tenants.
        seed: of the times and the lengths.
    """
    seen = Seen()

    async def work(scheduler: Scheduler, engine: VirtualEngine, loop: VirtualLoop) -> None:
        begin = loop.time()
        clients = _Clients(scheduler, engine, loop, load, seen, begin + load.seconds)
        works = [clients.polite(n, random.Random(f"{seed}-{n}")) for n in range(POLITE)]
        if greed != "none":
            count = load.connections * (1 if greed == "bulk" else 4)
            for n, weight in enumerate(weights):
                tenant = Tenant(f"greedy-{n}", weight)
                for connection in range(count):
                    rng = random.Random(f"{seed}-{n}-{connection}")
                    works.append(clients.greedy(tenant, greed, rng))
        works.append(clients.count())
        await asyncio.gather(*works)

    in_virtual_time(work, cores=cores, queue_tokens=1_000_000, max_requests=4096, max_wait_s=60.0)
    return seen


class _Clients:
    """Clients of one scheduler; the first sixth of the time is a warm-up."""

    def __init__(
        self,
        scheduler: Scheduler,
        engine: VirtualEngine,
        loop: VirtualLoop,
        load: Load,
        seen: Seen,
        end: float,
    ) -> None:
        self._scheduler, self._engine, self._loop = scheduler, engine, loop
        self._load, self._seen, self._end = load, seen, end
        self._begin = end - load.seconds * 5 / 6
        self._numbers = itertools.count()

    def _texts(self, rng: random.Random, count: int, lengths: tuple[int, int]) -> list[TokenIds]:
        return [np.full(rng.randint(*lengths), next(self._numbers)) for _ in range(count)]

    async def polite(self, number: int, rng: random.Random) -> None:
        """One tenant that sends requests at random times."""
        if not self._load.rate:
            return
        tenant, tasks = Tenant(f"polite-{number}"), list[asyncio.Task[None]]()
        while self._loop.time() < self._end:
            await asyncio.sleep(rng.expovariate(self._load.rate / POLITE))
            is_bulk = rng.random() < self._load.bulk_part
            count, lengths = (self._load.bulk_texts, BULK) if is_bulk else (1, QUERY)
            texts = self._texts(rng, count, lengths)
            tasks.append(asyncio.create_task(self._send(tenant, texts, is_bulk=is_bulk)))
        await asyncio.gather(*tasks)

    async def _send(self, tenant: Tenant, texts: list[TokenIds], *, is_bulk: bool) -> None:
        sent = self._loop.time()
        try:
            await self._scheduler.run(self._engine, texts, 4, tenant=tenant)
        except Overloaded:
            self._seen.refused += 1
            return
        if sent >= self._begin:
            spent_s = self._loop.time() - sent
            (self._seen.bulk_s if is_bulk else self._seen.queries_s).append(spent_s)

    async def count(self) -> None:
        """Count what is computed for the greedy tenants after the warm-up."""
        await asyncio.sleep(self._begin - self._loop.time())
        before = self._engine.computed.copy()
        await asyncio.sleep(self._end - self._loop.time())
        for name, n_tokens in (self._engine.computed - before).items():
            if name and name.startswith("greedy"):
                self._seen.greedy_tokens[name] = n_tokens

    async def greedy(self, tenant: Tenant, greed: Greed, rng: random.Random) -> None:
        """One connection of a tenant that sends the next request as soon as it has an answer."""
        count, lengths = (self._load.greedy_texts, BULK) if greed == "bulk" else (1, QUERY)
        while (now := self._loop.time()) < self._end:
            texts = self._texts(rng, count, lengths)
            try:
                async with asyncio.timeout(self._end - now):
                    await self._scheduler.run(self._engine, texts, 4, tenant=tenant)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s)
                continue
            except TimeoutError:
                return
