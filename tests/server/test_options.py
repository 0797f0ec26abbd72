"""Every option of every policy: it changes a run, or giving it is an error."""

import random
from hashlib import blake2b
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipClient, AutoFlipError, client_app
from flwr_autoflip.methods import AutoFlipPolicy, Dense, L1Units, Policy, PruneFl
from flwr_autoflip.methods.policy import unit_plan
from flwr_autoflip.methods.threshold import Compression, MacShare
from flwr_autoflip.server.options import Options

pytestmark = pytest.mark.filterwarnings("ignore::flwr_autoflip.AutoFlipWarning")

EXAMPLE = torch.zeros(1, 12)


class Net(nn.Sequential):
    """Linear 12 -> 32 -> 24 -> 4."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = (nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        super().__init__(*layers, nn.Linear(24, 4))


class Client(AutoFlipClient):
    """Moves weights by chance, each node at its own scale; some do not move."""

    def __init__(self, context: Context) -> None:
        super().__init__(Net, context)
        self.node = int(context.node_config["partition-id"])

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        seed = 10 * self.node + int(config["server-round"])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.02 * (1 + self.node) * noise * (noise > -0.5)
        return 8, {}


class Own(Policy):
    """A policy of a user's own, which explores."""

    explores = True

    def __call__(self, server_round, layout, weights, reports, previous=None):  # type: ignore[no-untyped-def]
        scores = self.rank_units(server_round, layout, weights, reports)
        return unit_plan(layout, scores, Compression(2))


def build(options: dict[str, Any]) -> AutoFlip:
    inner = FedAvg(
        fraction_train=0.75,
        fraction_evaluate=0.0,
        min_train_nodes=3,
        min_available_nodes=4,
    )
    return AutoFlip(inner, Net(), EXAMPLE, **options)


def trail(strategy: AutoFlip) -> str:
    """Run two rounds; give a digest of all that was sent and of the outcome."""
    random.seed(0)
    grid = LocalGrid(client_app(Client), 4)
    if strategy.options["budgets"]:
        for node in (100,) if strategy.policy.explores else (100, 101, 102, 103):
            grid.contexts[node].node_config["autoflip-budget"] = "macs:0.3"
    result = strategy.start(grid, ArrayRecord(Net().state_dict()), num_rounds=2)
    seen = blake2b()
    for node, message in grid.log:
        seen.update(f"{node} {message.metadata.message_type}".encode())
        for record in message.content.array_records.values():
            seen.update(b"".join(array.data for array in record.values()))
        for config in message.content.config_records.values():
            seen.update(repr(sorted(config.items())).encode())
    for array in result.arrays.values():
        seen.update(array.data)
    return seen.hexdigest()


ANY = ("value_dtype", "budgets")
SIZED = ("threshold", "round_to", "rescale", "untrained")
EXPLORING = (
    *("client_scale", "warm_start"),
    *("exploration_fraction", "exploration_epochs", "exploration_payload"),
)
GUIDED = ("normalization", "combination", "guidance_from", "units", *EXPLORING)
MASS = {"preset": "guided", "threshold": "mass:0.7"}
ONCE = {"exploration_epochs": 1}

