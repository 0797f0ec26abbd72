"""What a node trained, on its way up: values, or in 16 and 8 bits their change.

A change is small, so that rounding it costs little; and the server, which adds it to
its own weights in full precision, never loses what rounding took from those on their
way down. What 8 bits took from the change stays on the node for the next time.
"""

from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from ..graph.pack import check_values, clear_rounding_inplace, split_values
from .instructions import Instructions
from .keys import RESIDUAL
from .records import as_numpy, records_of, to_arrayrecord
from .request import Request

ROUNDING = 1e-6
"""So far below 0, of the largest, may rounding a sum to 32 bits carry a value."""


def encode_trained(
    request: Request, trained: NDArray[Any], state: RecordDict
) -> NDArray[Any]:
    """Make the array that a node sends up.

    Parameters
    ----------
    request : Request
    trained : ndarray
        ``(reply_plan.num_values,)``, after training.
    state : RecordDict
        ``context.state``; keeps what rounding left, under the names of run and plan.

    Returns
    -------
    ndarray
        For :func:`decode_trained`.
    """
    instructions = request.instructions
    encoding, plan = instructions.reply_encoding, instructions.reply_plan
    if encoding.dtype == "float32":
        return encoding.encode(trained, plan)
    update = trained - instructions.start
    name = (request.run + instructions.digest).hex()
    left = _residual(state, name, update.shape)
    # Rounding leaves less than a hundredth of the largest change. What is larger than
    # this round's is of training that went astray, and would drag the model along.
    if left is not None and _largest(left) > _largest(update):
        left = None
    data, residual = encoding.encode_update(update, left, plan)
    state.pop(RESIDUAL, None)
    if residual is not None:
        state[RESIDUAL] = to_arrayrecord({name: residual})
    return data


def _residual(
    state: RecordDict, name: str, shape: tuple[int, ...]
) -> NDArray[np.float32] | None:
    record = records_of(state, ArrayRecord).get(RESIDUAL, ArrayRecord())
    residual = as_numpy(record[name]) if name in record else None
    return residual if residual is not None and residual.shape == shape else None


def _largest(values: NDArray[Any]) -> float:
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))


def decode_trained(instructions: Instructions, data: NDArray[Any]) -> NDArray[Any]:
    """Read :func:`encode_trained` on the server.

    Parameters
    ----------
    instructions : Instructions
        As the server gave them, with values in full precision.
    data : ndarray

    Returns
    -------
    ndarray
        ``(reply_plan.num_values,)``: what the node has now.

    Raises
    ------
    WireError
        If it cannot be what these instructions asked for.
    """
    encoding, plan = instructions.reply_encoding, instructions.reply_plan
    values = encoding.decode(data, plan)
    if encoding.dtype != "float32":
        values += instructions.start
        for spec, part in split_values(values, plan):
            clear_rounding_inplace(spec, part, ROUNDING)
        check_values(values, plan)  # a sum may be beyond what its parts are
    return values
