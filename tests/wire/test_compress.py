"""Lossless packing: there and back, smaller, strangers' bytes."""

import builtins
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.errors import AutoFlipError, WireError
from flwr_autoflip.wire.compress import compress, decompress

DTYPES = st.sampled_from(["float32", "float16", "uint8"])


@settings(deadline=None)
@given(st.data(), DTYPES)
def test_there_and_back(data: st.DataObject, dtype: str) -> None:
    values = data.draw(hnp.arrays(dtype, st.integers(1, 300)))

    packed = compress(values)

    again = decompress(packed, values.size, dtype)
    assert again.tobytes() == values.tobytes()  # NaN payloads too
    assert packed.size <= values.nbytes + 16


def test_weights_get_smaller() -> None:
    weights = (0.02 * np.random.default_rng(0).standard_normal(100_000)).astype("f4")

    assert compress(weights).size < 0.92 * weights.nbytes


def test_another_length_is_refused_before_memory_is_taken() -> None:
    packed = compress(np.zeros(1 << 24, np.float32))

    with pytest.raises(WireError, match=r"expected 400 bytes in .* says 67108864"):
        decompress(packed, 100, "float32")


@pytest.mark.parametrize("length", [0, 3, 15, 40])
def test_truncated_bytes_are_refused(length: int) -> None:
    packed = compress(np.arange(1000, dtype=np.float32))

    with pytest.raises(WireError, match="values: expected"):
        decompress(packed[:length], 1000, "float32")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_values_or_a_wire_error(data: bytes, header: bool) -> None:
    packed = np.frombuffer(data, np.uint8).copy()
    if header and packed.size >= 16:
        packed[4:16] = np.array([40, 40, packed.size], "<u4").view(np.uint8)
    try:
        values = decompress(packed, 10, "float32")
    except WireError:
        return
    assert values.shape == (10,)


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("numcodecs"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AutoFlipError, match=r"pip install 'flwr-autoflip\[compress\]'"):
        compress(np.zeros(3))
