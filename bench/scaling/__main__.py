"""Autoscalers on a day's traffic, from 1 to 200 replicas, simulated.

    .venv/bin/python -m bench.scaling                  about ten minutes
    .venv/bin/python -m bench.scaling --fit FILE       with a fit that --save wrote

Prints the tables of docs/scaling.md, and writes the plot beside the page with `--output docs`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from bench.scaling.autoscaler import KUBERNETES, Behavior, Policy
from bench.scaling.check import compared
from bench.scaling.fit import Fit, fit
from bench.scaling.fleet import Fleets, Outcome, Plan
from bench.scaling.replica import published
from bench.scaling.traffic import day

SLOW = Behavior(
    up_window_s=0,
    up=(Policy(percent=True, value=100, period_s=30), Policy(percent=False, value=4, period_s=30)),
    down_window_s=600,
    down=(Policy(percent=True, value=10, period_s=60),),
)
"""At most twice as many pods in half a minute, and a tenth fewer in a minute after ten minutes."""
PLANS = (
    Plan("CPU 70 %", None, 0.7, KUBERNETES),
    Plan("CPU 50 %", None, 0.5, KUBERNETES),
    Plan("backlog 0.5 s", 0.5, None, KUBERNETES),
    Plan("backlog 1 s", 1.0, None, KUBERNETES),
    Plan("backlog 2 s", 2.0, None, KUBERNETES),
    Plan("backlog 1 s and CPU 70 %", 1.0, 0.7, KUBERNETES),
    Plan("CPU 70 %, slowly", None, 0.7, SLOW),
    Plan("backlog 1 s, slowly", 1.0, None, SLOW),
    Plan("backlog 1 s and CPU 70 %, slowly", 1.0, 0.7, SLOW),
    Plan("backlog 2 s and CPU 70 %, slowly", 2.0, 0.7, SLOW),
)
SIZES = {"small": (3.0, 1, 20), "medium": (25.0, 2, 80), "large": (80.0, 3, 200)}
"""Busy replicas at the peak, fewest pods, most pods."""


def table(outcomes: dict[str, list[Outcome]]) -> str:
    """The outcomes of each size as Markdown."""
    heads = ["", "queries refused", "refused or over 1 s", "p50 / p99, ms", "ingest refused"]
    heads += ["replica-hours", "CPU", "most pods", "turns", "a job, h"]
    lines: list[str] = []
    for size, rows in outcomes.items():
        peak, least, most = SIZES[size]
        lines += ["", f"{size}: {least} to {most} pods, {peak:g} busy replicas at the peak", ""]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for plan, one in zip(PLANS, rows, strict=True):
            lines.append(
                f"| {plan.name} | {one.refused:.3%} | {one.late:.3%} "
                f"| {1000 * one.p50_s:.0f} / {1000 * one.p99_s:.0f} | {one.ingest_refused:.3%} "
                f"| {one.replica_hours:,.0f} | {one.busy:.0%} | {one.most} | {one.turns} "
                f"| {one.jobs_s / 3600:.2f} |"
            )
    return "\n".join(lines)


def plot(load: Sequence[float], rows: Sequence[Outcome], path: Path) -> None:
    """Pods over the day, beside the busy replicas that the traffic needs."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    plt.switch_backend("svg")
    cast("Any", mpl).rcParams["svg.hashsalt"] = "matryo"  # equal results give equal bytes
    figure, axes = cast("Any", plt).subplots(figsize=(8, 4))
    minutes = np.array(load).reshape(-1, 60).mean(1)
    hours = np.arange(len(minutes)) / 60
    axes.fill_between(hours, minutes, color="0.85", label="queries and ingest, busy replicas")
    shown = {"CPU 70 %", "backlog 1 s", "backlog 1 s and CPU 70 %"}
    for plan, one in zip(PLANS, rows, strict=True):
        if plan.name in shown:
            axes.plot(hours, one.pods, label=plan.name, linewidth=1)
    axes.set(xlabel="hour", ylabel="pods", xlim=(0, hours[-1]), ylim=(0, None))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def save(fitted: Fit, path: Path) -> None:
    """Write a fit."""
    lists: dict[str, Any] = {
        name: value if isinstance(value, float) else np.round(value, 5).tolist()
        for name, value in asdict(fitted).items()
    }
    path.write_text(json.dumps(lists) + "\n", "utf-8")


def saved(path: Path) -> Fit:
    """A fit that was written before."""
    lists: dict[str, Any] = json.loads(path.read_text("utf-8"))
    arrays = {name: np.array(lists[name], np.float64) for name in ("busy", "backlog_s", "times")}
    return Fit(capacity=lists["capacity"], start_s=lists["start_s"], **arrays)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, compare with the scheduler's code, simulate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, help="a fit that --save wrote")
    parser.add_argument("--save", type=Path, help="where to write the fit")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run of the fit")
    parser.add_argument("--seed", type=int, default=0, help="of the day")
    parser.add_argument("--size", choices=SIZES, action="append", help="only these")
    parser.add_argument("--output", type=Path, help="folder of the plot")
    given = parser.parse_args(arguments)
    fitted = saved(given.fit) if given.fit else fit(published(), given.seconds)
    if given.save:
        save(fitted, given.save)
    print(f"A replica computes {fitted.capacity:,.0f} tokens a second.\n")
    if not given.fit:
        print(compared(published(), fitted, given.seconds))
    outcomes: dict[str, list[Outcome]] = {}
    for size in given.size or SIZES:
        peak, least, most = SIZES[size]
        traffic = day(peak, given.seed)
        outcomes[size] = Fleets(fitted, traffic, PLANS, least, most, given.seed).run()
        if given.output and size == "medium":
            plot(traffic.load.tolist(), outcomes[size], given.output / "scaling.svg")
    print(table(outcomes))


if __name__ == "__main__":
    main()
