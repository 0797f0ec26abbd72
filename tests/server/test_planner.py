"""Which plan holds: a policy that tells what it was asked."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from models import mlp_layout, random_arrays

from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods import Policy, Previous
from flwr_autoflip.methods.grow import grow
from flwr_autoflip.methods.guidance import Report
from flwr_autoflip.methods.rescale import rescale_fan_in
from flwr_autoflip.server.planner import Planner
from flwr_autoflip.server.store import ReportStore

LAYOUT = mlp_layout()
WEIGHTS = random_arrays(LAYOUT)


def stored(reports: dict[int, Report]) -> ReportStore:
    """Put reports on disk."""
    store = ReportStore(layout_digest(LAYOUT))
    for node, report in reports.items():
        assert store.add(node, report)
    return store


class Spy(Policy):
    """Keeps as many neurons as it is told, and writes down its arguments."""

    on_change = "keep"  # type: ignore[assignment]

    def __init__(self, counts: Sequence[int], renewed: Any = "round") -> None:
        self.counts = list(counts)
        self.renewed = renewed  # type: ignore[misc]
        self.calls: list[tuple[int, list[Any], Previous | None]] = []

    def __call__(  # type: ignore[no-untyped-def]
        self, server_round, layout, weights, reports, previous=None
    ) -> Plan:
        self.calls.append((server_round, list(reports), previous))
        return Plan(layout, {"fc1": np.arange(self.counts.pop(0))})


def test_a_policy_is_told_the_plan_that_held_and_since_when() -> None:
    policy = Spy([4, 4, 3, 3, 2])
    planner = Planner(policy, LAYOUT, stored({7: {"fc1.bias": np.ones(4, np.float32)}}))

    planner.start(WEIGHTS)
    kept = []
    for server_round in (1, 2, 3, 5):
        before = planner.held
        assert planner.renew(server_round, WEIGHTS, rescale=True) is None
        kept.append(planner.held is before)

    assert kept == [True, False, True, False]
    told = [(r, previous) for r, _, previous in policy.calls]
    assert told[0] == (0, None)
    assert [(r, len(p.plan.keep["fc1"]), p.since) for r, p in told[1:] if p] == [
        (1, 4, 0),
        (2, 4, 0),
        (3, 3, 2),
        (5, 3, 2),
    ]


def test_reports_are_the_explorers_first_and_then_the_probe_once() -> None:
    policy = Spy([4, 4, 4])
    explored = {"fc1.bias": np.ones(4, np.float32)}
    planner = Planner(policy, LAYOUT, stored({7: explored}))

    planner.start(WEIGHTS)
    planner.add_probe({"fc1.bias": np.float32([1, 2, 3, 0])}, 5)
    planner.add_probe({"fc1.bias": np.float32([0, 1, 0, 3e38])}, 10)
    planner.renew(1, WEIGHTS, rescale=True)
    planner.renew(2, WEIGHTS, rescale=True)

    ((told,), *_) = [reports for _, reports, _ in policy.calls]
    np.testing.assert_array_equal(told["fc1.bias"], explored["fc1.bias"])
    (weighed,) = policy.calls[1][1]
    np.testing.assert_array_equal(
        weighed["fc1.bias"], [5, 20, 15, 10 * float(np.float32(3e38))]
    )
    assert policy.calls[2][1] == []


@pytest.mark.parametrize("rescale", [True, False])
def test_weights_start_again_if_the_policy_asks_for_that(rescale: bool) -> None:
    policy = Spy([4, 2, 2])
    policy.on_change = "restart"
    planner = Planner(policy, LAYOUT, stored({}), initial=WEIGHTS)
    planner.start(WEIGHTS)
    trained = {name: array + 1 for name, array in WEIGHTS.items()}

    fresh = planner.renew(1, trained, rescale)

    expected = rescale_fan_in(WEIGHTS, planner.held) if rescale else WEIGHTS
    assert fresh is not None
    for name, array in expected.items():
        np.testing.assert_array_equal(fresh[name], array)
    assert planner.renew(2, trained, rescale) is None  # the plan held


@pytest.mark.parametrize("rescale", [True, False])
def test_units_come_in_if_the_policy_asks_for_that(rescale: bool) -> None:
    policy = Spy([2, 4])
    policy.on_change = "grow"
    planner = Planner(policy, LAYOUT, stored({}))
    before = planner.start(WEIGHTS)

    grown = planner.renew(1, WEIGHTS, rescale)

    assert grown is not None
    for name, array in grow(WEIGHTS, before, planner.held, rescale).items():
        np.testing.assert_array_equal(grown[name], array)


def test_the_plan_that_holds_is_deployed() -> None:
    policy = Spy([4, 3])
    planner = Planner(policy, LAYOUT, stored({}))
    assert planner.deployable(WEIGHTS).alive.all()

    planner.start(WEIGHTS)
    planner.renew(1, WEIGHTS, rescale=True)

    assert len(planner.deployable(WEIGHTS).keep["fc1"]) == 3
    assert planner.of_round(1, WEIGHTS, [7]) is planner.deployable(WEIGHTS)
    assert len(policy.calls) == 2


def test_what_is_evaluated_has_a_plan_of_its_own_weights() -> None:
    policy = Spy([4, 3, 2], "weights")
    planner = Planner(policy, LAYOUT, stored({}))
    planner.start(WEIGHTS)
    planner.renew(1, WEIGHTS, rescale=True)

    evaluated = planner.deployable(WEIGHTS)

    assert len(evaluated.keep["fc1"]) == 2
    assert len(planner.of_round(1, WEIGHTS, []).keep["fc1"]) == 3
    assert policy.calls[-1][0] == 1  # drawn as in the round that was


def test_one_plan_serves_the_run_otherwise() -> None:
    policy = Spy([3], "never")
    planner = Planner(policy, LAYOUT, stored({}))

    plans = [planner.of_round(1, WEIGHTS, [7]), planner.deployable(WEIGHTS)]

    assert plans[0] is plans[1]
    assert len(policy.calls) == 1


class ByParticipants(Spy):
    """Decides anew each round."""

    per_round = True  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("nodes", "told"),
    [([7, 8, 9], [7, 8]), ([7], [7]), ([7, 9], [7, 8]), ([9], [7, 8]), ([], [])],
)
def test_all_explorers_decide_for_a_round_of_too_few(
    nodes: list[int], told: list[int]
) -> None:
    explored = {n: {"fc1.bias": np.full(4, n * n, np.float32)} for n in (7, 8)}
    policy = ByParticipants([2])
    planner = Planner(policy, LAYOUT, stored(explored))

    planner.of_round(1, WEIGHTS, iter(nodes))

    first = [report["fc1.bias"][0] for report in policy.calls[0][1]]
    assert first == [node * node for node in told]


def test_units_are_ranked_by_all_explorers_and_the_weights_at_hand() -> None:
    explored = {7: {"fc1.bias": np.ones(4, np.float32)}}
    policy = Spy([4, 3])
    planner = Planner(policy, LAYOUT, stored(explored))
    planner.start(WEIGHTS)
    planner.renew(3, WEIGHTS, rescale=True)
    calls: list[Any] = []
    policy.rank_units = lambda *args: calls.append(args) or {}  # type: ignore

    planner.rank_units(WEIGHTS)

    ((*others, (told,)),) = calls
    assert others == [3, LAYOUT, WEIGHTS]
    np.testing.assert_array_equal(told["fc1.bias"], 1)


def test_a_planner_that_takes_its_state_back_decides_alike() -> None:
    one = Planner(Spy([4, 3]), LAYOUT, stored({}))
    one.start(WEIGHTS)
    one.renew(2, WEIGHTS, rescale=True)
    one.add_probe({"fc1.bias": np.float32([1, 2, 3, 0])}, 5)
    policy = Spy([2])
    other = Planner(policy, LAYOUT, stored({}))

    other.restore(one.state())
    other.renew(3, WEIGHTS, rescale=True)

    ((_, reports, previous),) = policy.calls
    assert previous is not None
    assert (len(previous.plan.keep["fc1"]), previous.since) == (3, 2)
    np.testing.assert_array_equal(reports[0]["fc1.bias"], [5, 10, 15, 0])
    assert Planner(policy, LAYOUT, stored({})).state()["previous"] is None
