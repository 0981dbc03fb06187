"""Interleaved rounds of several engines, and the choice of each engine's best setting."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.child import Child

Shape = tuple[int, int]

_KEPT = 0.85
_LONG_TOKENS = 512


@dataclass(slots=True)
class Measured:
    """What was measured of one engine.

    Attributes:
        about: what the engine says of itself.
        chosen: the fastest setting at each shape.
        rates: tokens a second of each round, by shape.
        accuracy: cosines to fp32 and the difference between alone and in a batch, by name.
        accurate_at: the setting that accuracy was measured with.
    """

    about: str
    chosen: dict[Shape, str] = field(default_factory=dict[Shape, str])
    rates: dict[Shape, list[float]] = field(default_factory=dict[Shape, list[float]])
    accuracy: dict[str, float] = field(default_factory=dict[str, float])
    accurate_at: str = ""

    def median(self, shape: Shape) -> float:
        """Tokens a second at a shape."""
        return statistics.median(self.rates[shape])


def ratio(one: Measured, other: Measured, shape: Shape) -> float:
    """How many times as fast one engine is; the median of the rounds' ratios."""
    pairs = zip(one.rates[shape], other.rates[shape], strict=True)
    return statistics.median(a / b for a, b in pairs)


def choose(child: Child, shapes: Iterable[Shape], seconds: float, file: Path) -> dict[Shape, str]:
    """The fastest setting of an engine at each shape.

    A setting is tried at a shape of many tokens only if it came within 15 % of the fastest setting
    at one of the shorter shapes, because a long run takes seconds.

    Args:
        child: the engine.
        shapes: texts and tokens.
        seconds: of each trial.
        file: what was chosen before, and is chosen again without a trial.
    """
    if len(child.settings) == 1:
        return dict.fromkeys(shapes, child.settings[0])
    known: dict[str, str] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    kept: set[str] = set()
    for shape in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        key = f"{child.name}, {shape[0]} x {shape[1]}"
        if known.get(key) not in child.settings:
            long = shape[0] * shape[1] > _LONG_TOKENS
            tried = [name for name in child.settings if name in kept or not long or not kept]
            rates = {name: child.rate(name, shape, seconds) for name in tried}
            best = max(rates, key=rates.__getitem__)
            kept |= {name for name, rate in rates.items() if rate > _KEPT * rates[best]}
            known[key] = best
            file.write_text(json.dumps(known, indent=1), "utf-8")
        kept.add(known[key])
    return {shape: known[f"{child.name}, {shape[0]} x {shape[1]}"] for shape in shapes}


def race(
    children: Sequence[Child],
    measured: Mapping[str, Measured],
    shapes: Sequence[Shape],
    number: int,
    seconds: float,
) -> None:
    """Measure every engine at every shape once, one engine at a time.

    Args:
        children: the engines.
        measured: by name of the engine; the rates are added.
        shapes: texts and tokens.
        number: of this round, from 0 on; each round begins with another engine, because a machine
            may slow down during a round.
        seconds: of each measurement.
    """
    first = number % len(children)
    for shape in shapes:
        for child in (*children[first:], *children[:first]):
            one = measured[child.name]
            rate = child.rate(one.chosen[shape], shape, seconds)
            one.rates.setdefault(shape, []).append(rate)
            print(f"round {number + 1}, {shape[0]} x {shape[1]}, {child.name}: {rate:.0f}")
