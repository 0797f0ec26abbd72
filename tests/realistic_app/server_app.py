"""The server of the realistic federation."""

import json

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from realistic import accuracy, build, initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a case, and print what became of every node's work."""
    name = str(context.run_config["case"])
    strategy = build(name)
    rounds = int(context.run_config["rounds"])
    result = strategy.start(grid, initial(name), num_rounds=rounds)
    keys = ("phase", "status", "reason", "examples", "macs")
    rows = [
        {key: row[key] for key in keys}
        for row in strategy.ledger.rows
        if row["phase"] == "train"
    ]
    found = {"rows": rows, "accuracy": accuracy(name, strategy, result)}
    print("found:", json.dumps(found))
