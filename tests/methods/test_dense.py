"""The policy that keeps everything."""

import pytest
from models import ZOO, layout_of

from flwr_autoflip.methods import Dense


@pytest.mark.parametrize("name", ZOO)
def test_everything_stays(name: str) -> None:
    layout = layout_of(name)

    plan = Dense()(1, layout, {}, [])

    assert plan.alive.all()
    assert plan.num_parameters == layout.num_parameters
    assert plan.mask == {}


def test_dense_needs_no_explorers() -> None:
    assert not Dense().explores
    assert not Dense().per_round
