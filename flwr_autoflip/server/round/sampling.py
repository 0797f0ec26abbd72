"""Whom a round asks: the inner strategy's choice, kept, made again, and replaced."""

from collections.abc import Iterable, Mapping
from random import sample

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from ... import wire
from ..hosts import find_attribute


def configs_of(sampled: Iterable[Message]) -> dict[int, ConfigRecord]:
    """Keep of a round's messages who is asked, and what the strategy tells them."""
    return {
        message.metadata.dst_node_id: next(
            iter(wire.records_of(message.content, ConfigRecord).values()),
            ConfigRecord(),
        )
        for message in sampled
    }


def templates_of(sampled: Mapping[int, ConfigRecord], inner: Strategy) -> list[Message]:
    """Make a round's messages again."""
    names = [
        str(find_attribute(inner, f"{kind}record_key", usual))
        for kind, usual in (("array", "arrays"), ("config", "config"))
    ]
    contents = {
        id(config): RecordDict({names[0]: ArrayRecord(), names[1]: config})
        for config in sampled.values()
    }
    return [
        Message(contents[id(config)], dst_node_id=node, message_type="train")
        for node, config in sampled.items()
    ]


def addressed(template: Message, node: int) -> Message:
    """Make a message of a round for a node that was not sampled."""
    group = template.metadata.group_id
    return Message(
        template.content, dst_node_id=node, message_type="train", group_id=group
    )


def replace_weak(
    templates: list[Message], everyone: list[Message], budgets: Mapping[int, str]
) -> list[Message]:
    """Let nodes that carry the dense model take the place of those that do not."""
    able = {
        message.metadata.dst_node_id: message
        for message in everyone
        if budgets.get(message.metadata.dst_node_id) == ""
    }
    nodes = [template.metadata.dst_node_id for template in templates]
    chosen = [node for node in nodes if node in able]
    others = [node for node in able if node not in chosen]
    missing = min(len(others), len(nodes) - len(chosen))
    return [able[node] for node in chosen + sample(others, missing)]
