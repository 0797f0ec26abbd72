"""What explorers report: checked, compared with each other, kept."""

from collections import Counter
from collections.abc import Iterable
from logging import INFO, getLogger
from pathlib import Path

from flwr.app import Message

from .. import wire
from ..errors import AutoFlipError, WireError
from ..graph.layout import Arrays
from ..graph.pack import pack
from ..graph.plan import dense_plan
from ..methods.base import Result
from ..wire.privacy import ReportPrivacy, parse_privacy
from .exchange import Exchange
from .outliers import WEIGHTS, Drift, drift_of_norm, find_too_far, units_of
from .reports import store_report

LOGGER = getLogger("flwr")


def measure(
    exchange: Exchange, replies: Iterable[Message], weights: Arrays, folder: Path | None
) -> list[Result]:
    """Read the reports of an exploration.

    Parameters
    ----------
    exchange : Exchange
        Sent the requests.
    replies : iterable of Message
    weights : mapping of str to ndarray
        The dense model that explorers were given.
    folder : Path or None
        Where reports by weight are kept; None is a temporary one.

    Returns
    -------
    list of Result
        At least one.

    Raises
    ------
    AutoFlipError
        If no report is valid.
    """
    asked = len(exchange.sent)
    plan = exchange.sent[0].instructions.plan
    units = units_of(pack(weights, plan), plan)

    def read(reply: wire.Reply, instructions: wire.Instructions) -> Drift | None:
        if _noise_of(reply, instructions) or instructions.payload == "deviations":
            return None  # noise has no scale; the paper takes deviations as they come
        examples = reply.metadata.get(wire.KEY_EXAMPLES) or reply.num_examples
        return drift_of_norm(reply.norm, units, plan, examples)

    answers = exchange.replies(replies, read, _refuse_outliers)
    if not answers:
        reasons = exchange.ledger.reasons("budget", "explore")
        raise AutoFlipError(
            f"none of {asked} explorers gave a valid report: {'; '.join(reasons[:3])}"
            f"{_way_out(reasons)}"
        )
    noises = Counter(_noise_of(a.reply, a.instructions) for a in answers)
    for noise in filter(None, noises):
        text = "\t> %s of %s reports were noised by their nodes, who say: %s"
        LOGGER.log(INFO, text, noises[noise], len(answers), noise)
    results = []
    while answers:  # one node's arrays at a time, whatever their number
        answer = answers.pop(0)
        node = answer.message.metadata.src_node_id
        report = wire.report_of(answer.reply, answer.instructions)
        if answer.instructions.payload == "deviations":
            report = store_report(folder, node, report)
        results.append(Result(node, answer.reply.num_examples, report))
    return results


def _noise_of(
    reply: wire.Reply, instructions: wire.Instructions
) -> ReportPrivacy | None:
    """Read how private a node says its report is; there is no way to check it.

    Raises
    ------
    WireError
        If that cannot be read, or is not of this payload.
    """
    try:
        privacy = parse_privacy(reply.metadata.get(wire.KEY_PRIVACY), whose="report")
    except AutoFlipError as error:
        raise WireError(str(error)) from error
    if privacy is not None and instructions.payload != "units":
        raise WireError(
            f"report: {instructions.payload!r} cannot be noised as this one says."
        )
    return privacy


def _refuse_outliers(drifts: list[Drift | None]) -> dict[int, str]:
    """Say whose report moved farther than exploring does: place to reason."""
    known = {place: drift for place, drift in enumerate(drifts) if drift is not None}
    places = list(known)
    return {
        places[index]: f"report: it moved by {far.moved:.3g} times the weights' size, "
        f"explorers' median is {far.median:.3g}; up to {far.limit:.3g} is taken here."
        for index, found in find_too_far(list(known.values())).items()
        for far in found
        if far.name == WEIGHTS
    }


def _way_out(reasons: list[str]) -> str:
    """Say what to do when a mod stumbles over a report, which has its own length."""
    return f" {wire.MOD_ORDER}" if any("broadcast" in r for r in reasons) else ""
