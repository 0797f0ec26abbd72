"""The authors' code by hand: one mask of single weights, all of which may come back."""

import numpy as np
import pytest
from models import mlp_layout, random_arrays
from rounds import REPORT, after_round, carried_out

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods import AuthorsCode

LAYOUT = mlp_layout()
WEIGHTS = random_arrays(LAYOUT)


@pytest.mark.parametrize(
    ("ratio", "left"),
    [
        (0.3, 26 - 8),  # sorted: 0 x 7, .125, .25 ...: place .3 * 25 = 7.5 is between
        (0.1, 26 - 7),  # place 2.5 is a 0: all seven ties are masked, not three
    ],
)
def test_a_global_quantile_of_single_weights(ratio: float, left: int) -> None:
    state, weights = after_round(AuthorsCode(ratio), LAYOUT, WEIGHTS, [REPORT, REPORT])

    plan = state.plan
    assert plan.alive.all()  # no unit is pruned
    assert plan.num_parameters == left
    np.testing.assert_array_equal(plan.mask["fc1.bias"], [False, True, False, True])
    np.testing.assert_array_equal(plan.mask["fc2.bias"], [False, True])
    assert weights is WEIGHTS  # training goes on from what explorers trained


def test_nodes_count_by_their_own_scale_and_scores_are_units_guidance() -> None:
    loud = {name: 99 * values[::-1] for name, values in REPORT.items()}

    state, _ = after_round(AuthorsCode(), LAYOUT, WEIGHTS, [REPORT, loud])

    # Rows (0 + 198, 8 + 396, 4 + 792, 2 + 0): the loud node decides; its bias likewise.
    assert AuthorsCode().importance(state, WEIGHTS)["fc1"].argmax() == 2


def test_what_rounds_ask() -> None:
    method = AuthorsCode()
    state, _ = method.begin(LAYOUT, WEIGHTS)

    first = method.order(state, 1, [0])
    state, _ = method.learn(state, carried_out(first, [REPORT, REPORT], WEIGHTS))
    second = method.order(state, 2, [0])

    assert (first.who, first.payload, first.epochs) == ("all", "values", 150)
    assert first.whole
    assert first.plan.alive.all()
    assert second.plan is state.plan
    assert (second.who, second.epochs, second.regrow) == ("round", None, True)
    assert (first.dtype, second.dtype) == ("float32", "float32")
    assert second.untrained == "keep"
    done = carried_out(second, [REPORT], WEIGHTS, 2)
    assert method.learn(state, done) == (state, WEIGHTS)


def test_no_explorer_is_an_error() -> None:
    with pytest.raises(AutoFlipError, match="no node can carry the dense model"):
        after_round(AuthorsCode(), LAYOUT, WEIGHTS, [])
