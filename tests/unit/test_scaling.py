"""The simulation of autoscalers: the algorithm of Kubernetes, and work that is neither lost nor made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.scaling.__main__ import PLANS, SLOW, plot, save, saved, table
from bench.scaling.autoscaler import (
    KUBERNETES,
    Autoscaler,
    Behavior,
    Policy,
    from_average,
    from_utilization,
)
from bench.scaling.fit import AHEAD_S, LOADS, QUERY_LOADS, Fit
from bench.scaling.fleet import Fleets, Outcome, Plan, mixture
from bench.scaling.replica import QUERY, Replica, published
from bench.scaling.traffic import Day, Job, day
from tests.chart.files import values

FIT = Fit(
    capacity=2000.0,
    start_s=0.05,
    busy=np.array(LOADS),
    backlog_s=np.array(LOADS) / 10,
    times=np.linspace(0.001, 0.02, 200)
    * np.arange(1, len(LOADS) + len(QUERY_LOADS) + len(AHEAD_S))[:, None],
)


@pytest.mark.parametrize(
    ("total", "current", "pods"),
    [(10, 10, 10), (10.9, 10, 10), (11.2, 10, 12), (0, 10, 0), (95, 10, 95)],
)
def test_average(total: float, current: int, pods: int) -> None:
    """An average value asks for the sum over the target, and for nothing new within a tenth."""
    assert from_average(total, 1.0, current) == pods


@pytest.mark.parametrize(
    ("busy", "n_starting", "pods"),
    [
        ([0.7] * 10, 0, 10),
        ([1.0] * 10, 0, 15),
        ([0.35] * 10, 0, 5),
        ([1.0] * 10, 5, 15),  # pods that start count as idle: enough are on their way
        ([1.0] * 10, 2, 15),
        ([0.35] * 10, 4, 5),
        ([], 3, 3),
    ],
)
def test_utilization(busy: list[float], n_starting: int, pods: int) -> None:
    """The CPU asks for pods in proportion, and waits for those that start."""
    assert from_utilization(busy, n_starting, 0.7, len(busy) + n_starting) == pods


def test_up_is_limited() -> None:
    """In fifteen seconds the number at most doubles, or grows by four."""
    scaler = Autoscaler(1, 100, KUBERNETES)
    counts = [1]
    for step in range(5):
        counts.append(scaler.decide(15.0 * step, counts[-1], 1000))
    assert counts == [1, 5, 10, 20, 40, 80]


def test_down_waits_for_the_window() -> None:
    """Every proposal of the last five minutes must be lower before a pod goes."""
    scaler = Autoscaler(2, 100, KUBERNETES)
    assert scaler.decide(0, 40, 40) == 40
    assert [scaler.decide(t, 40, 1) for t in (15.0, 150.0, 300.0)] == [40, 40, 40]
    assert scaler.decide(301, 40, 1) == 2


def test_down_is_limited() -> None:
    """A policy of ten per cent a minute takes ten per cent in a minute."""
    scaler = Autoscaler(1, 100, Behavior(down_window_s=0, down=(Policy(True, 10, 60),)))
    counts = [50]
    for step in range(9):
        counts.append(scaler.decide(15.0 * step, counts[-1], 1))
    assert counts == [50, 45, 45, 45, 45, 40, 40, 40, 40, 36]


def _chart(scale: str) -> dict[str, Any]:
    return values()["autoscaling"]["behavior"][scale]


@pytest.mark.parametrize("scale", ["up", "down"])
def test_behavior_is_the_charts(scale: str) -> None:
    """The chart sets the behaviour that is simulated as Kubernetes' own."""
    given = _chart(f"scale{scale.title()}")
    policies = [
        Policy(one["type"] == "Percent", one["value"], one["periodSeconds"])
        for one in given["policies"]
    ]
    assert given["selectPolicy"] == "Max"
    assert list(getattr(KUBERNETES, scale)) == policies
    assert getattr(KUBERNETES, f"{scale}_window_s") == given["stabilizationWindowSeconds"]


