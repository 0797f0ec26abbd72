"""What a node trained, on its way up: values, or in 16 and 8 bits their change.

A change is small, so that rounding it costs little; and the server, which adds it to
its own weights in full precision, never loses what rounding took from those on their
way down. What 8 bits took from the change stays on the node for the next time.
"""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from ..graph.pack import (
    check_values,
    clear_rounding_inplace,
    pack_small,
    split_values,
    unpack_small,
)
from .keys import RESIDUAL, VALUES
from .records import as_numpy, records_of, to_arrayrecord
from .request import Orders

ROUNDING = 1e-6
"""So far below 0, of the largest, may rounding a sum to 32 bits carry a value."""


def starting_values(orders: Orders) -> NDArray[Any]:
    """Give what training starts from, in the reply's coordinates.

    Returns
    -------
    ndarray
        ``(orders.reply_plan.num_values,)``; 0 for weights that may come back.
    """
    if orders.reply_plan is orders.plan:
        return orders.values
    return pack_small(unpack_small(orders.values, orders.plan), orders.reply_plan)


def encode_trained(
    orders: Orders, trained: NDArray[Any], state: RecordDict
) -> NDArray[Any]:
    """Make the array that a node sends up.

    Parameters
    ----------
    orders : Orders
        As the node read them.
    trained : ndarray
        ``(orders.reply_plan.num_values,)``, after training.
    state : RecordDict
        ``context.state``; keeps what rounding left.

    Returns
    -------
    ndarray
        For :func:`decode_trained`.
    """
    encoding = orders.reply_encoding
    if encoding.dtype == "float32":
        return encoding.encode(trained, orders.reply_plan)
    update = trained - starting_values(orders)
    left = _residual(state, update.shape)
    # Rounding leaves less than a hundredth of the largest change. What is larger than
    # this round's is of training that went astray, and would drag the model along.
    if left is not None and _largest(left) > _largest(update):
        left = None
    data, residual = encoding.encode_update(update, left, orders.reply_plan)
    if residual is not None:
        state[RESIDUAL] = to_arrayrecord({VALUES: residual})
    return data


def _residual(state: RecordDict, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    records = records_of(state, ArrayRecord)
    if RESIDUAL not in records:
        return None
    residual = as_numpy(records[RESIDUAL][VALUES])
    return residual if residual.shape == shape else None


def _largest(values: NDArray[Any]) -> float:
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def decode_trained(orders: Orders, data: NDArray[Any]) -> NDArray[Any]:
    """Read :func:`encode_trained` on the server.

    Parameters
    ----------
    orders : Orders
        As the server gave them, with values in full precision.
    data : ndarray

    Returns
    -------
    ndarray
        ``(orders.reply_plan.num_values,)``: what the node has now.

    Raises
    ------
    WireError
        If it cannot be what these orders asked for.
    """
    values = orders.reply_encoding.decode(data, orders.reply_plan)
    if orders.reply_encoding.dtype != "float32":
        start = starting_values(orders)
        values = values + start
        for spec, part in split_values(values, orders.reply_plan):
            clear_rounding_inplace(spec, part, ROUNDING)
        check_values(
            values, orders.reply_plan
        )  # a sum may be beyond what its parts are
    return values
