"""How far the model of a replica is from the scheduler's own code."""

from __future__ import annotations

import numpy as np

from bench.cores import Machine
from bench.scaling.autoscaler import KUBERNETES
from bench.scaling.fit import Fit
from bench.scaling.fleet import Fleets, Outcome, Plan
from bench.scaling.replica import Replica, Seen
from bench.scaling.traffic import Day

LOADS = (0.4, 0.6, 0.75, 0.85, 1.2, 1.8)
"""Loads that the fit did not see."""


def pairs(machine: Machine, fit: Fit, seconds: float) -> list[tuple[float, Seen, Outcome]]:
    """For each load, a replica of the scheduler's own code and one of the model."""
    found: list[tuple[float, Seen, Outcome]] = []
    for load in LOADS:
        replica = Replica(machine, load * fit.capacity, seed=7)
        exact = replica.run(seconds, fit.capacity, warm_up=0.0)  # the model has none
        steady = Day(np.full(int(seconds), load), ())
        plan = Plan("one", None, 1.0, KUBERNETES)
        (model,) = Fleets(fit, steady, [plan], 1, 1, 7).run()
        found.append((load, exact, model))
    return found


def compared(machine: Machine, fit: Fit, seconds: float) -> str:
    """Both as Markdown."""
    lines = ["| load | | p50, ms | p99, ms | busy | queries refused | ingest refused |"]
    lines.append("|---" * 7 + "|")
    for load, exact, model in pairs(machine, fit, seconds):
        p50_s, p99_s = np.quantile(exact.query_s, (0.5, 0.99))
        lines.append(
            f"| {load:g} | code | {1000 * p50_s:.0f} | {1000 * p99_s:.0f} | {exact.busy:.2f} "
            f"| {exact.refused:.1%} | {exact.ingest_refused:.1%} |"
        )
        lines.append(
            f"| | model | {1000 * model.p50_s:.0f} | {1000 * model.p99_s:.0f} | {model.busy:.2f} "
            f"| {model.refused:.1%} | {model.ingest_refused:.1%} |"
        )
    return "\n".join(lines)


__all__ = ["LOADS", "compared", "pairs"]
