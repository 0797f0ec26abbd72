"""Arrays in Flower's records: NumPy's own bytes, read and written without copies."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from flwr_autoflip.errors import WireError
from flwr_autoflip.wire import from_arrayrecord, to_arrayrecord

NUMBERS = arrays.arrays(
    st.sampled_from(["?", "<i8", ">i2", "u1", "<f2", "<f4", ">f8", "<c8"]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)


def saved(array: NDArray[Any]) -> bytes:
    """Give what NumPy's own ``save`` makes of an array: the plain reference."""
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def record(data: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"a": Array("float32", (2,), stype, data)})


@given(NUMBERS)
def test_an_array_is_written_as_numpy_saves_it(array: NDArray[Any]) -> None:
    written = to_arrayrecord({"a": array})["a"]

    assert written.data == saved(np.ascontiguousarray(array).reshape(array.shape))
    assert (written.dtype, tuple(written.shape)) == (str(array.dtype), array.shape)


@given(NUMBERS, st.booleans())
def test_whatever_numpy_saves_is_read(array: NDArray[Any], by_column: bool) -> None:
    array = np.asarray(array, order="F" if by_column else "C")

    view = from_arrayrecord(record(saved(array)))["a"]

    np.testing.assert_array_equal(view, array)
    assert view.dtype == array.dtype
    assert not view.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an array cannot be read"),
        (saved(np.zeros(2))[:9], "an array cannot be read"),
        (saved(np.zeros(2))[:60], "an array cannot be read"),
        (saved(np.zeros(2))[:-1], "an array cannot be read"),
        (saved(np.zeros(2)) + b"x", "bytes follow it"),
        (b"\x93NUMPY\x02" + saved(np.zeros(2))[7:], "of another version"),
        (saved(np.array(["words"])), "is not one of numbers"),
    ],
)
def test_bytes_of_anything_else_are_refused(data: bytes, message: str) -> None:
    for _ in range(2):  # a refusal is not remembered as something read
        with pytest.raises(WireError, match=message):
            from_arrayrecord(record(data))


def test_other_serialisations_are_refused() -> None:
    with pytest.raises(WireError, match=r"it is 'torch\.Tensor'"):
        from_arrayrecord(record(saved(np.zeros(2)), "torch.Tensor"))
