"""Exploration: the rounds in which nodes report how far their weights move."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import ERROR, INFO, getLogger
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .. import wire
from ..errors import AutoFlipError, WireError, visible
from ..graph.layout import Arrays, Layout
from ..graph.pack import expand, pack
from ..graph.plan import dense_plan
from ..methods import AutoFlipPolicy, Policy
from ..wire.encoding import Encoding
from ..wire.exploration import PRIVATE, WITH_MODEL, check_report, decode_report
from ..wire.privacy import ReportPrivacy, parse_privacy
from .aggregate import cast_to_layout
from .budgets import Parts, ask_budgets, cut_orders
from .exchange import Answer, Exchange
from .hosts import (
    find_attribute,
    update_inplace,
    wait_for_nodes,
    weight_key,
    with_config,
)
from .options import Options
from .outliers import Change, Start, refuse_outliers, shares_of_buffers
from .store import ReportStore

LOGGER = getLogger("flwr")
EPOCHS_KEY = "local-epochs"


@dataclass
class Budgets:
    """Ask nodes what they can carry, and cut orders to it.

    Parameters
    ----------
    exchange : Exchange
    layout : Layout
    rank : callable
        Global dense arrays to scores of units.
    asks : bool
        False: every node gets the whole plan, and none is asked.
    multiple : int
    """

    exchange: Exchange
    layout: Layout
    rank: Callable[[Arrays], Mapping[str, Any]]
    asks: bool
    multiple: int
    known: dict[int, str] = field(default_factory=dict)
    parts: Parts | None = None

    def ask(self, server_round: int, grid: Grid, templates: Sequence[Message]) -> None:
        """Ask nodes that are new, or that failed since they were asked."""
        held = self.exchange.held
        self.known = {n: text for n, text in self.known.items() if n in held}
        new = [t for t in templates if t.metadata.dst_node_id not in self.known]
        self.known |= ask_budgets(self.exchange, self.layout, server_round, grid, new)

    def able(
        self, server_round: int, grid: Grid, templates: Sequence[Message]
    ) -> list[Message]:
        """Give the messages whose nodes carry the dense model."""
        if not self.asks:
            return list(templates)
        self.ask(server_round, grid, templates)
        known = self.known
        return [t for t in templates if known.get(t.metadata.dst_node_id) == ""]

    def share_out(
        self,
        server_round: int,
        grid: Grid,
        templates: Sequence[Message],
        orders: wire.Orders,
        weights: Arrays,
    ) -> list[tuple[Message, wire.Orders]]:
        """Give each node what it can carry of a plan."""
        if not self.asks:
            return [(template, orders) for template in templates]
        self.ask(server_round, grid, templates)
        if self.parts is None or self.parts.plan is not orders.plan:
            share, scores = self.exchange.cost_of.ratio, self.rank(weights)
            self.parts = Parts(orders.plan, scores, share, self.multiple)
        nodes = [template.metadata.dst_node_id for template in templates]
        own = cut_orders(orders, weights, nodes, self.known, self.parts)
        pairs = zip(templates, nodes, strict=True)
        return [(template, own[node]) for template, node in pairs if node in own]


@dataclass
class Explorer:
    """Ask nodes to explore, and keep their reports.

    Parameters
    ----------
    inner : Strategy
        Samples explorers, and aggregates them for a warm start.
    exchange : Exchange
    budgets : Budgets
        Only nodes that carry the dense model explore.
    layout : Layout
    options : Options
        Complete.
    encoding : Encoding
        Of values on the way down.
    reports : ReportStore
        Node id to deviations, as they come.
    """

    inner: Strategy
    exchange: Exchange
    budgets: Budgets
    layout: Layout
    options: Options
    encoding: Encoding
    reports: ReportStore

    def first(
        self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord, policy: Policy
    ) -> ArrayRecord:
        """Explore before round 1.

        Parameters
        ----------
        grid : Grid
        arrays : ArrayRecord
            Dense initial arrays.
        config : ConfigRecord
            The app's ``train_config``.
        policy : Policy

        Returns
        -------
        ArrayRecord
            What the rounds start from: the aggregated update with a warm start.

        Raises
        ------
        AutoFlipError
            If there are too few nodes or explorers, or none gave a valid report.
        """
        minimum = int(find_attribute(self.inner, "min_available_nodes", 1))
        wait_for_nodes(grid, minimum, self.exchange.timeout)
        round_templates = list(self.inner.configure_train(0, arrays, config, grid))
        templates = self._choose(grid, round_templates, policy)
        if self.budgets.asks:
            templates = round_templates = self._replace_weak(grid, templates)
        if isinstance(policy, AutoFlipPolicy):
            deciding = round_templates if policy.per_round else templates
            policy.check_explorers(len(deciding))
        LOGGER.log(INFO, "[EXPLORATION on %s nodes]", len(templates))
        explorers = self.visit(0, grid, templates, arrays)
        if not explorers:
            reasons = self.exchange.ledger.reasons("budget", "explore")
            reasons += [self.reports.fault] if self.reports.fault else []
            raise AutoFlipError(
                f"none of {len(templates)} explorers gave a valid report: "
                f"{'; '.join(reasons[:3])}{_way_out(reasons)}"
            )
        if not self.options["warm_start"]:
            return arrays
        try:
            aggregated, _ = self.inner.aggregate_train(0, explorers)
        except Exception as error:  # another's code: it costs the warm start alone
            fault = visible(f"{type(error).__name__}: {error}")
            LOGGER.log(ERROR, "\t> no warm start, aggregate_train raised %s", fault)
            return arrays
        if aggregated is None:
            return arrays
        dense = cast_to_layout(wire.from_arrayrecord(aggregated), self.layout)
        update_inplace(aggregated, dense)
        return aggregated

    def _choose(
        self, grid: Grid, templates: list[Message], policy: Policy
    ) -> list[Message]:
        """Choose explorers: those of an ordinary round, or a share of all nodes."""
        fraction = self.options["exploration_fraction"]
        if policy.max_explorers is not None:
            return templates[: policy.max_explorers]
        if fraction == "round" or not templates:
            return templates
        nodes = sorted(grid.get_node_ids())
        chosen = random.sample(nodes, max(1, round(float(fraction) * len(nodes))))
        content = templates[0].content
        return [Message(content, dst_node_id=n, message_type="train") for n in chosen]

    def _replace_weak(self, grid: Grid, templates: list[Message]) -> list[Message]:
        """Let others explore for nodes that cannot carry the dense model.

        Raises
        ------
        AutoFlipError
            If no node can.
        """
        if not templates:
            return templates
        content = templates[0].content
        everyone = [
            Message(content, dst_node_id=node, message_type="train")
            for node in sorted(grid.get_node_ids())
        ]
        able = {
            template.metadata.dst_node_id: template
            for template in self.budgets.able(0, grid, everyone)
        }
        if not able:
            raise AutoFlipError(
                f"none of {len(everyone)} nodes can carry the dense model, so none can "
                "explore; use policy='random' or 'l1', which need no exploration."
            )
        nodes = [template.metadata.dst_node_id for template in templates]
        chosen = [node for node in nodes if node in able]
        others = [node for node in able if node not in chosen]
        missing = min(len(others), len(nodes) - len(chosen))
        return [able[node] for node in chosen + random.sample(others, missing)]

    def visit(
        self,
        server_round: int,
        grid: Grid,
        templates: list[Message],
        arrays: ArrayRecord,
    ) -> list[Message]:
        """Let some nodes explore now; a late node does so when first sampled.

        Parameters
        ----------
        server_round : int
            For the ledger.
        grid : Grid
        templates : list of Message
            One a node, from the inner strategy.
        arrays : ArrayRecord
            Dense global arrays.

        Returns
        -------
        list of Message
            Valid replies, ready for the inner strategy's ``aggregate_train``.
        """
        plan, weights = dense_plan(self.layout), wire.from_arrayrecord(arrays)
        payload = self.options["exploration_payload"]
        orders = wire.Orders.of(
            "explore", plan, weights, self.encoding, payload=payload
        )
        if payload == "weights":  # compared with what the node really started from
            received = self.encoding.decode(orders.encoded, plan)
            weights = expand(weights, received, plan)
        epochs = self.options["exploration_epochs"]
        if epochs is not None:
            templates = [with_config(t, {EPOCHS_KEY: epochs}) for t in templates]
        work = [(template, orders) for template in templates]
        messages = self.exchange.requests(server_round, work)
        answers = grid.send_and_receive(messages, timeout=self.exchange.timeout)

        start, warm = Start(pack(weights, plan), plan), server_round == 0

        def check(reply: wire.Reply, orders: wire.Orders) -> Change | None:
            report = reply.values, reply.receipt.get(wire.KEY_SCALE), self.layout
            norm = check_report(*report, payload, weights)
            if self._noise_of(reply):
                return None  # it has no scale
            examples = reply.receipt.get(wire.KEY_EXAMPLES) or reply.num_examples
            if not (warm and payload in WITH_MODEL):
                return start.measure_norm(norm, examples)
            _, final = decode_report(*report, payload, weights)
            values = pack(final or {}, plan)
            return start.measure(values, examples)

        valid = self.exchange.replies(answers, check, self._refuse_too_far)
        del answers
        noises = Counter(self._noise_of(answer.reply) for answer in valid)
        for noise in filter(None, noises):
            text = "\t> %s of %s reports were noised by their nodes, who say: %s"
            LOGGER.log(INFO, text, noises[noise], len(valid), noise)
        unknown = Change(0.0, 0.0)  # noised reports hold no buffers
        shares = shares_of_buffers([answer.made or unknown for answer in valid])
        explorers = []
        while valid:  # one node's arrays at a time, whatever their number
            answer = valid.pop(0)
            if self._keep(answer, weights, warm, shares.pop(0)):
                explorers.append(answer.message)
        return explorers

    def visit_new(
        self,
        server_round: int,
        grid: Grid,
        templates: list[Message],
        arrays: ArrayRecord,
    ) -> None:
        """Let nodes explore that never did, and can; see :meth:`visit`."""
        new = [t for t in templates if t.metadata.dst_node_id not in self.reports]
        if able := self.budgets.able(server_round, grid, new):
            self.visit(server_round, grid, able, arrays)

    def _noise_of(self, reply: wire.Reply) -> ReportPrivacy | None:
        """Read how private a node says its report is; there is no way to check it.

        Raises
        ------
        WireError
            If that cannot be read, is not of this payload, or reports are combined at
            their own scale.
        """
        try:
            privacy = parse_privacy(reply.receipt.get(wire.KEY_PRIVACY), whose="report")
        except AutoFlipError as error:
            raise WireError(str(error)) from error
        payload = self.options["exploration_payload"]
        if privacy is not None and payload not in PRIVATE:  # it may be in the model
            raise WireError(f"report: {payload!r} cannot be noised as this one says.")
        if privacy is not None and self.options["client_scale"] == "raw":
            raise WireError(
                "report: noised ones have no scale of their own; leave "
                "client_scale='raw' out."
            )
        return privacy

    def _refuse_too_far(self, changes: list[Change | None]) -> dict[int, str]:
        """Say whose report moved farther than exploring does: place to reason."""
        if self.options["client_scale"] == "raw":
            return {}
        return refuse_outliers(changes, "report", "client_scale='raw' takes any.")

    def _keep(
        self,
        answer: Answer[Change | None],
        weights: Arrays,
        warm: bool,
        shares: Mapping[str, float],
    ) -> bool:
        """Keep a report; with ``warm`` leave the explorer's model in its message.

        Of changes of buffers that went too far ``shares`` stay.
        """
        reply, payload = answer.reply, self.options["exploration_payload"]
        scale = reply.receipt.get(wire.KEY_SCALE)
        report, final = decode_report(
            reply.values, scale, self.layout, payload, weights
        )
        if not warm:
            final = None
        if final is not None:
            for name, share in shares.items():
                held = weights[name] + share * (final[name] - weights[name])
                final[name] = np.asarray(held, weights[name].dtype)
        if not self.reports.add(answer.message.metadata.src_node_id, report):
            return False
        record = None if final is None else wire.to_arrayrecord(final)
        wire.inner_reply(answer.message, record, reply, weight_key(self.inner))
        return True


def _way_out(reasons: list[str]) -> str:
    """Say what to do when a mod stumbles over a report, which has its own length."""
    return f" {wire.MOD_ORDER}" if any("broadcast" in r for r in reasons) else ""
