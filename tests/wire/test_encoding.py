"""Values as they travel: every dtype, packed or not, there and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import layout_of, random_plan

from flwr_autoflip.errors import AutoFlipError, WireError
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.wire.encoding import DTYPES, FLOAT32, Encoding
from flwr_autoflip.wire.quantize import dequantize, quantize, quantized_size
from flwr_autoflip.wire.sixteen import from_sixteen, sixteen_size, to_sixteen

ALL = [Encoding(dtype, packed) for dtype in DTYPES for packed in (False, True)]
SEEDS = st.integers(0, 2**32 - 1)


def values_of(plan: Plan, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(plan.num_values)
    return values.astype(np.float32)


@pytest.mark.parametrize("encoding", ALL, ids=str)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_there_and_back(encoding: Encoding, seed: int, masked: bool) -> None:
    plan = random_plan(layout_of("conv_flat"), seed, masked)
    values = values_of(plan, seed)

    again = encoding.decode(encoding.encode(values, plan), plan)

    expected = {
        "float32": values,
        "float16": from_sixteen(to_sixteen(values, plan), plan),
        "int8": dequantize(quantize(values, plan), plan),
    }
    np.testing.assert_array_equal(again, expected[encoding.dtype])
    assert again.dtype == np.float32


def test_bytes_of_each_dtype() -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    values = values_of(plan)

    assert FLOAT32.encode(values, plan) is values
    eight = Encoding("int8").encode(values, plan)
    assert eight.nbytes == quantized_size(plan) < 0.4 * values.nbytes
    sixteen = Encoding("float16").encode(values, plan)
    assert sixteen.nbytes == sixteen_size(plan) < 0.6 * values.nbytes
    assert Encoding("float32", True).encode(values, plan).dtype == np.uint8


def test_an_update_carries_what_the_last_one_lost() -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    encoding = Encoding("int8", True)
    update = values_of(plan)

    first, left = encoding.encode_update(update, None, plan)
    second, _ = encoding.encode_update(update, left, plan)

    sent = encoding.decode(first, plan)
    np.testing.assert_allclose(sent + left, update, rtol=1e-6, atol=1e-7)
    once_more = encoding.decode(second, plan)
    assert np.abs(sent + once_more - 2 * update).max() < 1.1 * np.abs(left).max()


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(AutoFlipError, match=r"value_dtype must be one of .* 'int4'"):
        Encoding("int4")


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_another_encodings_bytes_are_a_wire_error(encoding: Encoding) -> None:
    plan = random_plan(layout_of("conv_flat"), 0, False)
    for other in ALL:
        if other == encoding:
            continue
        data = other.encode(values_of(plan), plan)
        with pytest.raises(WireError, match="values: "):
            encoding.decode(data, plan)
