"""The server: odd rounds are FedAvg's, even ones AutoFLIP's."""

from collections.abc import Sequence

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr_autoflip.methods.policy import Previous
from quickstart.task import Net

from flwr_autoflip import AutoFlip
from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import AutoFlipPolicy
from flwr_autoflip.methods.guidance import Report
from flwr_autoflip.methods.threshold import Mass


class InTurns(AutoFlipPolicy):
    """Everybody stays in odd rounds; load that comes and goes meets both kinds."""

    @property
    def per_round(self) -> bool:
        """A plan a round; all nodes take part, so AutoFLIP's is the same each time."""
        return True

    def __call__(
        self,
        server_round: int,
        layout: Layout,
        weights: Arrays,
        reports: Sequence[Report],
        previous: Previous | None = None,
    ) -> Plan:
        """Make a round's plan; see :class:`flwr_autoflip.methods.Policy`."""
        if server_round % 2:
            return dense_plan(layout)
        return super().__call__(server_round, layout, weights, reports, previous)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; the ledger's server rows hold the clock."""
    run = context.run_config
    torch.manual_seed(int(run["seed"]))
    model = Net()
    strategy = AutoFlip(
        FedAvg(fraction_train=1.0, fraction_evaluate=0.0),
        model=model,
        example_input=torch.zeros(1, 1, 28, 28),
        policy=InTurns(Mass(0.7)),
        value_dtype="float32",
        ledger_dir=str(run["ledger-dir"]),
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(run["num-server-rounds"]),
        evaluate_fn=lambda server_round, arrays: None,
    )
