"""Records as they travel: literal keys, what they weigh, what rounding leaves."""

from typing import Any

import numpy as np
import pytest
from asked import DENSE, LAYOUT, MASKED, SMALL, WEIGHTS
from federation import TinyNet
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from flwr_autoflip import __version__, wire
from flwr_autoflip.client.answer import encode_trained
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import encode_layout, encode_plan, plan_digest
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import describe
from flwr_autoflip.wire.encoding import DTYPES, Encoding

RUN = b"8 bytes."


def template() -> RecordDict:
    config = ConfigRecord({"lr": 0.1, "server-round": 3})
    return RecordDict({"weights": ArrayRecord(), "settings": config})


def content_of(plan: Plan = SMALL, phase: Any = "train", **rest: Any) -> RecordDict:
    instructions = wire.Instructions.of(phase, plan, WEIGHTS, **rest)
    return wire.request_content(instructions, template(), RUN)


# --- Requests ---


def test_a_request_has_one_array_and_our_keys_beside_the_apps() -> None:
    content = content_of()

    assert list(content) == ["fitins.parameters", "fitins.config"]
    assert list(content["fitins.parameters"]) == ["0"]
    assert dict(content["fitins.config"]) == {
        "lr": 0.1,
        "server-round": 3,
        "autoflip-version": 1,
        "autoflip-package": __version__,
        "autoflip-phase": "train",
        "autoflip-run": RUN,
        "autoflip-layout": encode_layout(LAYOUT),
        "autoflip-plan": encode_plan(SMALL),
        "autoflip-dtype": "float32",
        "autoflip-arrays-name": "weights",
        "autoflip-config-name": "settings",
    }
    assert list(content_of(phase="evaluate")) == [
        "evaluateins.parameters",
        "evaluateins.config",
    ]


@pytest.mark.parametrize("own", [None, describe(TinyNet())])
@pytest.mark.parametrize("plan", [DENSE, SMALL, MASKED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_request_is_read_as_it_was_meant(dtype: str, plan: Plan, own: Any) -> None:
    content = content_of(
        plan,
        encoding=Encoding(dtype),
        payload="gradients",
        regrow=True,
        budget="macs:0.5",
    )

    request = wire.read_request(content, own)

    read = request.instructions
    assert (read.payload, read.regrow, read.budget) == ("gradients", True, "macs:0.5")
    assert encode_plan(read.plan) == encode_plan(plan)
    assert read.digest == plan_digest(encode_plan(plan), LAYOUT)
    assert request.config == {"lr": 0.1, "server-round": 3}
    assert request.names == ("weights", "settings")
    # Weights within half a step of the tensor's largest in 127 steps.
    tolerance = {"float32": 0, "float16": 1e-3, "int8": 0.51 / 127}[dtype]
    for name, array in request.arrays().items():
        mask = plan.small_mask.get(name, np.True_)
        expected = np.where(mask, plan.take(name, WEIGHTS[name]), 0)
        largest = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance * largest)


def test_the_same_plan_is_one_object() -> None:
    first, second = (wire.read_request(content_of()) for _ in range(2))

    assert first.instructions.plan is second.instructions.plan


def test_asking_for_a_budget_needs_no_values() -> None:
    content = wire.request_content(wire.Instructions.for_budget(SMALL), template())

    read = wire.read_request(content).instructions

    assert (read.phase, read.plan.num_values) == ("budget", DENSE.num_values)
    content["fitins.config"]["autoflip-phase"] = "evaluate"
    with pytest.raises(WireError, match="the plan keeps"):
        wire.read_request(content)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "expected wire version 1"),
        ("package", "0.0.9", "flwr-autoflip .*, the server 0.0.9;"),
        ("phase", "dance", "unknown phase 'dance'"),
        ("payload", "units", "unknown phase 'train' with payload 'units'"),
        ("plan", b"", "plan: expected version"),
        ("layout", b"junk", "layout's bytes cannot be read"),
        ("dtype", "int4", "unknown dtype 'int4'"),
        ("dtype", "int8", "expected .* bytes of int8 values"),
        ("layout", ["x"], "autoflip-layout must be bytes, got list"),
        ("plan", "text", "autoflip-plan must be bytes, got str"),
        ("run", 3, "autoflip-run must be bytes, got int"),
        ("regrow", "yes", "autoflip-regrow must be bool, got str"),
        ("phase", b"train", "autoflip-phase must be str, got bytes"),
        ("budget", 0.5, "autoflip-budget must be str, got float"),
        ("arrays-name", 1, "autoflip-arrays-name must be str, got int"),
    ],
)
def test_a_bad_request_is_refused(key: str, value: Any, message: str) -> None:
    content = content_of()
    content["fitins.config"][f"autoflip-{key}"] = value

    with pytest.raises(WireError, match=message):
        wire.read_request(content)


