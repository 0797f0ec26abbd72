"""Records as they travel: literal keys, literal bytes, refusals."""

import zlib
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, TinyNet
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from flwr_autoflip import __version__, wire
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
    layout_digest,
    plan_digest,
)
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.plan_change import encode_change
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.wire.encoding import Encoding
from flwr_autoflip.wire.exploration import (
    check_report,
    decode_report,
    encode_report,
)
from flwr_autoflip.wire.values import decode_trained

LAYOUT = trace(TinyNet(), EXAMPLE)
PLAN = dense_plan(LAYOUT)
ARRAYS = arrays_of(TinyNet())


def orders(**changes: object) -> wire.Orders:
    given = {"phase": "train", "plan": PLAN, "values": pack(ARRAYS, PLAN)}
    return wire.Orders(**(given | changes))  # type: ignore[arg-type]


def template() -> RecordDict:
    config = ConfigRecord({"lr": 0.1, "server-round": 3})
    return RecordDict({"weights": ArrayRecord(), "settings": config})


def test_request_has_one_array_and_our_keys_beside_the_apps() -> None:
    content, held, plan_bytes = wire.request_content(
        orders(), template(), wire.Held(), "message"
    )

    assert list(content["weights"]) == ["values"]
    assert dict(content["settings"]) == {
        "lr": 0.1,
        "server-round": 3,
        "autoflip-version": 1,
        "autoflip-package": __version__,
        "autoflip-phase": "train",
        "autoflip-plan-digest": plan_digest(encode_plan(PLAN), LAYOUT),
        "autoflip-dtype": "float32",
        "autoflip-regrow": False,
        "autoflip-layout": encode_layout(LAYOUT),
        "autoflip-plan": encode_plan(PLAN),
    }
    assert held == wire.Held(
        layout_digest(LAYOUT), plan_digest(encode_plan(PLAN), LAYOUT)
    )
    assert plan_bytes == 16 + len(encode_layout(LAYOUT)) + len(encode_plan(PLAN))


def test_a_probe_is_one_more_key_and_longer_replies() -> None:
    content, _, _ = wire.request_content(
        orders(probe=True), template(), wire.Held(), "message"
    )
    config = dict(content["settings"])

    assert config["autoflip-probe"] is True
    request = wire.read_request(pack(ARRAYS, PLAN), config, RecordDict())
    assert request.orders.probe


def test_a_budget_is_one_more_key() -> None:
    content, _, _ = wire.request_content(
        orders(budget="macs:0.5"), template(), wire.Held(), "message"
    )
    config = dict(content["settings"])

    assert config["autoflip-budget"] == "macs:0.5"
    request = wire.read_request(pack(ARRAYS, PLAN), config, RecordDict())
    assert request.orders.budget == "macs:0.5"
    assert request.config == {"lr": 0.1, "server-round": 3}


def test_asking_for_a_budget_needs_no_values() -> None:
    nothing = np.zeros(0, np.float32)
    content, held, _ = wire.request_content(
        orders(phase="budget", values=nothing), template(), wire.Held(), "message"
    )

    request = wire.read_request(nothing, dict(content["settings"]), RecordDict())

    assert request.orders.phase == "budget"
    assert held == wire.Held(
        layout_digest(LAYOUT), plan_digest(encode_plan(PLAN), LAYOUT)
    )
    config = dict(content["settings"]) | {"autoflip-phase": "evaluate"}
    with pytest.raises(WireError, match="the plan keeps"):
        wire.read_request(nothing, config, RecordDict())


def test_a_node_that_holds_the_plan_is_sent_its_digest_alone() -> None:
    _, held, _ = wire.request_content(orders(), template(), wire.Held(), "message")

    content, _, plan_bytes = wire.request_content(orders(), template(), held, "message")

    assert plan_bytes == 16
    assert "autoflip-plan" not in content["settings"]
    assert "autoflip-layout" not in content["settings"]


