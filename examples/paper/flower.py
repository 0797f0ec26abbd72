"""The second backend: the same run through ``flwr run``."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..simulation import flwr_run, superlink
from .federation import Setting

PARTITION = "partition-id"
APP = Path(__file__).parent / "app"
ROOT = Path(__file__).parents[2]


class PartitionGrid:
    """Nodes in the order of their partitions, around Flower's own grid.

    Flower numbers nodes at random; strategies sample from that list and add replies up
    as they come. In the order of partitions a seed decides both.

    Parameters
    ----------
    grid : Grid
    num_nodes : int
        To wait for.
    """

    def __init__(self, grid: Grid, num_nodes: int) -> None:
        self.grid = grid
        while len(nodes := list(grid.get_node_ids())) < num_nodes:
            time.sleep(0.5)
        question = RecordDict({"node": ConfigRecord()})
        answers = grid.send_and_receive(
            [Message(question, dst_node_id=n, message_type="query") for n in nodes]
        )
        self.partition = {
            answer.metadata.src_node_id: int(answer.content["node"][PARTITION])  # type: ignore[arg-type]
            for answer in answers
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def get_node_ids(self) -> Iterable[int]:
        """Give node ids, ordered by partition."""
        return sorted(self.partition, key=self.partition.__getitem__)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Give replies, ordered by partition."""
        replies = self.grid.send_and_receive(messages, timeout=timeout)
        return sorted(
            replies,
            key=lambda reply: self.partition.get(reply.metadata.src_node_id, -1),
        )


def run_with_flower(setting: Setting, folder: Path) -> None:
    """Make a run through ``flwr run``, on a SuperLink that lives as long as it does.

    Parameters
    ----------
    setting : Setting
    folder : Path
        For ``log.txt`` and what :func:`.federation.run_server` writes.
    """
    folder = folder.resolve()
    data = str(Path(setting.data).resolve()) if setting.data else ""
    config = asdict(setting) | {"data": data, "folder": str(folder)}
    nodes = setting.load().num_nodes
    with superlink(folder, ROOT) as environment:
        for _ in flwr_run(APP, config, nodes, environment, folder / "log.txt"):
            pass