def test_one_flat_array_or_nothing() -> None:
    content = content_of()
    (array,) = content["fitins.parameters"].values()
    for arrays, message in (
        ({"a": array, "b": array}, "expected one flat array, 2 came"),
        ({"a": Array("float32", (2,), "numpy.ndarray", b"junk")}, "cannot be read"),
        ({"a": Array(pack(WEIGHTS, SMALL)[:-1])}, "the plan keeps"),
        ({"a": Array(pack(WEIGHTS, SMALL) * np.nan)}, "NaN"),
    ):
        content["fitins.parameters"] = ArrayRecord(arrays)
        with pytest.raises(WireError, match=message):
            wire.read_request(content)
    content["more"] = ConfigRecord()
    with pytest.raises(WireError, match="expected one ConfigRecord, 2 came"):
        wire.read_request(content)


# --- What a message weighs ---


def weighed(content: RecordDict) -> int:
    """Serialise every object as Flower moves it: the plain reference."""
    objects = get_all_nested_objects(content)
    return sum(len(o.deflate()) + len(k) for k, o in objects.items())


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
        st.one_of(
            *(number := (st.floats(), st.integers(-(2**63), 2**63 - 1))),
            *(st.lists(kind, max_size=200) for kind in number),
            *(large := (st.integers(0, 2**64 - 1),)),
            st.lists(*large, max_size=200),
        ),
    ),
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.one_of(
            *(word := (st.booleans(), st.text("aé", max_size=200), st.binary())),
            *(st.lists(kind, max_size=9) for kind in word),
        ),
    ),
)
def test_records_of_any_content_weigh_what_flower_serialises(
    metrics: dict[str, Any], config: dict[str, Any]
) -> None:
    records = {"é": MetricRecord(metrics), "c": ConfigRecord(config)}
    content = RecordDict({**records, "arrays": ArrayRecord()})

    assert wire.count_bytes(content) == weighed(content)


@pytest.mark.parametrize(
    "sizes", [(), (0,), (7,), (3, 3, 40), (1_400_000,), (2_000_000, 1_310_721)]
)
def test_arrays_weigh_what_flower_serialises(sizes: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"a{i}": generator.random(n, np.float32) for i, n in enumerate(sizes)}
    records = {
        "arrays": ArrayRecord({name: Array(a) for name, a in arrays.items()}),
        "more": ArrayRecord({"b": Array(generator.random(5))}),
    }
    content = RecordDict({**records, **content_of()})

    assert wire.count_bytes(content) == weighed(content)


# --- Values up ---


def test_eight_bits_up_are_a_change_that_the_server_adds_to_its_own() -> None:
    sent = wire.Instructions.of("train", SMALL, WEIGHTS, Encoding("int8"))
    request = wire.read_request(wire.request_content(sent, template()))
    trained = request.instructions.values + np.float32(0.0127)

    data = encode_trained(request, trained, RecordDict())

    # A change of .0127 everywhere is 127 steps of .0001; buffers' stay as they are.
    assert set(data[-SMALL.num_parameters :].view(np.int8)) == {127}
    now = sent.decode(data)
    np.testing.assert_allclose(now, sent.values + 0.0127, rtol=0, atol=1e-6)
    assert np.abs(now - trained).max() > 1e-4  # what rounding took on the way down


def test_what_rounding_left_is_of_one_run_and_plan() -> None:
    step = np.random.default_rng(0).standard_normal(DENSE.num_values).astype("f4")

    def send(plan: Plan, run: bytes, state: RecordDict, size: float = 1) -> np.ndarray:
        asked = wire.Instructions.of("train", plan, WEIGHTS, Encoding("int8"))
        request = wire.read_request(wire.request_content(asked, template(), run))
        instructions = request.instructions
        trained = instructions.start + np.float32(size) * step[: plan.num_values]
        return encode_trained(request, trained, state)

    state = RecordDict()
    first, second = (send(SMALL, RUN, state) for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(send(SMALL, b"another.", state), first)
    assert (send(SMALL, b"another.", state) == second).all()
    other = Plan(LAYOUT, SMALL.keep | {"fc1": np.arange(2, 8)})
    np.testing.assert_array_equal(
        send(other, b"another.", state), send(other, RUN, RecordDict())
    )
    # What a training that diverged left would drag the model along.
    send(SMALL, RUN, state, 1e6)
    np.testing.assert_array_equal(send(SMALL, RUN, state), first)
    assert list(state) == ["autoflip-residual"]


def test_metadata_that_cannot_be_true_is_not_believed() -> None:
    content = wire.reply_content({"num-examples": 1}, {"autoflip-examples": -5})

    assert wire.peek_metadata(content) == {}
