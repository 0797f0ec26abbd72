"""The node; it also tells which part of the data it has."""

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from examples.paper.federation import make_client_app
from examples.paper.flower import PARTITION

app = make_client_app()
torch.set_num_threads(1)  # virtual nodes share the cores


@app.query()
def partition(message: Message, context: Context) -> Message:
    """Answer with the partition id."""
    config = ConfigRecord({PARTITION: int(context.node_config[PARTITION])})
    return Message(RecordDict({"node": config}), reply_to=message)
