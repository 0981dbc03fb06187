"""A day of requests: two humps, noise, bursts, a step, and jobs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.scaling.fit import Floats

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Job:
    """Bulk with a fixed number of requests under way.

    Attributes:
        starts_s: second of the day.
        work: seconds that one replica would take for all of it.
        under_way: seconds that one replica would take for what is always under way.
    """

    starts_s: float
    work: float
    under_way: float


@dataclass(frozen=True, slots=True)
class Day:
    """What arrives.

    Attributes:
        load: seconds of one replica that arrive in each second, of queries and ingest.
        jobs: of bulk.
    """

    load: Floats
    jobs: tuple[Job, ...]


def day(peak: float, seed: int, seconds: int = DAY_S) -> Day:
    """A day.

    Args:
        peak: busy replicas that the humps need at their highest, without noise and bursts.
        seed: of everything random.
        seconds: length, if shorter than a day; the curve is squeezed into it.
    """
    generator = np.random.default_rng(seed)
    hour = np.arange(seconds) * 24 / seconds
    humps = np.exp(-(((hour - 11) / 2.8) ** 2)) + 0.85 * np.exp(-(((hour - 16.5) / 2.5) ** 2))
    load: Floats = 0.12 + 0.88 * humps / humps.max()
    load = load * np.where((hour >= 14) & (hour < 15.5), 1.5, 1.0)  # the step
    load = load * _noise(generator, seconds)
    moments = generator.uniform(0, seconds, generator.poisson(14 * seconds / DAY_S))
    for moment in moments:
        lasts, height = generator.uniform(40, 300), generator.uniform(0.4, 1.5)
        t = np.arange(seconds) - moment
        rise = np.clip(t / 5, 0, 1) * np.clip((lasts - t) / 5, 0, 1)
        load = load * (1 + height * rise)
    jobs = [Job(1.0 * 3600, 2400 * peak, 3.0 * peak)]
    jobs += [Job(float(generator.uniform(7, 20)) * 3600, 200 * peak, 0.8 * peak) for _ in range(5)]
    scale = seconds / DAY_S
    return Day(
        peak * load,
        tuple(Job(job.starts_s * scale, job.work * scale, job.under_way) for job in jobs),
    )


def _noise(generator: np.random.Generator, seconds: int) -> Floats:
    """Slow noise of about 5 %, a value for each second."""
    n_minutes = seconds // 60 + 2
    steps = generator.normal(0, 0.02, n_minutes)
    values = np.zeros(n_minutes)
    for minute in range(1, n_minutes):
        values[minute] = 0.92 * values[minute - 1] + steps[minute]
    return np.exp(np.interp(np.arange(seconds) / 60, np.arange(n_minutes), values))