# What is given, and which options beside it change the run. All others are refused.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "default": ({}, ("priority", *SIZED)),
    "l1": ({"policy": "l1", "threshold": "2x"}, SIZED),
    "random": ({"policy": "random"}, ("priority", *SIZED)),
    "dense": ({"policy": "dense"}, ()),
    "dense, budgets": (
        {"policy": "dense", "budgets": True},
        ("round_to", "untrained"),
    ),
    "prunefl": (
        {"policy": "prunefl"},
        (
            *("threshold", "regrow", "untrained", "warm_start"),
            *("exploration_epochs", "exploration_payload"),
        ),
    ),
    "eflprune-l1": (
        {"policy": "eflprune-l1"},
        ("priority", "threshold", "round_to", "untrained"),
    ),
    "eflprune-magnitude": (
        {"policy": "eflprune-magnitude", "threshold": "2x"},
        ("threshold", "regrow", "untrained"),
    ),
    "structured": (
        {"policy": "structured", "threshold": "2x"},
        ("threshold", "untrained"),
    ),
    "structured-restart": (
        {"policy": "structured-restart", "threshold": "2x"},
        ("threshold", "rescale", "untrained"),
    ),
    "guided": (MASS, (*GUIDED, *SIZED, "single_weights")),
    "guided, masked": (
        {**MASS, "single_weights": "3x"},
        (
            *(name for name in GUIDED if name != "units"),
            *(*SIZED, "single_weights", "keep_output", "regrow"),
        ),
    ),
    "guided, participants": (
        {**MASS, "guidance_from": "participants"},
        (*GUIDED, "threshold", "round_to", "untrained", "single_weights"),
    ),
    "paper": (
        {"preset": "paper", "threshold": 0.4, **ONCE},
        (
            *(name for name in GUIDED if name != "warm_start"),
            *("threshold", "untrained", "keep_output", "regrow"),
        ),
    ),
    "authors-code": (
        {"preset": "authors-code", **ONCE},
        (*GUIDED, "threshold", "keep_output", "regrow"),
    ),
    "object L1Units": (
        {"policy": L1Units(MacShare(0.25))},
        ("rescale", "untrained"),
    ),
    "object Dense, budgets": (
        {"policy": Dense(), "budgets": True},
        ("round_to", "untrained"),
    ),
    "object PruneFl": (
        {"policy": PruneFl()},
        (
            *("regrow", "untrained", "warm_start"),
            *("exploration_epochs", "exploration_payload"),
        ),
    ),
    "object AutoFlipPolicy": (
        {"policy": AutoFlipPolicy(MacShare(0.25))},
        ("rescale", "untrained", *(n for n in EXPLORING if n != "client_scale")),
    ),
    "object Own": (
        {"policy": Own()},
        ("rescale", "untrained", *(n for n in EXPLORING if n != "client_scale")),
    ),
}
CHANGES: dict[str, tuple[Any, ...]] = {
    "priority": ("compute",),
    "threshold": ("3x",),
    "value_dtype": ("float16",),
    "normalization": ("client", "layer"),
    "client_scale": ("raw", "tensor"),
    "combination": ("median",),
    "units": ("score", "all"),
    "single_weights": ("5x",),
    "guidance_from": ("participants", "explorers"),
    "keep_output": (False, True),
    "round_to": (7,),
    "exploration_fraction": (1.0, 0.5),
    "exploration_epochs": (3,),
    "exploration_payload": ("weights",),
    "warm_start": (False, True),
    "untrained": ("zero", "keep"),
    "regrow": (True, False),
    "rescale": (False, True),
    "budgets": (True, False),
}
# A policy of the user's own may mask single weights; and reports far outside the
# others' scale are refused, or not, whoever plans.
UNKNOWN = {
    *(("object Own", name) for name in ("regrow", "client_scale")),
    ("object AutoFlipPolicy", "client_scale"),
}


def test_the_table_has_every_option() -> None:
    assert {*CHANGES, "policy"} == set(Options.__annotations__)


@pytest.fixture(scope="module")
def trails() -> dict[str, str]:
    """What each case does as it is, run once."""
    return {}


@pytest.mark.parametrize(
    ("case", "option"),
    [(c, o) for c in CASES for o in CHANGES if (c, o) not in UNKNOWN],
)
def test_an_option_does_something_or_is_refused(
    case: str, option: str, trails: dict[str, str]
) -> None:
    given, read = CASES[case]
    if case not in trails:
        trails[case] = trail(build(given))
    held = build(given).options[option]  # type: ignore[literal-required]
    value = next(value for value in CHANGES[option] if value != held)

    if option not in (*read, *ANY):
        with pytest.raises(AutoFlipError, match=option) as refused:
            build({**given, option: value})
        assert "\n" not in str(refused.value)
        return
    assert trail(build({**given, option: value})) != trails[case]


@pytest.mark.parametrize("case", CASES)
def test_runs_are_the_same_when_nothing_changes(
    case: str, trails: dict[str, str]
) -> None:
    given, _ = CASES[case]

    assert trails.setdefault(case, trail(build(given))) == trail(build(given))


@pytest.mark.parametrize("preset", ["default", "guided", "paper", "authors-code"])
@pytest.mark.parametrize("policy", ["dense", L1Units(MacShare(0.25))])
def test_what_a_preset_brings_is_nobodys_fault(preset: str, policy: Any) -> None:
    assert build({"preset": preset, "policy": policy}).options["policy"] == policy


@pytest.mark.parametrize(
    "options", [{"threshold": "auto"}, {"single_weights": None}, {}], ids=str
)
def test_leaving_an_option_out_by_value_is_leaving_it_out(options: Any) -> None:
    build({"policy": "dense", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "all"}, "units='all' does nothing here: policy='autoflip' reads it"),
        ({"policy": "dense", "threshold": "2x"}, "keeps everything"),
        ({"policy": "structured", "round_to": 8}, "counts no units by it"),
        ({"policy": "prunefl", "priority": "compute"}, "give a threshold instead"),
        ({"policy": "eflprune-l1", "rescale": True}, "makes its plan anew"),
        ({"policy": L1Units(MacShare(0.5)), "threshold": "2x"}, "set it there"),
        ({"preset": "guided", "keep_output": False}, "no single weight is pruned"),
        ({"preset": "guided", "units": "all"}, "save no MACs"),
        ({"preset": "guided", "single_weights": "macs:0.5"}, "save no MACs"),
    ],
)
def test_refusals_say_why_and_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        build(options)
