"""One word for an app that exists: ``ClientApp(mods=[autoflip_mod])``.

The app's own code keeps seeing dense arrays, masked; compact values travel. It saves
bandwidth, not compute: for that the app has to build the small model, as
:class:`flwr_autoflip.AutoFlipClient` does. Its ledger rows count dense MACs, and a node
with a budget is refused.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from . import wire
from .client import Spent, budget_of, budget_receipt, check_budget, receipt_of
from .core.codec import expand, pack
from .core.errors import WireError
from .core.exploration import encode_report
from .core.layout import Layout

ClientAppCallable = Callable[[Message, Context], Message]


def autoflip_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Let an unchanged dense client take part.

    Parameters
    ----------
    message : Message
        From AutoFlip: values only. Anything else passes through.
    context : Context
    call_next : callable
        The app, or the next mod.

    Returns
    -------
    Message
        The app's reply with compact values instead of its dense arrays.

    Raises
    ------
    WireError
        If the request or the app's reply does not fit the model.
    """
    arrays_key = next(iter(message.content.array_records), "")
    config_key = next(iter(message.content.config_records), "")
    config = message.content.config_records.get(config_key, ConfigRecord())
    if not wire.is_ours(config):
        return call_next(message, context)
    values = wire.single_array(message.content.array_records[arrays_key])
    request = wire.read_request(values, config, context.state)
    if (budget := budget_of(context)) is not None:
        raise WireError(
            f"this node's budget is '{budget}', but a mod cannot keep the app from "
            "training the dense model; use AutoFlipClient."
        )
    if request.orders.phase == "budget":
        receipt = budget_receipt(request, budget)
        numpy = arrays_key.startswith("fitins")
        content = (
            wire.numpy_train_reply(1, receipt)
            if numpy
            else wire.train_reply(values, 1, receipt, message.content)
        )
        return Message(content, reply_to=message)
    check_budget(request, None)
    if request.orders.probe:
        raise WireError(
            "the server asks for gradients, which a mod cannot see; use AutoFlipClient."
        )
    plan = request.orders.plan
    zeros = {t.name: np.zeros(t.shape, t.dtype) for t in plan.layout.tensors}
    dense = expand(zeros, values, plan)
    message.content = RecordDict(
        {
            arrays_key: wire.to_arrayrecord(dense),
            config_key: ConfigRecord(request.config),
        }
    )
    start = time.perf_counter()
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    seconds = time.perf_counter() - start
    _compact_inplace(reply, request, dense, seconds)
    return reply


def _compact_inplace(
    reply: Message,
    request: wire.Request,
    dense: dict[str, NDArray[Any]],
    seconds: float,
) -> None:
    orders, layout = request.orders, request.orders.plan.layout
    examples = _num_examples(reply.content)
    training = orders.phase != "evaluate"
    spent = Spent(examples * training, examples * (not training), seconds)
    receipt = receipt_of(request, layout.num_parameters, spent)
    if training:
        records = list(reply.content.array_records.items())
        if len(records) != 1:
            raise WireError(f"the app must return one ArrayRecord, got {len(records)}.")
        key, record = records[0]
        trained = _by_name(record, layout)
        if orders.phase == "explore":
            values, receipt[wire.KEY_SCALE] = encode_report(
                dense, trained, layout, orders.payload
            )
        else:
            values = pack(trained, orders.reply_plan, orders.dtype)
        reply.content[key] = ArrayRecord({wire.VALUES: Array(values)})
    place = next(
        (k for k in reply.content.config_records if k.endswith("res.metrics")),
        wire.RECEIPT,
    )
    own = reply.content.config_records.get(place, ConfigRecord())
    reply.content[place] = ConfigRecord({**own, **receipt})


def _by_name(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[Any]]:
    """Name an app's arrays; NumPyClient loses names, so order is the contract."""
    arrays = [array.numpy() for array in record.values()]
    if [a.shape for a in arrays] != [t.shape for t in layout.tensors]:
        raise WireError(
            f"the app returned {len(arrays)} arrays that are not the model's "
            f"{len(layout.tensors)} tensors in state_dict order; return the whole "
            "state_dict."
        )
    return dict(zip((t.name for t in layout.tensors), arrays, strict=True))


def _num_examples(content: RecordDict) -> int:
    for record in content.metric_records.values():
        for key in (wire.NUM_EXAMPLES, "num_examples"):
            count = record.get(key)
            if isinstance(count, (int, float)):
                return int(count)
    return 0
