"""The node: a client whose model is already small when it gets it."""

import torch
from flwr.app import Context

from flwr_autoflip import AutoFlipClient, client_app
from quickstart.task import Net, load_partition, load_test, test, train

# What nodes can carry, in turn; None is what their --node-config says.
BUDGETS = {
    "none": (None,),
    "node-config": (None,),
    "thirds": ("macs:0.25", "macs:0.5", "macs:1"),
}


class Client(AutoFlipClient):
    """Train and test on this node's two digits."""

    def __init__(self, context: Context) -> None:
        run, node = context.run_config, context.node_config
        budgets = BUDGETS[str(run["budgets"])]
        budget = budgets[int(node["partition-id"]) % len(budgets)]
        super().__init__(Net, context, budget)
        torch.set_num_threads(1)  # virtual nodes share the cores
        self.data = load_partition(
            str(run["dataset"]),
            int(run["seed"]),
            int(node["partition-id"]),
            int(node["num-partitions"]),
        )

    def train(self, model, config):
        """Train in place."""
        run = self.context.run_config
        epochs = int(config.get("local-epochs", run["local-epochs"]))
        torch.manual_seed(
            1000 * int(run["seed"]) + 20 * config["server-round"]
            + int(self.context.node_config["partition-id"])
        )  # fmt: skip
        loss = train(
            model,
            self.data,
            epochs,
            int(run["batch-size"]),
            float(run["learning-rate"]),
        )
        return len(self.data), {"train-loss": loss}

    def test(self, model, config):
        """Evaluate on the global test set's digits of this node's classes."""
        run = self.context.run_config
        loss, top1 = test(model, load_test(str(run["dataset"]), int(run["seed"])))
        return loss, len(self.data), {"top1": top1}


app = client_app(Client)
