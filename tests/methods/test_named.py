"""Methods by name, and options and orders that are refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from models import mlp_layout

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.methods import (
    L1,
    NAMES,
    AuthorsCode,
    Dense,
    EFLPrune,
    Guided,
    Order,
    Paper,
    PruneFL,
    Random,
    Structured,
    named,
)
from flwr_autoflip.methods.threshold import Compression, MacRatio

ORDER = partial(Order, dense_plan(mlp_layout()))
CHOOSE_BY_MACS = (
    *("l1", "autoflip", "random", "structured", "structured-restart"),
    *(f"eflprune-{criterion}" for criterion in ("random", "l1", "l2")),
    *("eflprune-similarity", "eflprune-bn"),
)


def test_methods_by_name() -> None:
    assert {name: named(name) for name in NAMES} == {
        "l1": L1(macs=0.25),
        "autoflip": Guided(macs=0.25),
        "paper": Paper(),
        "authors-code": AuthorsCode(),
        "random": Random(macs=0.25),
        "dense": Dense(),
        "prunefl": PruneFL(),
        "structured": Structured(restart=False),
        "structured-restart": Structured(restart=True),
        **{
            f"eflprune-{criterion}": EFLPrune(criterion)
            for criterion in ("random", "l1", "l2", "similarity", "bn", "magnitude")
        },
    }


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_taken_where_they_choose_and_refused_elsewhere(name: str) -> None:
    if name in CHOOSE_BY_MACS:
        assert named(name, macs=0.5).macs == 0.5
        return
    with pytest.raises(AutoFlipError, match=r"does nothing here|save no MACs"):
        named(name, macs=0.5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("randm", "did you mean 'random'"),
        ("auto-flip", "did you mean 'autoflip'"),
        ("eflprune-l3", "did you mean 'eflprune-l"),
        ("structured-fresh", "did you mean 'structured"),
        ("", "got ''"),
        (None, "or a Method object, got None"),
        ([], "or a Method object, got []"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: Any, hint: str) -> None:
    with pytest.raises(AutoFlipError, match="method must be one of 'l1'") as error:
        named(name)

    assert hint in str(error.value)


# --- How much is kept: options that methods which choose units share ---


@pytest.mark.parametrize(
    "method", [L1, Random, Guided, lambda **k: EFLPrune("l1", **k)]
)
def test_how_much_is_kept(method: Any) -> None:
    assert method().target == MacRatio(0.25)
    assert method(macs=1).target == MacRatio(1)
    assert method(threshold="2x").target == Compression(2)
    assert method(threshold="conv1=8").target == {"conv1": 8}


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (L1, {"macs": 0.5, "threshold": "2x"}, "both say how much is kept"),
        (L1, {"macs": 0}, r"macs is the ratio .* in \(0, 1\], got 0"),
        (L1, {"macs": 25}, "got 25; for another measure"),
        (L1, {"macs": True}, "got True"),
        (L1, {"macs": "2x"}, "got '2x'"),
        (L1, {"threshold": "half"}, "threshold must be 'macs:0.25'"),
        (L1, {"round_to": 0}, "round_to must be at least 1, got 0"),
        (L1, {"round_to": 1.5}, "round_to must be at least 1"),
        (Random, {"threshold": "cumulative:0.7"}, "no meaning to accumulate"),
        (Guided, {"aggregator": "mode"}, "aggregator must be 'mean'"),
        (Guided, {"report": "update"}, "report must be .* got 'update'"),
        (Paper, {"threshold": 1.0}, r"T_p, in \[0, 1\)"),
        (Paper, {"epochs": 0}, "epochs must be a number of at least 1"),
        (AuthorsCode, {"ratio": -0.1}, "ratio must lie"),
        (AuthorsCode, {"epochs": 1.5}, "epochs must be a number"),
        (PruneFL, {"interval": 0}, "interval must be"),
        (PruneFL, {"fraction": 1.0}, "interval must be"),
        (PruneFL, {"threshold": "macs:0.5"}, "prunes single weights"),
        (Structured, {"threshold": 0.3}, "own limits"),
        (Structured, {"threshold": "cumulative:0.7"}, "own limits"),
        (Structured, {"k": 0.0}, "k must be above 0"),
        (Structured, {"macs": 0.5, "threshold": "2x"}, "both say"),
        (EFLPrune, {"criterion": "l3"}, "criterion must be one of"),
        (EFLPrune, {"criterion": "magnitude", "threshold": "a=1"}, "single weights"),
        (EFLPrune, {"criterion": "magnitude", "macs": 0.5}, "save no MACs"),
        (
            EFLPrune,
            {"criterion": "random", "threshold": "cumulative:0.7"},
            "no meaning",
        ),
        (ORDER, {"payload": "update"}, "payload must be one of .* got 'update'"),
        (ORDER, {"untrained": "drop"}, "untrained must be one of .* got 'drop'"),
        (ORDER, {"dtype": "int4"}, "dtype must be one of .* got 'int4'"),
        (ORDER, {"who": "one"}, "who must be .* got 'one'"),
        (ORDER, {"who": 0}, "who must be .* got 0"),
        (ORDER, {"who": ()}, "who must be"),
    ],
)
def test_wrong_options_are_refused(
    make: Callable[..., object], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AutoFlipError, match=message):
        make(**options)
