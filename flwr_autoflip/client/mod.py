"""One word for an app that exists: ``ClientApp(mods=[autoflip_mod])``."""

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
from . import answer

ClientAppCallable = Callable[[Message, Context], Message]
NUMPY = "numpy"
"""In our record of ``context.state``: the app is a NumPyClient."""


def autoflip_mod(
    message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    """Let an unchanged dense client take part.

    The app's own code keeps seeing dense arrays, masked; compact values travel. It
    saves bandwidth, not compute: for that the app has to build the small model, as
    :class:`flwr_autoflip.AutoFlipClient` does. Its ledger rows count dense MACs, and a
    node with a budget is refused. Noise on reports, ``autoflip-privacy``, works as
    there.

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

    Notes
    -----
    The first of ``mods=[...]`` is the outermost. Put Flower's clipping and noising mods
    behind this one: they then see the app's dense update, of which the server receives
    a part, so that its norm keeps the bound; rounding never lengthens an update. Before
    this one, or around ``AutoFlipClient``, they clip what travels, which works in
    training with ``value_dtype="float32"`` alone. Secure aggregation works in no order.

    Flower's clipping mods and ``LocalDpMod`` answer *every evaluation* with an error,
    with or without AutoFlip: give them to training alone, ``@app.train(mods=[...])``.
    They count buffers in the norm, and leave arrays of no dimension, BatchNorm's
    counters, unclipped.
    """
    if not wire.is_ours(message.content):
        return call_next(message, context)
    request = wire.read_request(message.content)
    if (budget := answer.budget_of(context)) is not None:
        raise WireError(
            f"this node's budget is '{budget}', but a mod cannot keep the app from "
            "training the dense model; use AutoFlipClient."
        )
    if request.answering:
        raise WireError(
            f"pruned units of {request.answering} still answer in the dense model that "
            "a mod shows the app, as a sigmoid of 0 is .5: name them in the server's "
            "ignored_layers=(...), or use AutoFlipClient."
        )
    if request.instructions.phase == "budget":
        return Message(answer.budget_reply(request, budget), reply_to=message)
    answer.check_budget(request, None)
    if request.instructions.payload == "gradients":
        raise WireError(
            "the server asks for gradients, which a mod cannot see; use AutoFlipClient."
        )
    privacy = answer.privacy_of(context)
    with answer.one_release(request, privacy, context):
        plan = request.instructions.plan
        zeros = {t.name: np.zeros(t.shape, t.dtype) for t in plan.layout.tensors}
        dense = expand(zeros, request.instructions.values, plan)
        start = time.perf_counter()
        reply = _call(message, context, call_next, request, dense)
        seconds = time.perf_counter() - start
        if not reply.has_error():
            _compact_inplace(reply, request, dense, seconds, privacy, context.state)
        return reply


def _call(
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    request: wire.Request,
    dense: dict[str, NDArray[Any]],
) -> Message:
    """Let the app answer; find out which of Flower's APIs it speaks.

    Whether an app is a NumPyClient is seen only by what it does: Flower's adapter looks
    for its own records before the client does any work.
    """

    def show(names: tuple[str, str], arrays: dict[str, NDArray[Any]]) -> Message:
        records = wire.to_arrayrecord(arrays), ConfigRecord(request.config)
        message.content = RecordDict(dict(zip(names, records, strict=True)))
        with _state_hidden(context):
            return call_next(message, context)

    phase = request.instructions.phase
    if NUMPY not in context.state.get(wire.keys.STATE, ()):
        try:
            return show(request.names, dense)
        except KeyError as error:
            if error.args[:1] != wire.keys.numpy_names(phase)[:1]:
                raise
        context.state[wire.keys.STATE] = ConfigRecord({NUMPY: True})
    try:  # a NumPyClient's reply has numbers for names; other mods compare them
        return show(
            wire.keys.numpy_names(phase),
            {str(i): a for i, a in enumerate(dense.values())},
        )
    except KeyError as error:
        if error.args and error.args[0] in request.names:
            raise WireError(
                f"the app looks for a record {error.args[0]}, and a mod behind "
                "autoflip_mod for a NumPyClient's: it is of Flower's legacy API; "
                "import mods from flwr.clientapp.mod, not flwr.client.mod."
            ) from error
        raise


@contextmanager
def _state_hidden(context: Context) -> Iterator[None]:
    """Keep our part of a node's state from an app that reads or replaces it all."""
    ours = (wire.keys.STATE, wire.keys.RESIDUAL, wire.keys.RELEASED)
    hidden = {key: context.state.pop(key) for key in ours if key in context.state}
    try:
        yield
    finally:
        context.state.update(hidden)


def _compact_inplace(
    reply: Message,
    request: wire.Request,
    dense: dict[str, NDArray[Any]],
    seconds: float,
    privacy: ReportPrivacy | None,
    state: RecordDict,
) -> None:
    """Put compact values and metadata into the app's reply."""
    layout = request.instructions.plan.layout
    records = wire.records_of(reply.content, ArrayRecord)
    metadata = answer.metadata_of(request, layout.num_parameters, seconds)
    if request.instructions.phase == "evaluate":
        for key in records:
            del reply.content[key]  # nobody reads them
    elif len(records) != 1:
        raise WireError(f"the app must return one ArrayRecord, got {len(records)}.")
    else:
        ((key, record),) = records.items()
        trained = _by_name(record, layout)
        answer.warn_if_unmoved(request, dense, trained)
        values, said = answer.answer(request, dense, trained, pack, privacy, state)
        reply.content[key] = wire.to_arrayrecord({wire.keys.ARRAY: values})
        metadata |= said
    wire.add_metadata_inplace(reply.content, metadata)


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
