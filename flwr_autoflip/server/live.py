"""What a run says while it goes: a line a round in the log, plans in the ledger."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import INFO, getLogger
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from .. import wire
from ..errors import visible
from ..graph.codec import encode_plan, plan_digest
from ..graph.plan import Plan
from ..graph.shrink import arrays_of
from ..ledger.cost import CostOf
from ..ledger.headline import headline
from ..ledger.histogram import unit_histograms
from ..ledger.ledger import Ledger, dense_bytes, node_rows

LOGGER = getLogger("flwr")
LONGEST_NAME = 60
"""Characters of a metric's name in a line."""

Guidance = Callable[[], Mapping[str, NDArray[Any]]]


@dataclass
class Live:
    """Follow a run, round by round.

    Parameters
    ----------
    ledger : Ledger
    cost_of : CostOf
    """

    ledger: Ledger
    cost_of: CostOf
    _num_rounds: int = 0
    _waits: bool = False
    _clock: float = 0.0
    _rounds_done: int = 0
    _rows_read: int = 0
    _moved: int = 0
    _dense: int = 0
    _plan: str | None = None  # the last one's digest, "" before the first

    def begin(self, num_rounds: int, waits: bool) -> None:
        """Start the clock, after exploring.

        Parameters
        ----------
        num_rounds : int
        waits : bool
            A round ends with the server's own evaluation, not with the nodes'.
        """
        self._num_rounds, self._waits = num_rounds, waits
        self._clock, self._rounds_done = time.monotonic(), 0
        self._rows_read = self._moved = self._dense = 0
        self._plan = None

    @cached_property
    def dense_message(self) -> dict[str, int]:
        """Bytes of the dense model as the inner strategy alone would send it."""
        arrays = wire.to_arrayrecord(arrays_of(self.cost_of.model))
        config = ConfigRecord({"server-round": 1})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
        down = RecordDict({"arrays": arrays, "config": config})
        up = RecordDict({"arrays": arrays, "metrics": metrics})
        alone = RecordDict({"metrics": metrics})
        return {
            "down": wire.count_bytes(down),
            "up": wire.count_bytes(up),
            "metrics": wire.count_bytes(alone),
        }

    def plan_made(
        self, server_round: int, plan: Plan, guidance: Guidance, log: bool = False
    ) -> None:
        """Write a plan into the ledger, unless it is the one that held already.

        Parameters
        ----------
        server_round : int
            From which it holds; 0 before the rounds.
        plan : Plan
        guidance : callable
            Gives units' scores; called for the run's first plan only, since every call
            may read all reports.
        log : bool (default: False)
            Say it in the log, too.
        """
        if log:
            self._log_plan(plan)
        digest = plan_digest(encode_plan(plan), plan.layout).hex()
        if self._plan is None:  # once: the ledger may be another process's
            plans = [row for row in self.ledger.rows if row["phase"] == "plan"]
            self._plan = plans[-1]["digest"] if plans else ""
        before, self._plan = self._plan, digest
        if before == digest:
            return
        row: dict[str, Any] = {"digest": digest, "plan": self.cost_of.shape(plan)}
        row["dense_units"] = {g.name: g.size for g in plan.layout.groups}
        row["dense_message"] = self.dense_message
        if not before and (scores := guidance()):
            row["importance"] = unit_histograms(plan, scores)
        self.ledger.add_plan(server_round, row)

    def nodes_done(
        self, server_round: int, plan: Plan, metrics: Mapping[str, Any] | None
    ) -> None:
        """End a round after its nodes, unless the server evaluates after them."""
        if not self._waits:
            self.end_round(server_round, plan, metrics)

    def end_round(
        self, server_round: int, plan: Plan, metrics: Mapping[str, Any] | None
    ) -> None:
        """Log a round's line: accuracy, what stays, what was saved, the time left.

        Parameters
        ----------
        server_round : int
            Round 0, before the rounds, has no line.
        plan : Plan
            What most of its nodes trained.
        metrics : mapping of str to object or None
        """
        if server_round == 0:
            return
        self._count()
        self._rounds_done += 1
        passed = time.monotonic() - self._clock
        left = passed / self._rounds_done * max(0, self._num_rounds - server_round)
        found = headline(metrics or {})
        parts = [f"round {server_round}/{self._num_rounds}"]
        parts += [f"{visible(found[0], LONGEST_NAME)} {found[1]:.3f}"] if found else []
        kept = plan.num_parameters / plan.layout.num_parameters
        parts.append(f"{100 * kept:.0f} % of parameters")
        parts += [f"{self._moved / 1e6:.2f} MB so far", self._saved()]
        parts.append(f"{_duration(left)} left")
        LOGGER.log(INFO, "\t└──> AutoFlip: %s", ", ".join(parts))

    def _count(self) -> None:
        """Take in the rows that came since."""
        new = node_rows(self.ledger.rows[self._rows_read :])
        self._rows_read = len(self.ledger.rows)
        self._moved += sum(row["bytes_down"] + row["bytes_up"] for row in new)
        self._dense += sum(dense_bytes(row, self.dense_message) for row in new)

    def _saved(self) -> str:
        saved = self._dense - self._moved
        share = f" ({100 * saved / self._dense:.0f} %)" if self._dense else ""
        return f"{saved / 1e6:.2f} MB saved{share}"

    def _log_plan(self, plan: Plan) -> None:
        small, dense = self.cost_of.plan(plan).macs, self.cost_of.dense().macs
        share = None if small is None or not dense else 100 * small / dense
        LOGGER.log(
            INFO,
            "\t└──> plan: %d of %d units, %d of %d parameters, %s of MACs",
            int(plan.alive.sum()),
            plan.layout.num_units,
            plan.num_parameters,
            plan.layout.num_parameters,
            "an unknown share" if share is None else f"{share:.1f} %",
        )


def _duration(seconds: float) -> str:
    """Write seconds as people say them: ``45s``, ``2m 05s``, ``3h 10m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
