"""Client of an app with a NumPyClient."""

import torch
from flwr.app import Context
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

from digits.task import Net, load_data, test, train


def get_weights(model: Net):
    """Give the model's arrays."""
    return [value.numpy() for value in model.state_dict().values()]


def set_weights(model: Net, arrays) -> None:
    """Load the model's arrays."""
    tensors = (torch.as_tensor(array) for array in arrays)
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))


class DigitsClient(NumPyClient):
    """Train and test on this node's digits."""

    def __init__(self, context: Context) -> None:
        config = context.node_config
        self.model = Net()
        self.train_loader, self.test_loader = load_data(
            int(config["partition-id"]), int(config["num-partitions"])
        )
        self.epochs = int(context.run_config["local-epochs"])

    def fit(self, parameters, config):
        """Train the global model."""
        set_weights(self.model, parameters)
        loss = train(self.model, self.train_loader, self.epochs, float(config["lr"]))
        count = len(self.train_loader.dataset)
        return get_weights(self.model), count, {"train-loss": loss}

    def evaluate(self, parameters, config):
        """Test the global model."""
        set_weights(self.model, parameters)
        loss, accuracy = test(self.model, self.test_loader)
        return loss, len(self.test_loader.dataset), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    """Make this node's client."""
    return DigitsClient(context).to_client()


app = ClientApp(client_fn)
