"""Exploration: the rounds in which nodes report how far their weights move."""

import random
from collections import Counter
from dataclasses import dataclass
from logging import INFO, getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .. import wire
from ..errors import AutoFlipError, WireError
from ..graph.layout import Layout
from ..graph.pack import pack
from ..graph.plan import dense_plan
from ..methods import AutoFlipPolicy, Policy
from ..wire.encoding import Encoding
from ..wire.privacy import ReportPrivacy, parse_privacy
from .budgets import Budgets
from .drift import (
    WEIGHTS,
    Drift,
    drift_of_norm,
    find_too_far,
    units_of,
)
from .exchange import Answer, Exchange
from .hosts import (
    find_attribute,
    wait_for_nodes,
    weight_key,
    with_config,
)
from .options import Options
from .store import ReportStore

LOGGER = getLogger("flwr")
EPOCHS_KEY = "local-epochs"


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
        return arrays

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
        payload = "units" if payload == "units" else "deviations"
        orders = wire.Instructions.of(
            "explore", plan, weights, self.encoding, payload=payload
        )
        epochs = self.options["exploration_epochs"]
        if epochs is not None:
            templates = [with_config(t, {EPOCHS_KEY: epochs}) for t in templates]
        work = [(template, orders) for template in templates]
        messages = self.exchange.requests(server_round, work)
        answers = grid.send_and_receive(messages, timeout=self.exchange.timeout)

        units = units_of(pack(weights, plan), plan)

        def check(reply: wire.Reply, orders: wire.Instructions) -> Drift | None:
            if self._noise_of(reply):
                return None  # it has no scale
            examples = reply.metadata.get(wire.KEY_EXAMPLES) or reply.num_examples
            return drift_of_norm(reply.norm, units, plan, examples)

        valid = self.exchange.replies(answers, check, self._refuse_too_far)
        del answers
        noises = Counter(self._noise_of(answer.reply) for answer in valid)
        for noise in filter(None, noises):
            text = "\t> %s of %s reports were noised by their nodes, who say: %s"
            LOGGER.log(INFO, text, noises[noise], len(valid), noise)
        explorers = []
        while valid:  # one node's arrays at a time, whatever their number
            answer = valid.pop(0)
            if self._keep(answer):
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
            privacy = parse_privacy(
                reply.metadata.get(wire.KEY_PRIVACY), whose="report"
            )
        except AutoFlipError as error:
            raise WireError(str(error)) from error
        payload = self.options["exploration_payload"]
        if privacy is not None and payload != "units":  # it may be in the model
            raise WireError(f"report: {payload!r} cannot be noised as this one says.")
        if privacy is not None and self.options["client_scale"] == "raw":
            raise WireError(
                "report: noised ones have no scale of their own; leave "
                "client_scale='raw' out."
            )
        return privacy

    def _refuse_too_far(self, drifts: list[Drift | None]) -> dict[int, str]:
        """Say whose report moved farther than exploring does: place to reason."""
        if self.options["client_scale"] == "raw":
            return {}
        known = {i: drift for i, drift in enumerate(drifts) if drift is not None}
        places, moved = list(known), list(known.values())
        return {
            places[i]: f"report: it moved by {far.moved:.3g} times the weights' size, "
            f"explorers' median is {far.median:.3g}; up to {far.limit:.3g} is taken "
            "here. client_scale='raw' takes any."
            for i, found in find_too_far(moved).items()
            for far in found
            if far.name == WEIGHTS
        }

    def _keep(self, answer: Answer[Drift | None]) -> bool:
        """Keep a report."""
        report = wire.report_of(answer.reply, answer.instructions)
        if not self.reports.add(answer.message.metadata.src_node_id, report):
            return False
        wire.inner_reply(answer.message, None, answer.reply, weight_key(self.inner))
        return True


def _way_out(reasons: list[str]) -> str:
    """Say what to do when a mod stumbles over a report, which has its own length."""
    return f" {wire.MOD_ORDER}" if any("broadcast" in r for r in reasons) else ""
