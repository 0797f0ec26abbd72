"""What a run says while it goes: a line a round in the log, plans in the ledger."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import INFO, getLogger
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from .. import wire
from ..errors import visible
from ..graph.codec import encode_plan, plan_digest
from ..graph.plan import Plan
from ..graph.shrink import arrays_of
from ..ledger.cost import CostOf
from ..ledger.headline import headline
from ..ledger.histogram import unit_histograms
from ..ledger.ledger import Ledger, dense_bytes, node_rows
from ..methods.base import Scores

LOGGER = getLogger("flwr")
LONGEST_NAME = 60
"""Characters of a metric's name in a line."""


@dataclass
class Progress:
    """Follow a run, round by round."""

    ledger: Ledger
    cost_of: CostOf
    _num_rounds: int = 0
    _clock: float = 0.0
    _rounds_done: int = 0
    _rows_read: int = 0
    _moved: int = 0
    _dense: int = 0
    _plan: str = ""
    _scored: bool = False

    def begin(self, num_rounds: int) -> None:
        """Start the clock."""
        self._num_rounds, self._clock = num_rounds, time.monotonic()
        self._rounds_done = self._rows_read = self._moved = self._dense = 0
        self._plan, self._scored = "", False

    @cached_property
    def dense_message(self) -> dict[str, int]:
        """Bytes of the dense model as the inner strategy alone would send it."""
        arrays = wire.to_arrayrecord(arrays_of(self.cost_of.model))
        config = ConfigRecord({"server-round": 1})
        metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
        messages: dict[str, dict[str, Any]] = {
            "down": {"arrays": arrays, "config": config},
            "up": {"arrays": arrays, "metrics": metrics},
            "metrics": {"metrics": metrics},
        }
        return {k: wire.count_bytes(RecordDict(m)) for k, m in messages.items()}

    def plan_made(
        self,
        server_round: int,
        plan: Plan,
        scores: Callable[[], Scores],
        log: bool = False,
    ) -> None:
        """Write a plan into the ledger, unless it is the one that is written last.

        It holds from the round on; 0 is before the rounds. ``scores`` gives units'
        importance for a histogram of the first plan that prunes units. ``log`` says it
        in the log, too.
        """
        if log:
            self._log_plan(plan)
        self._read_rows()
        digest = plan_digest(encode_plan(plan), plan.layout).hex()
        if digest == self._plan:
            return
        row: dict[str, Any] = {"digest": digest, "plan": self.cost_of.shape(plan)}
        row["dense_units"] = {g.name: g.size for g in plan.layout.groups}
        row["dense_message"] = self.dense_message
        if not self._scored and not plan.alive.all():
            row["importance"] = unit_histograms(plan, scores())
        self.ledger.add_plan(server_round, row)

    def end_round(
        self, server_round: int, plan: Plan, metrics: Mapping[str, Any] | None
    ) -> None:
        """Log a round's line: accuracy, what is kept, what was saved, the time left.

        ``plan`` is what most of its nodes trained. Round 0 has no line.
        """
        if server_round == 0:
            return
        self._read_rows()
        self._rounds_done += 1
        passed = time.monotonic() - self._clock
        left = passed / self._rounds_done * max(0, self._num_rounds - server_round)
        kept = plan.num_parameters / plan.layout.num_parameters
        saved = self._dense - self._moved
        ratio = f" ({100 * saved / self._dense:.0f} %)" if self._dense else ""
        parts = [f"round {server_round}/{self._num_rounds}"]
        if found := headline(metrics or {}):
            parts.append(f"{visible(found[0], LONGEST_NAME)} {found[1]:.3f}")
        parts.append(f"{100 * kept:.0f} % of parameters")
        parts.append(f"{self._moved / 1e6:.2f} MB so far")
        parts.append(f"{saved / 1e6:.2f} MB saved{ratio}")
        parts.append(f"{duration(left)} left")
        LOGGER.log(INFO, "\t└──> AutoFlip: %s", ", ".join(parts))

    def _read_rows(self) -> None:
        """Take in the ledger's rows that came since, maybe of another process."""
        new = self.ledger.rows[self._rows_read :]
        self._rows_read += len(new)
        for row in node_rows(new):
            self._moved += row["bytes_down"] + row["bytes_up"]
            self._dense += dense_bytes(row, self.dense_message)
        for row in (row for row in new if row["phase"] == "plan"):
            self._plan = row["digest"]
            self._scored |= "importance" in row

    def _log_plan(self, plan: Plan) -> None:
        small, dense = self.cost_of.plan(plan).macs, self.cost_of.dense().macs
        ratio = None if small is None or not dense else 100 * small / dense
        LOGGER.log(
            INFO,
            "\t└──> plan: %d of %d units, %d of %d parameters, %s of MACs",
            int(plan.alive.sum()),
            plan.layout.num_units,
            plan.num_parameters,
            plan.layout.num_parameters,
            "an unknown ratio" if ratio is None else f"{ratio:.1f} %",
        )


def duration(seconds: float) -> str:
    """Write seconds as people say them: ``45s``, ``2m 05s``, ``3h 10m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