def test_numpy_api_uses_flowers_own_keys() -> None:
    train, _, _ = wire.request_content(orders(), template(), wire.Held(), "numpy")
    test, _, _ = wire.request_content(
        orders(phase="evaluate"), template(), wire.Held(), "numpy"
    )

    assert list(train) == ["fitins.parameters", "fitins.config"]
    assert list(test) == ["evaluateins.parameters", "evaluateins.config"]


def test_a_layout_travels_as_deflated_json() -> None:
    text = zlib.decompress(encode_layout(LAYOUT))

    assert text.startswith(
        b'{"tensors":[["conv.weight",[6,1,3,3],"float32",1,[[[0,6,1]'
    )
    assert layout_digest(decode_layout(encode_layout(LAYOUT))) == layout_digest(LAYOUT)
    assert decode_plan(encode_plan(PLAN), LAYOUT).num_values == PLAN.num_values


def test_literal_bytes_of_a_plan() -> None:
    # Version 1, no element bitmaps; all 6 filters and 8 neurons are kept.
    assert encode_plan(PLAN) == b"\x01\x00\xff\xfc"


def test_count_bytes_is_what_flower_serialises() -> None:
    content, _, _ = wire.request_content(orders(), template(), wire.Held(), "message")
    objects = get_all_nested_objects(content)

    expected = sum(len(o.deflate()) + len(k) for k, o in objects.items())

    assert wire.count_bytes(content) == expected
    assert 4 * PLAN.num_values < expected < 4 * PLAN.num_values + 2500


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

    objects = get_all_nested_objects(content)

    expected = sum(len(o.deflate()) + len(k) for k, o in objects.items())
    assert wire.count_bytes(content) == expected


@pytest.mark.parametrize(
    "sizes", [(), (0,), (7,), (3, 3, 40), (1_400_000,), (2_000_000, 1_310_721)]
)
def test_count_bytes_hashes_no_data_and_still_counts_all(
    sizes: tuple[int, ...],
) -> None:
    generator = np.random.default_rng(0)
    arrays = {f"a{i}": generator.random(n, np.float32) for i, n in enumerate(sizes)}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(a) for name, a in arrays.items()}),
            "more": ArrayRecord({"b": Array(generator.random(5))}),
            "config": ConfigRecord({"plan": b"abc", "x": [1, 2]}),
            "metrics": MetricRecord({"loss": 0.5}),
        }
    )

    objects = get_all_nested_objects(content)

    expected = sum(len(o.deflate()) + len(k) for k, o in objects.items())
    assert wire.count_bytes(content) == expected


@pytest.mark.parametrize("payload", ["update", "deviation"])
def test_report_survives_the_wire(payload: str) -> None:
    generator = np.random.default_rng(0)
    final = {
        n: (a + 1e-4 * generator.standard_normal(a.shape)).astype(a.dtype)
        for n, a in ARRAYS.items()
    }

    values, scale = encode_report(ARRAYS, final, LAYOUT, payload)  # type: ignore
    report, model = decode_report(values, scale, LAYOUT, payload, ARRAYS)  # type: ignore

    assert values.dtype == np.float16
    for spec in LAYOUT.tensors:
        if spec.trainable:
            moved = (final[spec.name] - ARRAYS[spec.name]) ** 2
            np.testing.assert_allclose(report[spec.name], moved, rtol=3e-3, atol=1e-14)
    assert (model is None) == (payload == "deviation")


