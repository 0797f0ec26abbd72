"""Budgets: what each node can carry, and the part of a plan that fits.

A node is asked before it is given anything, by a message without values, so that no
node ever gets a model that it cannot carry. Nodes that do not answer, or whose answer
cannot be read, sit the round out and are asked again.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING, getLogger
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ... import wire
from ...errors import AutoFlipError, KeepError, WireError
from ...graph.budget import Resource, parse_budget
from ...graph.layout import Arrays, Layout
from ...graph.plan import Plan, dense_plan
from ...methods.threshold import Kept, floors, keep_even
from .exchange import Exchange

LOGGER = getLogger("flwr")

Scores = Mapping[str, NDArray[Any]]
Known = Mapping[int, str]
"""Node id to its budget, as :func:`.parse_budget` reads it; "" is the dense model."""


# --- Asking ---


def ask_budgets(
    exchange: Exchange,
    layout: Layout,
    server_round: int,
    grid: Grid,
    templates: Sequence[Message],
) -> dict[int, str]:
    """Ask nodes what they can carry; give the budgets of those that could be read.

    Of the templates, one a node, only keys and config are used.
    """
    if not templates:
        return {}
    instructions = wire.Instructions.for_budget(dense_plan(layout))
    messages = exchange.requests(server_round, [(t, instructions) for t in templates])
    replies = grid.send_and_receive(messages, timeout=exchange.timeout)
    told = {
        answer.message.metadata.src_node_id: answer.made
        for answer in exchange.replies(replies, _read_budget)
    }
    counts = Counter(budget or "none" for budget in told.values())
    text = "\t└──> budgets of %d of %d nodes: %s"
    LOGGER.log(INFO, text, len(told), len(templates), dict(counts))
    return told


def _read_budget(reply: wire.Reply, instructions: wire.Instructions) -> str:
    try:
        budget = parse_budget(
            reply.metadata.get(wire.keys.BUDGET), whose="its metadata"
        )
    except AutoFlipError as error:
        raise WireError(str(error)) from error
    return str(budget or "")


# --- Cutting ---


@dataclass
class Parts:
    """The parts of a plan that fit budgets; each is cut once.

    ``scores`` are units' importance, ``(group.size,)`` by group; ``share`` gives a
    plan's share of the dense model's cost in a resource, :meth:`.CostOf.ratio`; parts
    keep a multiple of ``multiple`` units a group.
    """

    plan: Plan
    scores: Scores
    share: Callable[[Plan, Resource], float]
    multiple: int = 1
    _cut: dict[str, Plan | None] = field(default_factory=dict)

    def fit(self, budget: str) -> Plan | None:
        """Give the part that a budget can carry: the plan itself if it fits.

        Of any two parts the larger one holds the smaller one's units. None, with a
        warning in the log, if nothing fits.
        """
        if budget not in self._cut:
            self._cut[budget] = self._fit(budget)
        return self._cut[budget]

    def _fit(self, budget: str) -> Plan | None:
        wanted = parse_budget(budget, whose="a node")
        if wanted is None:
            return self.plan
        resource, most = wanted.resource, wanted.ratio
        try:
            part = cut_plan(
                self.plan,
                self.scores,
                most,
                lambda plan: self.share(plan, resource),
                self.multiple,
            )
        except AutoFlipError as error:
            text = "\t> nodes with budget '%s' take no part: %s Raise it."
            LOGGER.log(WARNING, text, budget, error)
            return None
        before = below_floor(self.plan)
        if narrow := [name for name in below_floor(part) if name not in before]:
            text = (
                "\t> nodes with budget '%s' keep less than a tenth of %s: no more fits"
            )
            LOGGER.log(WARNING, text, budget, narrow)
        return part


def cut_instructions(
    instructions: wire.Instructions,
    weights: Arrays,
    nodes: Sequence[int],
    known: Known,
    parts: Parts,
) -> dict[int, wire.Instructions]:
    """Give each node what it can carry of a round's instructions, in order.

    Nodes that are not known, or that cannot carry anything, are left out. Those that
    carry the whole plan alone are asked for gradients. Nodes with one budget share an
    object.
    """
    made: dict[str, wire.Instructions | None] = {"": instructions}
    for budget in dict.fromkeys(known[node] for node in nodes if node in known):
        plan = parts.fit(budget) if budget else instructions.plan
        if plan is None:
            made[budget] = None
        elif plan is instructions.plan:
            made[budget] = replace(instructions, budget=budget)
        else:
            own = wire.Instructions.of(
                instructions.phase, plan, weights, instructions.encoding
            )
            made[budget] = replace(own, regrow=instructions.regrow, budget=budget)
    own_of = {node: made[known[node]] for node in nodes if node in known}
    return {node: own for node, own in own_of.items() if own is not None}


def cut_plan(
    plan: Plan,
    scores: Scores,
    share: float,
    cost: Callable[[Plan], float],
    multiple: int = 1,
) -> Plan:
    """Keep of a plan as many units as fit, those with the best scores first.

    Every group keeps the same ratio of its ranking, so that cuts are nested, and a
    multiple of ``multiple`` units, fewer rather than more. Pruned single weights stay
    pruned. The plan itself is given if it fits. A group falls below its floor, see
    :func:`.allocate.floors`, only if the plan has it there or nothing else fits.

    ``cost`` gives a plan's share of the dense model's cost, growing with every unit;
    ``share`` in (0, 1] is the largest. Raises ``KeepError`` if even the fewest units
    cost more.
    """
    if cost(plan) <= share:
        return plan

    def cut_to(whole: Plan, least: Mapping[str, int] | None) -> Plan:
        def part(kept: Kept) -> Plan:
            keep = {name: whole.keep[name][choice] for name, choice in kept.items()}
            return Plan(whole.layout, keep, whole.mask)

        ranked = {name: scores[name][kept] for name, kept in whole.keep.items()}
        kept = keep_even(ranked, lambda k: cost(part(k)), share, multiple, least)
        return part(kept)

    cut = cut_to(plan, floors(plan.layout))
    if cost(cut) > share:  # a part of the fewest, so that cuts stay nested
        cut = cut_to(cut, None)
    if (least := cost(cut)) > share:
        raise KeepError(
            f"the fewest units of every group cost {least:.3g} of the dense model, "
            f"which is above {share:g}."
        )
    return cut


def below_floor(plan: Plan) -> list[str]:
    """Name the groups of which a plan keeps fewer units than their floor."""
    least = floors(plan.layout)
    return [name for name, kept in plan.keep.items() if len(kept) < least[name]]
