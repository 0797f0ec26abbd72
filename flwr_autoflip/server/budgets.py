"""Nodes of different strength: what each can carry, and the part of a plan that fits.

A node is asked before it is given anything, by a message without values, so that no
node ever gets a model that it cannot carry. Nodes that do not answer, or whose answer
cannot be read, sit the round out and are asked again; so are those whose last reply
failed, since a node that was restarted may have another budget.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from logging import INFO, WARNING, getLogger
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from .. import wire
from ..errors import AutoFlipError, WireError
from ..graph.budget import Budget, parse_budget
from ..graph.layout import Arrays, Layout
from ..graph.plan import Plan, dense_plan
from ..methods.nested import below_floor, cut_plan
from .exchange import Exchange

LOGGER = getLogger("flwr")


@dataclass
class Budgets:
    """Ask nodes what they can carry, and cut plans to it.

    Parameters
    ----------
    exchange : Exchange
    layout : Layout
    rank : callable
        Global dense arrays to scores of units; the lowest go first.
    asks : bool
        False: every node gets the whole plan, and none is asked.
    multiple : int
        Sub-plans keep a multiple of this many units a group.
    known : dict of int to (Budget or None)
        Node id to its budget; None for nodes that carry the dense model.
    """

    exchange: Exchange
    layout: Layout
    rank: Callable[[Arrays], Mapping[str, NDArray[Any]]]
    asks: bool
    multiple: int
    known: dict[int, Budget | None] = field(default_factory=dict)
    _cut_from: Plan | None = None
    _scores: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    _cuts: dict[Budget, Plan | None] = field(default_factory=dict)

    def ask(self, server_round: int, grid: Grid, templates: Iterable[Message]) -> None:
        """Ask nodes that are new, or that failed since they were asked.

        Parameters
        ----------
        server_round : int
            For the ledger.
        grid : Grid
        templates : iterable of Message
            One a node; only their keys and config are used.
        """
        new = [t for t in templates if not self._knows(t.metadata.dst_node_id)]
        if not new:
            return
        orders = wire.Instructions.for_budget(dense_plan(self.layout))
        work = [(template, orders) for template in new]
        messages = self.exchange.requests(server_round, work)
        answers = grid.send_and_receive(messages, timeout=self.exchange.timeout)
        for answer in self.exchange.replies(answers, _read_budget):
            self.known[answer.message.metadata.src_node_id] = answer.made
        told = [self.known.get(t.metadata.dst_node_id) for t in new]
        counts = Counter(str(budget or "none") for budget in told)
        LOGGER.log(INFO, "\t└──> budgets of %d nodes: %s", len(new), dict(counts))

    def _knows(self, node: int) -> bool:
        # What a node holds is forgotten when its reply fails: then ask again.
        return node in self.known and node not in self.exchange.lost

    def able(
        self, server_round: int, grid: Grid, templates: Sequence[Message]
    ) -> list[Message]:
        """Give the messages whose nodes carry the dense model.

        Parameters
        ----------
        server_round : int
        grid : Grid
        templates : sequence of Message
            One a node; those not known yet are asked.

        Returns
        -------
        list of Message
        """
        if not self.asks:
            return list(templates)
        self.ask(server_round, grid, templates)
        nodes = [template.metadata.dst_node_id for template in templates]
        return [
            template
            for template, node in zip(templates, nodes, strict=True)
            if self._knows(node) and self.known[node] is None
        ]

    def share_out(
        self,
        server_round: int,
        grid: Grid,
        templates: Sequence[Message],
        orders: wire.Instructions,
        weights: Arrays,
    ) -> list[tuple[Message, wire.Instructions]]:
        """Give each node what it can carry of a plan.

        Parameters
        ----------
        server_round : int
        grid : Grid
        templates : sequence of Message
            One a node, from the inner strategy; those not known yet are asked.
        orders : Orders
            For nodes that carry the whole plan, which alone are probed.
        weights : mapping of str to ndarray
            Global dense arrays.

        Returns
        -------
        list of (Message, Orders)
            Without nodes that did not answer or cannot carry anything.
        """
        if not self.asks:
            return [(template, orders) for template in templates]
        self.ask(server_round, grid, templates)
        made: dict[Budget | None, wire.Instructions | None] = {None: orders}
        work = []
        for template in templates:
            node = template.metadata.dst_node_id
            if not self._knows(node):
                continue
            budget = self.known[node]
            if budget not in made and budget is not None:
                made[budget] = self._cut(orders, budget, weights)
            if (own := made[budget]) is not None:
                work.append((template, own))
        return work

    def _cut(
        self, orders: wire.Instructions, budget: Budget, weights: Arrays
    ) -> wire.Instructions | None:
        """Cut orders to a budget; None if nothing fits."""
        plan = self._part(orders.plan, budget, weights)
        if plan is None:
            return None
        if plan is orders.plan:
            return replace(orders, budget=str(budget))
        own = wire.Instructions.of(orders.phase, plan, weights, orders.encoding)
        return replace(own, regrow=orders.regrow, budget=str(budget))

    def _part(self, plan: Plan, budget: Budget, weights: Arrays) -> Plan | None:
        # Scores are taken once as long as the plan is the same object, so that its
        # parts travel once, too.
        if self._cut_from is not plan:
            self._cut_from, self._scores, self._cuts = plan, self.rank(weights), {}
        if budget not in self._cuts:
            cost = partial(self.exchange.cost_of.ratio, resource=budget.resource)
            part: Plan | None = None
            try:
                part = cut_plan(plan, self._scores, budget.share, cost, self.multiple)
            except AutoFlipError as error:
                text = "\t> nodes with budget '%s' take no part: %s Raise it."
                LOGGER.log(WARNING, text, budget, error)
            else:
                self._say_if_narrow(plan, part, budget)
            self._cuts[budget] = part
        return self._cuts[budget]

    def _say_if_narrow(self, plan: Plan, part: Plan, budget: Budget) -> None:
        if narrow := [
            name for name in below_floor(part) if name not in below_floor(plan)
        ]:
            text = (
                "\t> nodes with budget '%s' keep less than a tenth of %s: no more fits"
            )
            LOGGER.log(WARNING, text, budget, narrow)


def _read_budget(reply: wire.Reply, orders: wire.Instructions) -> Budget | None:
    try:
        return parse_budget(reply.metadata.get(wire.KEY_BUDGET), whose="its receipt")
    except AutoFlipError as error:
        raise WireError(str(error)) from error
