"""The server."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from examples.paper.federation import Setting, run_server
from examples.paper.flower import PartitionGrid

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one training."""
    setting = Setting.of(context)
    nodes = setting.load().num_nodes
    folder = Path(str(context.run_config["folder"]))
    run_server(PartitionGrid(grid, nodes), setting, folder)
