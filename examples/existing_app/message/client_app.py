"""Client of a message-API app."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits.task import Net, load_data
from digits.task import test as test_model
from digits.task import train as train_model

app = ClientApp()


def received_model(message: Message) -> Net:
    """Load the global model."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def own_data(context: Context):
    """Load this node's digits."""
    config = context.node_config
    return load_data(int(config["partition-id"]), int(config["num-partitions"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this node's digits."""
    model = received_model(message)
    loader, _ = own_data(context)
    loss = train_model(
        model,
        loader,
        int(context.run_config["local-epochs"]),
        float(message.content["config"]["lr"]),
    )
    metrics = {"train-loss": loss, "num-examples": len(loader.dataset)}
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on this node's held-out digits."""
    _, loader = own_data(context)
    loss, accuracy = test_model(received_model(message), loader)
    metrics = {"loss": loss, "accuracy": accuracy, "num-examples": len(loader.dataset)}
    content = {"metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)