def test_report_by_unit_sums_deviations() -> None:
    final = {n: a + (a.dtype == np.float32) for n, a in ARRAYS.items()}

    values, scale = encode_report(ARRAYS, final, LAYOUT, "units")
    report, _ = decode_report(values, scale, LAYOUT, "units", ARRAYS)

    # a filter: 9 weights, bias, gamma and beta; a neuron: 96 weights and bias
    np.testing.assert_allclose(report["conv"], np.full(6, 12.0), rtol=1e-2)
    np.testing.assert_allclose(report["fc1"], np.full(8, 97.0), rtol=1e-2)


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        (np.zeros(3, np.float16), 1.0, "expected float16"),
        (np.zeros(PLAN.num_values, np.float32), 1.0, "expected float16"),
        (np.full(PLAN.num_values, np.inf, np.float16), 1.0, "NaN or infinite"),
        (np.zeros(PLAN.num_values, np.float16), None, "scale is missing"),
        (np.zeros(PLAN.num_values, np.float16), 0.0, "must be positive"),
        (np.zeros(PLAN.num_values, np.float16), float("nan"), "must be positive"),
        (np.ones(PLAN.num_values, np.float16), 1e-300, "overflow"),
    ],
)
def test_bad_reports_are_refused(values, scale, message) -> None:  # type: ignore
    with pytest.raises(WireError, match=message):
        check_report(values, scale, LAYOUT, "update", ARRAYS)


def test_a_diverged_explorer_says_so() -> None:
    final = dict(ARRAYS) | {"fc2.bias": np.full(3, np.nan, np.float32)}
    with pytest.raises(WireError, match="diverged"):
        encode_report(ARRAYS, final, LAYOUT, "update")


def test_one_flat_array_or_nothing() -> None:
    with pytest.raises(WireError, match="expected one flat array, 2 came"):
        wire.single_array(
            ArrayRecord({"a": Array(np.zeros(1)), "b": Array(np.zeros(1))})
        )
    broken = Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"junk")
    with pytest.raises(WireError, match="cannot be read"):
        wire.single_array(ArrayRecord({"values": broken}))


def test_receipts_that_cannot_be_true_are_not_believed() -> None:
    content = RecordDict(
        {
            "metrics": MetricRecord({"num-examples": 1}),
            "autoflip": ConfigRecord({"autoflip-examples": -5}),
        }
    )
    assert wire.peek_receipt(content) == {}


# --- Encodings ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("compress", [False, True])
def test_encoded_values_are_read_as_the_request_says(
    dtype: str, compress: bool
) -> None:
    given = wire.Orders.of("train", PLAN, ARRAYS, Encoding(dtype, compress))

    content, _, _ = wire.request_content(given, template(), wire.Held(), "message")

    config = dict(content["settings"])
    assert config["autoflip-dtype"] == dtype
    assert config.get("autoflip-compress", False) == compress
    data = wire.single_array(content["weights"])
    request = wire.read_request(data, config, RecordDict())
    # Weights within half a step of the tensor's largest in 127 steps.
    tolerance = {"float32": 0, "float16": 1e-3, "int8": 0.5 / 127}[dtype]
    for name, array in request.arrays().items():
        largest = np.abs(ARRAYS[name]).max(initial=0)
        np.testing.assert_allclose(
            array, ARRAYS[name], rtol=0, atol=1.01 * tolerance * largest
        )


def test_eight_bits_up_are_a_change_that_the_server_adds_to_its_own() -> None:
    encoding, state = Encoding("int8"), RecordDict()
    sent = wire.Orders.of("train", PLAN, ARRAYS, encoding)
    received = encoding.decode(sent.encoded, PLAN)
    read = wire.Orders("train", PLAN, received, encoding)
    trained = received + np.float32(0.0127)

    data = wire.encode_trained(read, trained, state)

    # A change of .0127 everywhere is 127 steps of .0001; buffers' stay as they are.
    weights = LAYOUT.num_parameters
    assert set(data[-weights:].view(np.int8)) == {127}
    now = decode_trained(sent, data)
    np.testing.assert_allclose(now, sent.values + 0.0127, rtol=0, atol=1e-6)
    assert np.abs(now - trained).max() > 1e-4  # what rounding took on the way down


