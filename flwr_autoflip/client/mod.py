"""One word for an app that exists: ``ClientApp(mods=[autoflip_mod])``.

The app's own code keeps seeing dense arrays, masked; compact values travel. It saves
bandwidth, not compute: for that the app has to build the small model, as
:class:`flwr_autoflip.AutoFlipClient` does. Its ledger rows count dense MACs, and a node
with a budget is refused. Noise on reports, ``autoflip-privacy``, works as there.

Other mods. The first of ``mods=[...]`` is the outermost: it sees what travels; a mod
behind ours sees what the app sees.

===================================  ================================================
order                                what it means
===================================  ================================================
``[autoflip_mod, fixedclipping_mod]``  Right. The app's dense update is clipped (or
(``adaptiveclipping_mod``,           noised), then packed. What the server receives
``LocalDpMod``)                      is a part of it, so its norm keeps the bound,
                                     in 16 and 8 bits as well: rounding never
                                     lengthens an update.
                                     Exploring is clipped like training.
``[fixedclipping_mod, autoflip_mod]``  Works in training with
                                     ``AutoFlip(..., value_dtype="float32")``: what
                                     travels is clipped. Fewer bits cannot be, and
                                     every reply fails with an error that says so.
                                     Exploring sends an update in 16 bits, which is
                                     no weights and must not be changed: the server
                                     refuses it with an error that says so. With
                                     ``AutoFlip(..., exploration_payload="weights")``
                                     exploring works too. A mod around
                                     ``AutoFlipClient`` always stands like this.
``secagg_mod``, ``secaggplus_mod``   In no order: they add up dense models of Flower's
                                     older API.
``arrays_size_mod``,                 Either order: before ours they count what
``message_size_mod``                 travels, behind ours what the app sees.
===================================  ================================================

Flower's clipping mods and ``LocalDpMod`` answer *every evaluation* with an error, with
or without AutoFlip: give them to training alone, ``@app.train(mods=[autoflip_mod,
fixedclipping_mod])`` and ``@app.evaluate(mods=[autoflip_mod])``. They count buffers in
the norm, and leave arrays of no dimension, BatchNorm's counters, unclipped.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from .. import wire
from ..errors import WireError
from ..graph.layout import Layout
from ..graph.pack import expand, pack
from ..wire.privacy import ReportPrivacy
from .client import budget_of, budget_receipt, check_budget, receipt_of, warn_if_unmoved
from .private import make_report, one_release, privacy_of

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
        Its state keeps the plan between rounds, which the app does not see.
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
    content = message.content
    arrays = wire.records_of(content, ArrayRecord)
    configs = wire.records_of(content, ConfigRecord)
    arrays_key, config_key = next(iter(arrays), ""), next(iter(configs), "")
    config = configs.get(config_key, ConfigRecord())
    if not wire.is_ours(config):
        return call_next(message, context)
    values = wire.single_array(arrays[arrays_key])
    request = wire.read_request(values, config, context.state)
    if (budget := budget_of(context)) is not None:
        raise WireError(
            f"this node's budget is '{budget}', but a mod cannot keep the app from "
            "training the dense model; use AutoFlipClient."
        )
    if answering := config.get(wire.KEY_ANSWERING):
        raise WireError(
            f"removed units of {answering!s} still answer in the dense model that a "
            "mod shows the app, as a sigmoid of 0 is .5: name them in the server's "
            "exclude=(...), or use AutoFlipClient."
        )
    numpy = wire.is_numpy_key(arrays_key)
    if request.orders.phase == "budget":
        request.remember(context.state)
        receipt = budget_receipt(request, budget)
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
    with one_release(request, privacy_of(context), context):
        return _answer(message, context, call_next, request, arrays_key, config_key)


def _answer(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    request: wire.Request,
    arrays_key: str,
    config_key: str,
) -> Message:
    """Let the app answer with dense arrays, and make compact values of its own."""
    plan, numpy = request.orders.plan, wire.is_numpy_key(arrays_key)
    privacy = privacy_of(context)
    zeros = {t.name: np.zeros(t.shape, t.dtype) for t in plan.layout.tensors}
    dense = expand(zeros, request.orders.values, plan)
    request.remember(context.state)
    # A NumPyClient's reply has numbers for names; other mods compare them.
    named = {str(i): a for i, a in enumerate(dense.values())} if numpy else dense
    message.content = RecordDict(
        {
            arrays_key: wire.to_arrayrecord(named),
            config_key: ConfigRecord(request.config),
        }
    )
    start = time.perf_counter()
    with _plan_hidden(context), _kind_explained(numpy):
        reply = call_next(message, context)
    if not reply.has_error():
        seconds = time.perf_counter() - start
        name = wire.NUMPY_ARRAY if numpy else wire.VALUES
        _compact_inplace(reply, request, dense, seconds, name, privacy, context.state)
    return reply


@contextmanager
def _plan_hidden(context: Context) -> Iterator[None]:
    """Keep our part of a node's state from an app that reads or replaces it all."""
    ours = (wire.STATE, wire.RESIDUAL, wire.RELEASED)
    held = {key: context.state.pop(key) for key in ours if key in context.state}
    try:
        yield
    finally:
        context.state.update(held)