def test_charts_targets_are_simulated() -> None:
    """The chart's targets and behaviour are one of the plans."""
    scaling = values()["autoscaling"]
    targets = scaling["backlogSeconds"], scaling["cpuPercent"] / 100
    assert targets in [(plan.backlog_s, plan.cpu) for plan in PLANS if plan.behavior is KUBERNETES]


def _steady(load: float, seconds: int, *jobs: Job) -> Day:
    return Day(np.full(seconds, load), jobs)


def _fixed(n: int, traffic: Day) -> Outcome:
    """What a fixed number of pods makes of some traffic."""
    plan = Plan("fixed", None, 1.0, KUBERNETES)
    return Fleets(FIT, traffic, [plan], n, n, 0).run()[0]


def test_enough_pods() -> None:
    """Pods that can compute all refuse nothing, and are as busy as the load says."""
    one = _fixed(10, _steady(6.0, 600))
    assert one.refused == one.ingest_refused == one.late == 0
    assert one.busy == pytest.approx(0.6, abs=0.02)
    assert one.replica_hours == pytest.approx(10 / 6)
    assert one.turns == 0


def test_too_few_pods() -> None:
    """What cannot be computed in time is refused: about the surplus, and ingest before queries."""
    one = _fixed(5, _steady(7.0, 1200))
    assert one.busy == pytest.approx(1.0, abs=0.02)
    assert one.ingest_refused > 0.5
    assert one.refused < 0.02


def test_a_job_takes_its_work() -> None:
    """A job that keeps the pods busy takes its work over the pods that are left."""
    one = _fixed(5, _steady(1.0, 1200, Job(60.0, 2000.0, 40.0)))
    assert one.jobs_s == pytest.approx(2000 / 4, rel=0.1)
    assert one.refused == 0


def test_more_pods_for_more_load() -> None:
    """The autoscaler follows a load, on the CPU alone and with the backlog."""
    plans = [Plan("cpu", None, 0.7, KUBERNETES), Plan("both", 1.0, 0.7, SLOW)]
    for one in Fleets(FIT, _steady(20.0, 1800), plans, 1, 60, 0).run():
        assert one.pods[-1] == pytest.approx(20 / 0.7, rel=0.2)


def test_same_seed() -> None:
    """A day and its outcome depend on the seed alone."""
    first, again = (
        Fleets(FIT, day(3.0, 1, 600), PLANS[:2], 1, 9, 4).run()[1].replica_hours for _ in range(2)
    )
    assert first == again
    assert not np.array_equal(day(3.0, 1, 600).load, day(3.0, 2, 600).load)


def test_mixture() -> None:
    """Quantiles of a mixture count each distribution by its weight."""
    times = np.array([np.linspace(0, 1, 101), np.linspace(10, 11, 101)])
    assert mixture(times, np.array([1.0, 0.0]), [0.5]) == [pytest.approx(0.5)]
    low, high = mixture(times, np.array([98.0, 2.0]), [0.5, 0.995])
    assert low < 1
    assert high > 10


def test_replica_is_the_scheduler() -> None:
    """A replica at half load answers every query, and computes what arrives."""
    seen = Replica(published(), 1000.0).run(4.0, 2000.0)
    assert seen.refused == 0
    assert len(seen.query_s) == pytest.approx(4 * 600 / QUERY.tokens, rel=0.3)
    assert seen.tokens_per_s == pytest.approx(1000, rel=0.4)
    assert 0 < seen.busy < 1


def test_report(tmp_path: Path) -> None:
    """A fit can be written and read; table and plot show every plan."""
    save(FIT, tmp_path / "fit.json")
    again = saved(tmp_path / "fit.json")
    assert again.capacity == FIT.capacity
    np.testing.assert_allclose(again.times, FIT.times, atol=1e-5)
    traffic = day(3.0, 0, 600)
    rows = Fleets(again, traffic, PLANS, 1, 20, 0).run()
    text = table({"small": rows})
    assert all(f"| {plan.name} |" in text for plan in PLANS)
    assert "nan" not in table({"small": [replace(row, p99_s=1.0) for row in rows]})
    plot(traffic.load.tolist(), rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text("utf-8")
