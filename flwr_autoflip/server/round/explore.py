"""What explorers report: checked, compared with each other, kept."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from logging import INFO, getLogger
from pathlib import Path

from flwr.app import Message

from ... import wire
from ...errors import AutoFlipError, WireError
from ...graph.layout import Arrays
from ...graph.pack import pack
from ...methods.base import Result
from ...methods.guidance import Report
from ...wire.privacy import ReportPrivacy, parse_privacy
from ..persistence.deviations import store_report
from .exchange import Exchange
from .outliers import Change, Start, refuse_outliers

LOGGER = getLogger("flwr")


def measure(
    exchange: Exchange, replies: Iterable[Message], weights: Arrays, folder: Path | None
) -> list[Result]:
    """Read the reports of an exploration of the dense model ``weights``.

    Reports by weight are kept in the folder; None is a temporary one.
    """
    plan = exchange.sent[0].instructions.plan
    start = Start(pack(weights, plan), plan)

    def read(reply: wire.Reply, instructions: wire.Instructions) -> Change | None:
        if _noise_of(reply, instructions) or instructions.payload == "deviations":
            return None  # noise has no scale; the paper takes deviations as they come
        examples = reply.metadata.get(wire.keys.EXAMPLES) or reply.num_examples
        return start.measure_norm(reply.norm, examples)

    compare = partial(refuse_outliers, what="report", way_out="")
    answers = exchange.replies(replies, read, compare)
    noises = Counter(_noise_of(a.reply, a.instructions) for a in answers)
    for noise in filter(None, noises):
        text = "\t> %s of %s reports were noised by their nodes, who say: %s"
        LOGGER.log(INFO, text, noises[noise], len(answers), noise)
    results = []
    while answers:  # one node's arrays at a time, whatever their number
        answer = answers.pop(0)
        node = answer.message.metadata.src_node_id
        report: Report = wire.report_of(answer.reply, answer.instructions)
        if answer.instructions.payload == "deviations":
            try:
                report = store_report(folder, node, report)
            except AutoFlipError as error:
                LOGGER.warning("\t> node %s counts as unexplored: %s", node, error)
                continue
        results.append(Result(node, answer.reply.num_examples, report))
    return results


def _noise_of(
    reply: wire.Reply, instructions: wire.Instructions
) -> ReportPrivacy | None:
    """Read how private a node says its report is; there is no way to check it."""
    try:
        privacy = parse_privacy(reply.metadata.get(wire.keys.PRIVACY), whose="report")
    except AutoFlipError as error:
        raise WireError(str(error)) from error
    if privacy is not None and instructions.payload != "units":
        raise WireError(
            f"report: {instructions.payload!r} cannot be noised as this one says."
        )
    return privacy
