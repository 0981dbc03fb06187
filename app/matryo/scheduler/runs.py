"""The runs under way: what each of them takes, and which of them make way for others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matryo.engine import Engine, Interrupt
from matryo.scheduler.accounts import Account
from matryo.scheduler.jobs import Job
from matryo.scheduler.rates import Work


@dataclass(frozen=True, slots=True)
class Choice:
    """The jobs that a worker shall run now.

    Attributes:
        jobs: of one engine, at least one.
        interrupt: ends the run early; None for a run that makes way for nobody.
    """

    jobs: list[Job]
    interrupt: Interrupt | None = None


@dataclass(eq=False, slots=True)
class Run:
    """The jobs that one worker has taken.

    Attributes:
        engine: the model.
        jobs: that the worker has taken.
        work: of the jobs.
        n_tokens: of the jobs.
        started: the clock when the worker took the jobs.
        has_bulk: whether a job is of a bulk request.
        is_long: whether the run is that of one long text.
        is_probe: whether no job is a caller's.
        is_background: whether the jobs are those of batch requests.
        counted: the clock until which the run's time is counted as busy.
        by_tenant: tokens of the jobs of each tenant, by its name.
        leader: the tenant that leads the run.
        leader_served: the clock of that tenant before the run.
        interrupt: see `Choice`.
    """

    engine: Engine
    jobs: list[Job]
    work: Work
    n_tokens: int
    started: float
    has_bulk: bool
    is_long: bool
    is_probe: bool
    is_background: bool
    counted: float
    by_tenant: dict[str | None, int]
    leader: Account
    leader_served: float
    interrupt: Interrupt | None

    @property
    def is_online(self) -> bool:
        """Whether the run is one that guests and batch requests wait for.

        They do not wait for a long text, beside which most workers would stay idle.
        """
        return not (self.is_background or self.is_long or self.is_probe)

    @property
    def is_interrupted(self) -> bool:
        """Whether the run was asked to end early."""
        return self.interrupt is not None and self.interrupt.is_set


class Runs:
    """The runs under way."""

    def __init__(self) -> None:
        self._runs: dict[Run, None] = {}

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        """The runs."""
        return iter(self._runs)

    def begin(self, run: Run) -> None:
        """Take a run in."""
        self._runs[run] = None

    def end(self, run: Run) -> None:
        """Let a run go."""
        del self._runs[run]

    @property
    def n_tokens(self) -> int:
        """Tokens of all runs, apart from those of batch requests."""
        return sum(run.n_tokens for run in self._runs if not run.is_background)

    @property
    def n_long(self) -> int:
        """Runs of long texts."""
        return sum(run.is_long for run in self._runs)

    @property
    def is_online(self) -> bool:
        """Whether batch requests wait for a run."""
        return any(run.is_online for run in self._runs)

    @property
    def is_clearing(self) -> bool:
        """Whether runs are ending early, so that a request may have every core.

        One operator of a long text takes longer than the request could win.
        """
        return any(run.is_interrupted and not run.is_long for run in self._runs)

    def leaders(self) -> list[Account]:
        """The tenants that lead a run, as far as guests wait for that run."""
        return [run.leader for run in self._runs if run.is_online and not run.leader.is_guest]