def test_what_rounding_left_stays_until_the_plan_changes() -> None:
    encoding, state = Encoding("int8"), RecordDict()
    given = wire.Orders.of("train", PLAN, ARRAYS, encoding)
    content, held, _ = wire.request_content(given, template(), wire.Held(), "message")
    data, config = given.encoded, dict(content["settings"])
    request = wire.read_request(data, config, state)
    request.remember(state)
    noise = np.random.default_rng(0).standard_normal(PLAN.num_values)
    trained = request.orders.values + noise.astype(np.float32)

    first = wire.encode_trained(request.orders, trained, state)
    content, _, _ = wire.request_content(given, template(), held, "message")
    wire.read_request(data, dict(content["settings"]), state).remember(state)
    second = wire.encode_trained(request.orders, trained, state)
    wire.read_request(data, config, state).remember(state)  # a run begins
    again = wire.encode_trained(request.orders, trained, state)

    assert (first != second).any()
    np.testing.assert_array_equal(first, again)
    other = Plan(LAYOUT, PLAN.keep | {"fc1": np.arange(4)})
    change = wire.Orders.of("train", other, ARRAYS, encoding)
    content, _, _ = wire.request_content(change, template(), held, "message")
    request = wire.read_request(change.encoded, dict(content["settings"]), state)
    assert wire.RESIDUAL in state  # nothing is changed by reading
    request.remember(state)
    assert wire.RESIDUAL not in state


def test_what_a_diverged_training_left_is_forgotten() -> None:
    encoding = Encoding("int8")
    orders = wire.Orders.of("train", PLAN, ARRAYS, encoding)
    state, fresh = RecordDict(), RecordDict()
    noise = np.random.default_rng(0).standard_normal(PLAN.num_values)
    step = noise.astype(np.float32)

    wire.encode_trained(orders, orders.values + 1e6 * step, state)
    after = wire.encode_trained(orders, orders.values + step, state)
    expected = wire.encode_trained(orders, orders.values + step, fresh)

    np.testing.assert_array_equal(after, expected)
    again = wire.encode_trained(orders, orders.values + step, state)
    assert (again != expected).any()  # what the last one left is in


# --- Plan changes ---


def test_a_change_travels_where_it_is_shorter() -> None:
    state = RecordDict()
    content, held, _ = wire.request_content(
        orders(), template(), wire.Held(), "message"
    )
    first = wire.read_request(pack(ARRAYS, PLAN), dict(content["settings"]), state)
    first.remember(state)
    after = Plan(LAYOUT, PLAN.keep | {"fc1": np.arange(7)})
    given = orders(plan=after, values=pack(ARRAYS, after))

    content, held, plan_bytes = wire.request_content(
        given, template(), held, "message", PLAN
    )

    config = dict(content["settings"])
    assert config["autoflip-plan-change"] == encode_change(PLAN, after)
    assert "autoflip-plan" not in config
    assert plan_bytes == 16 + len(config["autoflip-plan-change"])
    request = wire.read_request(pack(ARRAYS, after), config, state)
    request.remember(state)
    assert encode_plan(request.orders.plan) == encode_plan(after)
    assert held.plan == plan_digest(encode_plan(after), LAYOUT)
    # The same again: the node holds it now, though it came as a change.
    content, _, plan_bytes = wire.request_content(given, template(), held, "message")
    assert plan_bytes == 16
    wire.read_request(pack(ARRAYS, after), dict(content["settings"]), state)


def test_a_change_of_a_plan_that_the_node_lost_is_refused() -> None:
    after = Plan(LAYOUT, PLAN.keep | {"fc1": np.arange(7)})
    given = orders(plan=after, values=pack(ARRAYS, after))
    held = wire.Held(layout_digest(LAYOUT), plan_digest(encode_plan(PLAN), LAYOUT))
    content, _, _ = wire.request_content(given, template(), held, "message", PLAN)

    with pytest.raises(WireError, match="does not hold the plan"):
        wire.read_request(pack(ARRAYS, after), dict(content["settings"]), RecordDict())
