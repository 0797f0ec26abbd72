"""The nodes: dense state_dicts come and go, nothing knows of pruning."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pytorchexample.task import Net, load_data
from pytorchexample.task import test as test_fn
from pytorchexample.task import train as train_fn

app = ClientApp()


def received(msg: Message, context: Context):
    """Give the model that came, and this node's two data sets."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    node = context.node_config
    batch_size = context.run_config["batch-size"]
    return model, load_data(node["partition-id"], node["num-partitions"], batch_size)


@app.train()
def train(msg: Message, context: Context):
    """Train the model that came."""
    model, (data, _) = received(msg, context)
    epochs, lr = context.run_config["local-epochs"], msg.content["config"]["lr"]
    loss = train_fn(model, data, epochs, lr, torch.device("cpu"))
    metrics = {"train_loss": loss, "num-examples": len(data.dataset)}
    records = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord(metrics),
    }
    return Message(content=RecordDict(records), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the model that came."""
    model, (_, data) = received(msg, context)
    loss, accuracy = test_fn(model, data, torch.device("cpu"))
    metrics = {
        "eval_loss": loss,
        "eval_acc": accuracy,
        "num-examples": len(data.dataset),
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)
