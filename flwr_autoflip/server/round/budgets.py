"""Budgets: what each node can carry, and the part of a plan that fits.

A node is asked before it is given anything, by a message without values, so that no
node ever gets a model that it cannot carry. Nodes that do not answer, or whose answer
cannot be read, sit the round out and are asked again.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from logging import INFO, getLogger

from flwr.app import Message
from flwr.serverapp import Grid

from ... import wire
from ...errors import AutoFlipError, KeepError, WireError
from ...graph.budget import Resource, parse_budget
from ...graph.layout import Arrays, Layout
from ...graph.plan import Plan, dense_plan
from ...methods.base import Scores
from ...methods.threshold import Kept, floors, keep_even
from ...methods.units import log_once
from .exchange import Exchange

LOGGER = getLogger("flwr")

Ratio = Callable[[Plan, Resource], float]
"""What a plan's model takes of a resource, over the dense one's: in (0, 1], growing
with every unit; :meth:`.CostOf.ratio`."""
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


def cut_instructions(
    instructions: wire.Instructions,
    weights: Arrays,
    nodes: Sequence[int],
    known: Known,
    scores: Scores,
    ratio: Ratio,
    multiple: int = 1,
) -> dict[int, wire.Instructions]:
    """Give each node what it can carry of a round's instructions, in ``nodes``' order.

    Nodes that are not known or cannot carry anything are left out. ``weights`` are the
    dense global arrays, ``scores`` units' importance; parts keep a ``multiple`` of
    units a group. Only nodes that carry the whole plan are asked for gradients.
    """
    made: dict[str, wire.Instructions | None] = {"": instructions}
    for budget in {known[node]: None for node in nodes if node in known}:
        plan = part_of(instructions.plan, budget, scores, ratio, multiple)
        if plan is None:
            made[budget] = None
        elif plan is instructions.plan:
            made[budget] = replace(instructions, budget=budget)
        else:
            phase, encoding = instructions.phase, instructions.encoding
            kept = {"regrow": instructions.regrow, "budget": budget}
            made[budget] = wire.Instructions.of(phase, plan, weights, encoding, **kept)
    own_of = {node: made[known[node]] for node in nodes if node in known}
    return {node: own for node, own in own_of.items() if own is not None}


def part_of(
    plan: Plan, budget: str, scores: Scores, ratio: Ratio, multiple: int = 1
) -> Plan | None:
    """Give the part of a plan that a budget can carry: the plan itself if it fits.

    Of any two parts the larger one holds the smaller one's units. None, with a warning
    in the log, if nothing fits.
    """
    wanted = parse_budget(budget, whose="a node")
    if wanted is None:
        return plan

    def cost(part: Plan) -> float:
        return ratio(part, wanted.resource)

    try:
        part = cut_plan(plan, scores, wanted.ratio, cost, multiple)
    except AutoFlipError as error:
        text = f"nodes with budget '{wanted}' take no part: {error} Raise it."
        log_once(plan.layout, text)
        return None
    before = below_floor(plan)
    if narrow := [name for name in below_floor(part) if name not in before]:
        text = f"keep less than a tenth of {narrow}: no more fits"
        log_once(plan.layout, f"nodes with budget '{wanted}' {text}")
    return part


def cut_plan(
    plan: Plan,
    scores: Scores,
    ratio: float,
    cost: Callable[[Plan], float],
    multiple: int = 1,
) -> Plan:
    """Keep of a plan as many units as fit, those with the best scores first.

    Every group keeps the same ratio of its ranking, so that cuts are nested, and a
    multiple of ``multiple`` units, fewer rather than more. Pruned single weights stay
    pruned. The plan itself is given if it fits. A group falls below its floor, see
    :func:`.threshold.floors`, only if the plan has it there or nothing else fits.

    ``cost`` gives a plan's ratio of the dense model's cost, growing with every unit;
    ``ratio`` in (0, 1] is the largest. Raises ``KeepError`` if even the fewest units
    cost more.
    """
    if cost(plan) <= ratio:
        return plan

    def cut_to(whole: Plan, least: Mapping[str, int] | None) -> Plan:
        def part(kept: Kept) -> Plan:
            keep = {name: whole.keep[name][choice] for name, choice in kept.items()}
            return Plan(whole.layout, keep, whole.mask)

        ranked = {name: scores[name][kept] for name, kept in whole.keep.items()}
        kept = keep_even(ranked, lambda k: cost(part(k)), ratio, multiple, least)
        return part(kept)

    cut = cut_to(plan, floors(plan.layout))
    if cost(cut) > ratio:  # a part of the fewest, so that cuts stay nested
        cut = cut_to(cut, None)
    if (least := cost(cut)) > ratio:
        raise KeepError(
            f"the fewest units of every group cost {least:.3g} of the dense model, "
            f"which is above {ratio:g}."
        )
    return cut


def below_floor(plan: Plan) -> list[str]:
    """Name the groups of which a plan keeps fewer units than their floor."""
    least = floors(plan.layout)
    return [name for name, kept in plan.keep.items() if len(kept) < least[name]]
