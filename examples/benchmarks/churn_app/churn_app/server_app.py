"""The server: see examples/benchmarks/churn.py."""

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from examples.benchmarks.churn import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation and write what became of it."""
    run = context.run_config
    found = serve(grid, int(run["nodes"]), int(run["num-server-rounds"]))
    Path(str(run["report"])).write_text(json.dumps(found, indent=1) + "\n")
