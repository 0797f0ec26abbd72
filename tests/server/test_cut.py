"""Plans inside plans: by hand, nested, as large as fits."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, batch, build, layout_of, mlp_layout, random_plan
from torch import nn

from flwr_autoflip.errors import KeepError
from flwr_autoflip.graph.budget import Resource
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import CostOf, count_training_memory, measure_cost
from flwr_autoflip.server.round.budgets import below_floor, cut_plan, part_of

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0.02, 1)
RESOURCES = ("macs", "parameters", "memory")
COSTS = {name: CostOf(build(name), batch(name, 1)) for name in ZOO}
"""One a model, so that a plan is measured once whatever example meets it."""


def scores_of(plan: Plan, seed: int) -> dict[str, np.ndarray]:
    """Draw scores from few values, so that there are ties."""
    generator = np.random.default_rng(seed)
    groups = plan.layout.groups
    return {g.name: generator.integers(0, 4, g.size) / 4 for g in groups}


def cost_in(name: str, resource: Resource) -> Callable[[Plan], float]:
    return lambda plan: COSTS[name].ratio(plan, resource)


def parameters(plan: Plan) -> float:
    return plan.num_parameters / plan.layout.num_parameters


def test_a_cut_by_hand() -> None:
    # Linear 3 -> 4 -> 2: a neuron has 4 + 2 parameters, the output 2 biases: 26.
    layout = mlp_layout()
    whole, scores = dense_plan(layout), {"fc1": np.array([0.3, 0.1, 0.3, 0.9])}

    def kept(share: float) -> list[int]:
        return cut_plan(whole, scores, share, parameters).keep["fc1"].tolist()

    assert kept(20 / 26) == [0, 2, 3]
    assert kept(19 / 26) == [0, 3]  # of a tie the first stays
    assert kept(8 / 26) == [3]
    with pytest.raises(KeepError, match=r"cost 0.308 .* above 0.3"):
        kept(0.3)


def test_a_plan_that_fits_is_given_back() -> None:
    plan = Plan(mlp_layout(), {"fc1": np.array([1, 2])})

    assert cut_plan(plan, {"fc1": np.zeros(4)}, 14 / 26, parameters) is plan


def test_a_cut_is_of_the_plan_and_keeps_its_mask() -> None:
    mask = {"fc1.bias": np.array([True, False, True, True])}
    plan = Plan(mlp_layout(), {"fc1": np.array([0, 1, 3])}, mask)

    cut = cut_plan(plan, {"fc1": np.array([1, 3, 9, 2])}, 14 / 26, parameters)

    assert cut.keep["fc1"].tolist() == [1, 3]  # 2 scores best, but had gone
    assert cut.num_parameters == 13


def test_multiples_by_hand() -> None:
    whole, scores = dense_plan(mlp_layout()), {"fc1": np.array([4, 3, 2, 1])}

    cut = cut_plan(whole, scores, 20 / 26, parameters, multiple=2)

    assert cut.keep["fc1"].tolist() == [0, 1]


def holds(large: Plan, small: Plan) -> bool:
    return bool((large.alive | ~small.alive).all())


@pytest.mark.parametrize("name", ["conv_flat", "residual", "grouped", "dense_block"])
@settings(max_examples=15, deadline=None)
@given(
    seed=SEEDS,
    masked=st.booleans(),
    budgets=st.lists(st.tuples(st.sampled_from(RESOURCES), SHARES), min_size=2),
    multiple=st.sampled_from([1, 2, 3]),
)
def test_of_any_two_cuts_one_holds_the_other(
    name: str, seed: int, masked: bool, budgets: list[Any], multiple: int
) -> None:
    plan = random_plan(layout_of(name), seed, masked)
    scores = scores_of(plan, seed)
    cuts = []
    for resource, share in budgets:
        try:
            cost = cost_in(name, resource)
            cuts.append(cut_plan(plan, scores, share, cost, multiple))
        except KeepError:
            continue

    for one in cuts:
        assert holds(plan, one)
        for other in cuts:
            assert holds(one, other) or holds(other, one)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("resource", RESOURCES)
def test_a_cut_fits_and_one_step_more_would_not(name: str, resource: Resource) -> None:
    whole, cost = dense_plan(layout_of(name)), cost_in(name, resource)
    scores = scores_of(whole, 1)
    sizes = [group.size for group in whole.layout.groups]

    cut = cut_plan(whole, scores, 0.6, cost)

    assert cost(cut) <= 0.6
    steps = sorted({i / n for n in sizes for i in range(1, n + 1)})
    larger = []
    for step in steps:
        keep = {}
        for group in whole.layout.groups:
            count = max(1, int(step * group.size + 1e-9))
            best = np.argsort(-scores[group.name], kind="stable")[:count]
            keep[group.name] = np.sort(best)
        plan = Plan(whole.layout, keep)
        if plan.num_parameters > cut.num_parameters:
            larger.append(plan)
    assert larger
    assert all(cost(plan) > 0.6 for plan in larger)


# --- Floors: a tenth of a group, unless nothing else fits ---


def wide_layout() -> Layout:
    """Linear 1 -> 5 -> 40 -> 1."""
    layers = (nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 1))
    return trace(nn.Sequential(*layers), torch.zeros(1, 1))


def sizes(plan: Plan) -> list[int]:
    return [len(kept) for kept in plan.keep.values()]


def test_a_cut_goes_below_a_tenth_only_if_nothing_else_fits() -> None:
    # Of a and b neurons 2a + ab + b + b + 1 parameters of 291: 15 at floors 1 and 4.
    whole = dense_plan(wide_layout())
    scores = {"0": np.arange(5), "2": np.arange(40)}

    cuts = {
        most: cut_plan(whole, scores, most / 291, parameters)
        for most in (20, 15, 14, 6)
    }

    assert {most: sizes(cut) for most, cut in cuts.items()} == {
        20: [1, 5],  # 2 + 5 + 5 + 5 + 1 = 18; a sixth neuron would be 21
        15: [1, 4],
        14: [1, 3],
        6: [1, 1],
    }
    assert [below_floor(cut) for cut in cuts.values()] == [[], [], ["2"], ["2"]]
    assert all(holds(one, other) for one, other in pairwise(cuts.values()))


def test_a_plan_that_is_narrower_already_is_cut_from_there() -> None:
    layout = wide_layout()
    plan = Plan(layout, {"0": np.arange(5), "2": np.array([3, 7])})

    cut = cut_plan(plan, {"0": np.arange(5), "2": np.arange(40)}, 9 / 291, parameters)

    assert sizes(cut) == [1, 2]


def test_the_log_says_once_what_is_narrow_or_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = dense_plan(wide_layout())
    scores = {"0": np.arange(5), "2": np.arange(40)}

    with caplog.at_level("WARNING", logger="flwr"):
        found = [
            part_of(plan, budget, scores, lambda plan, resource: parameters(plan))
            for budget in ("", "macs:0.99", "parameters:0.03", "parameters:0.01") * 2
        ]

    whole, _, narrow, nothing = found[:4]
    assert whole is plan
    assert narrow is not None
    assert sizes(narrow) == [1, 1]
    assert nothing is None
    assert caplog.messages == [
        "\t> nodes with budget 'parameters:0.03' keep less than a tenth of ['2']: no "
        "more fits",
        "\t> nodes with budget 'parameters:0.01' take no part: the fewest units of "
        "every group cost 0.0206 of the dense model, which is above 0.01. Raise it.",
    ]


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_costs_depend_on_how_many_units_are_kept_not_on_which(
    name: str, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    plan, cost = random_plan(layout_of(name), seed), COSTS[name]
    keep = {
        group.name: np.sort(generator.permutation(group.size)[: len(kept)])
        for group, kept in zip(plan.layout.groups, plan.keep.values(), strict=True)
    }

    models = [shrink(build(name), p) for p in (plan, Plan(plan.layout, keep))]

    example = cost.example_input
    for measure in (measure_cost, count_training_memory):
        one, other = (measure(model, example, cost.axis) for model in models)
        assert one == other
