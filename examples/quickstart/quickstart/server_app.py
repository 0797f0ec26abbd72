"""The server: any Flower strategy, wrapped in AutoFlip."""

import random
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flwr_autoflip import AutoFlip, save_pruned
from quickstart.task import Net, load_test, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federated training."""
    run = context.run_config
    seed = int(run["seed"])
    random.seed(seed)
    torch.manual_seed(seed)
    model = Net()
    strategy = AutoFlip(
        FedAvg(
            fraction_train=float(run["fraction-train"]),
            fraction_evaluate=float(run["fraction-evaluate"]),
        ),
        model=model,
        example_input=torch.zeros(1, 1, 28, 28),
        method=str(run["method"]),
        macs=float(run["macs"]) or None,
        value_dtype=str(run["value-dtype"]),
        budgets=run["budgets"] != "none",
        ledger_dir=str(run["ledger-dir"]) or None,
        checkpoint_dir=str(run["checkpoint-dir"]) or None,
    )
    data = load_test(str(run["dataset"]), seed)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, top1 = test(model, data)
        return MetricRecord({"loss": loss, "top1": top1})

    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(run["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    if run["ledger-dir"]:  # for `flwr-autoflip inspect`
        path = Path(str(run["ledger-dir"])) / "model.safetensors"
        save_pruned(
            path, strategy.deployable_model(result.arrays), strategy.deployable_plan
        )
