"""The algorithm of Kubernetes' HorizontalPodAutoscaler, which KEDA's ScaledObjects use too.

As in `pkg/controller/podautoscaler` of Kubernetes: each metric proposes a number of pods, the
largest wins, a stabilisation window takes the most cautious of the recent proposals, and policies
limit the change in a period.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SYNC_S = 15.0
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Policy:
    """Most change in a period.

    Attributes:
        percent: whether `value` is a percentage of the pods, or a number of pods.
        value: the change.
        period_s: the period.
    """

    percent: bool
    value: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Behavior:
    """How fast the number of pods may change; the policy that allows most counts."""

    up_window_s: float = 0.0
    up: Sequence[Policy] = (Policy(True, 100, 15), Policy(False, 4, 15))  # noqa: FBT003
    down_window_s: float = 300.0
    down: Sequence[Policy] = (Policy(True, 100, 15),)  # noqa: FBT003


KUBERNETES = Behavior()
"""What Kubernetes does if nothing is said."""


def from_average(total: float, target: float, current: int) -> int:
    """Pods that a metric of type AverageValue asks for.

    Args:
        total: the metric's sum over the pods.
        target: what each pod should have of it.
        current: number of pods, ready or not.
    """
    if abs(1 - total / (target * current)) <= TOLERANCE:
        return current
    return math.ceil(total / target)


def from_utilization(ready: Sequence[float], n_starting: int, target: float, current: int) -> int:
    """Pods that the CPU asks for.

    Args:
        ready: utilisation of each ready pod.
        n_starting: pods that are not ready yet. They count as idle where the number should grow,
            and not at all where it should shrink.
        target: utilisation that each pod should have.
        current: number of pods, ready or not.
    """
    if not ready:
        return current

    def ratio_of(n_pods: int) -> float:
        # Kubernetes counts the utilisation in whole per cent.
        return int(100 * sum(ready) / n_pods + 1e-6) / round(100 * target)

    ratio = ratio_of(len(ready))
    if ratio <= 1 or not n_starting:
        return current if abs(1 - ratio) <= TOLERANCE else math.ceil(ratio * len(ready))
    n_all = len(ready) + n_starting
    with_starting = ratio_of(n_all)
    if abs(1 - with_starting) <= TOLERANCE or with_starting < 1:
        return current
    return max(current, math.ceil(with_starting * n_all))


@dataclass(slots=True)
class Autoscaler:
    """Turns proposals into a number of pods.

    Attributes:
        least: fewest pods.
        most: most pods.
        behavior: how fast the number may change.
    """

    least: int
    most: int
    behavior: Behavior
    _proposals: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])
    _changes: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def decide(self, now: float, current: int, proposal: int) -> int:
        """The number of pods from now on."""
        wanted = self._limited(now, current, self._stabilised(now, current, proposal))
        wanted = min(max(wanted, self.least), self.most)
        if wanted != current:
            self._changes.append((now, wanted - current))
        return wanted

    def _stabilised(self, now: float, current: int, proposal: int) -> int:
        behavior = self.behavior
        window = max(behavior.up_window_s, behavior.down_window_s)
        self._proposals.append((now, proposal))
        while self._proposals[0][0] < now - window:
            self._proposals.popleft()
        up = min(n for at, n in self._proposals if at >= now - behavior.up_window_s)
        down = max(n for at, n in self._proposals if at >= now - behavior.down_window_s)
        return min(max(current, up), down)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        if wanted > current:
            limits = [
                (
                    math.ceil(before * (1 + policy.value / 100))
                    if policy.percent
                    else before + policy.value
                )
                for policy in self.behavior.up
                for before in [current - self._changed(now, policy.period_s, 1)]
            ]
            return min(wanted, max(current, *limits))
        limits = [
            (int(before * (1 - policy.value / 100)) if policy.percent else before - policy.value)
            for policy in self.behavior.down
            for before in [current + self._changed(now, policy.period_s, -1)]
        ]
        return max(wanted, min(current, *limits))

    def _changed(self, now: float, period_s: float, sign: int) -> int:
        """Pods added, or taken away, in the last so many seconds."""
        return sum(abs(n) for at, n in self._changes if at > now - period_s and n * sign > 0)
