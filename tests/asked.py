"""A server of one phase: sends every node of an app the same, and reads the answers."""

from typing import Any

import numpy as np
from federation import EXAMPLE, TinyNet, make_model
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from grid import Fault, LocalGrid

from flwr_autoflip import wire
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.ledger import Ledger
from flwr_autoflip.server.round.exchange import Answer, Exchange
from flwr_autoflip.wire.encoding import Encoding

LAYOUT = trace(TinyNet(), EXAMPLE)
DENSE = dense_plan(LAYOUT)
SMALL = Plan(LAYOUT, {"conv": np.array([0, 2, 3]), "fc1": np.arange(1, 7)})
_mask = np.arange(8 * 96).reshape(8, 96) % 3 > 0
MASKED = Plan(LAYOUT, SMALL.keep, {"fc1.weight": _mask})
COST_OF = CostOf(TinyNet(), EXAMPLE)
WEIGHTS = arrays_of(make_model())


def template(**config: Any) -> RecordDict:
    """What an inner strategy sends."""
    return RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord(config)})


def node(node_id: int = 100, **config: Any) -> Context:
    """A node that nothing was asked of yet."""
    config = {"partition-id": node_id - 100, "num-partitions": 3} | config
    return Context(1, node_id, config, RecordDict(), {})


class Asked:
    """Nodes 100, 101, ... of an app, and an exchange with them.

    Parameters
    ----------
    app : ClientApp
    num_nodes : int (default: 3)
    fault : callable, optional
        As of :class:`grid.LocalGrid`.
    **config
        Of every node.
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int = 3,
        fault: Fault | None = None,
        **config: Any,
    ) -> None:
        self.grid = LocalGrid(app, num_nodes, fault)
        for context in self.grid.contexts.values():
            context.node_config.update(config)
        self.exchange = Exchange(Ledger(), COST_OF, wire.keys.NUM_EXAMPLES)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The ledger's."""
        return list(self.exchange.ledger.rows)

    @property
    def reasons(self) -> list[str]:
        """Why replies were lost, in the order of the rows."""
        return [row["reason"] for row in self.rows if row["status"] != "ok"]

    def ask(
        self,
        phase: wire.keys.Phase = "train",
        plan: Plan = SMALL,
        content: RecordDict | None = None,
        dtype: str = "float32",
        weights: Any = WEIGHTS,
        **rest: Any,
    ) -> list[Answer[wire.Instructions]]:
        """Ask every node; give the valid answers."""
        encoding = Encoding(dtype)
        instructions = wire.Instructions.of(phase, plan, weights, encoding, **rest)
        if phase == "budget":
            instructions = wire.Instructions.for_budget(plan)
        kind, content = wire.keys.message_type(phase), content or template()
        work = [
            (Message(content, dst_node_id=n, message_type=kind), instructions)
            for n in self.grid.get_node_ids()
        ]
        messages = self.exchange.requests(1, work)
        replies = self.grid.send_and_receive(messages)
        return self.exchange.replies(replies, lambda reply, asked: asked)
