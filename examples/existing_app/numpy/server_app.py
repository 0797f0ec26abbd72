"""Server of an app with a NumPyClient."""

import torch
from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from digits.client_app import get_weights
from digits.task import Net


def weighted_average(metrics):
    """Average the nodes' accuracies."""
    total = sum(count for count, _ in metrics)
    mean = sum(count * found["accuracy"] for count, found in metrics) / total
    return {"accuracy": mean}


def server_fn(context: Context) -> ServerAppComponents:
    """Say how the rounds are run."""
    run = context.run_config
    torch.manual_seed(0)
    model = Net()
    strategy = FedAvg(
        fraction_fit=float(run["fraction-train"]),
        initial_parameters=ndarrays_to_parameters(get_weights(model)),
        on_fit_config_fn=lambda server_round: {"lr": float(run["learning-rate"])},
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    config = ServerConfig(num_rounds=int(run["num-server-rounds"]))
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
