"""A node's report on its way out: with noise, where the node wants that.

The node decides, since it must not have to trust the server with its data.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict
from numpy.typing import NDArray

from .. import wire
from ..errors import WireError
from ..graph.layout import Arrays
from ..wire.exploration import PRIVATE, encode_report
from ..wire.privacy import ReportPrivacy, parse_privacy


def privacy_of(context: Context, given: str | None = None) -> ReportPrivacy | None:
    """Read a node's privacy: the one given, or its ``--node-config``'s."""
    value = context.node_config.get(wire.KEY_PRIVACY) if given is None else given
    return parse_privacy(value, whose=f"node {context.node_id}")


_LOCK = Lock()
_EXPLORING: set[tuple[int, int]] = set()
"""Run and node of every noised report that is being made in this process."""


@contextmanager
def one_release(
    request: wire.Request, privacy: ReportPrivacy | None, context: Context
) -> Iterator[None]:
    """Refuse to explore, before any work, where the report could not be private.

    Inside, no other request of this run makes this node explore. That holds within a
    process; of two processes that answer at once, each with the node's state as it was
    before either, neither can see the other.

    Raises
    ------
    WireError
        If the server asks for a report that says more than sizes, or for a second one:
        noise protects one release, and two of them together tell more.
    """
    if request.orders.phase != "explore" or privacy is None:
        yield
        return
    place = (context.run_id, context.node_id)
    with _LOCK:
        _check_release(request, privacy, context.state)
        if place in _EXPLORING:
            raise WireError(
                f"this node's noised report ({privacy}) is being made for another "
                "request, and a second one would cost its privacy again."
            )
        _EXPLORING.add(place)
    try:
        yield
    finally:
        _EXPLORING.discard(place)


def _check_release(
    request: wire.Request, privacy: ReportPrivacy, state: RecordDict
) -> None:
    orders = request.orders
    if orders.payload not in PRIVATE:
        raise WireError(
            f"this node's reports are noised ({privacy}), but the server asks for "
            f"{orders.payload!r}; set exploration_payload='units' and warm_start=False "
            "in its AutoFlip."
        )
    if wire.RELEASED in state.config_records:
        raise WireError(
            f"this node's noised report ({privacy}) is out already, and a second one "
            "would cost its privacy again."
        )


def make_report(
    request: wire.Request,
    initial: Arrays,
    final: Arrays,
    privacy: ReportPrivacy | None,
    state: RecordDict,
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Make an explorer's report, and its part of the receipt.

    Parameters
    ----------
    request : Request
        Inside :func:`one_release`.
    initial, final : mapping of str to ndarray
        Dense arrays before and after exploring.
    privacy : ReportPrivacy or None
    state : RecordDict
        ``context.state``; remembers that a noised report is out.
    """
    orders = request.orders
    layout, payload = orders.plan.layout, orders.payload
    values, scale = encode_report(initial, final, layout, payload, privacy)
    receipt = wire.seal_report(values, scale)
    if privacy is not None:
        state[wire.RELEASED] = ConfigRecord({wire.KEY_PRIVACY: str(privacy)})
        receipt[wire.KEY_PRIVACY] = str(privacy)
    return values, receipt