@contextmanager
def _kind_explained(numpy: bool) -> Iterator[None]:
    """Say what is wrong when the app looks for the other API's records."""
    try:
        yield
    except KeyError as error:
        name = error.args[0] if error.args else ""
        if numpy and name in ("arrays", "config"):
            raise WireError(
                f"the app looks for the record {name!r}, but the server sends a "
                "NumPyClient's; leave client_api='numpy' out of AutoFlip(...)."
            ) from error
        if not numpy and wire.is_numpy_key(name):
            raise WireError(
                "the app is a NumPyClient; say so on the server: "
                "AutoFlip(..., client_api='numpy'). If it is none, a mod behind "
                "autoflip_mod is of Flower's older API: import mods from "
                "flwr.clientapp.mod, not flwr.client.mod."
            ) from error
        raise


def _compact_inplace(
    reply: Message,
    request: wire.Request,
    dense: dict[str, NDArray[Any]],
    seconds: float,
    name: str,
    privacy: ReportPrivacy | None,
    state: RecordDict,
) -> None:
    orders, layout = request.orders, request.orders.plan.layout
    receipt = receipt_of(request, layout.num_parameters, seconds)
    if orders.phase == "evaluate":
        for key in wire.records_of(reply.content, ArrayRecord):
            del reply.content[key]  # nobody reads them
    else:
        records = list(wire.records_of(reply.content, ArrayRecord).items())
        if len(records) != 1:
            raise WireError(f"the app must return one ArrayRecord, got {len(records)}.")
        key, record = records[0]
        trained = _by_name(record, layout)
        if orders.phase == "explore":
            values, sealed = make_report(request, dense, trained, privacy, state)
            receipt |= sealed
        else:
            warn_if_unmoved(dense, trained, request)
            flat = pack(trained, orders.reply_plan)
            values = wire.encode_trained(orders, flat, state)
        reply.content[key] = wire.to_arrayrecord({name: values})
    wire.add_receipt_inplace(reply.content, receipt)


def _by_name(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[Any]]:
    """Name an app's arrays; NumPyClient loses names, then order is the contract."""
    names = [t.name for t in layout.tensors]
    arrays = wire.from_arrayrecord(record)
    if set(arrays) != set(names):
        arrays = dict(zip(names, arrays.values(), strict=False))
    shapes = [arrays[name].shape if name in arrays else None for name in names]
    if len(record) != len(names) or shapes != [t.shape for t in layout.tensors]:
        raise WireError(
            f"the app returned {len(record)} arrays that are not the model's "
            f"{len(names)} tensors in state_dict order; return the whole state_dict, "
            "also layers that this node keeps for itself: it need not load them."
        )
    return arrays
