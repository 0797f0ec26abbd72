"""Orders that cannot be carried out are refused where they are made."""

from typing import Any

import pytest
from models import mlp_layout

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.methods import Order

DENSE = dense_plan(mlp_layout())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"payload": "update"}, "payload must be one of .* got 'update'"),
        ({"untrained": "drop"}, "untrained must be one of .* got 'drop'"),
        ({"dtype": "int4"}, "dtype must be one of .* got 'int4'"),
        ({"who": "one"}, "who must be .* got 'one'"),
        ({"who": 0}, "who must be .* got 0"),
        ({"who": ()}, "who must be"),
    ],
)
def test_wrong_words_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        Order(DENSE, **fields)
