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


@given(NUMBERS)
def test_an_array_is_written_as_numpy_saves_it(array: NDArray[Any]) -> None:
    written = to_arrayrecord({"a": array})["a"]

    assert written.data == saved(np.ascontiguousarray(array).reshape(array.shape))
    assert (written.dtype, tuple(written.shape)) == (str(array.dtype), array.shape)
    view = from_arrayrecord(ArrayRecord({"a": written}))["a"]
    np.testing.assert_array_equal(view, array, strict=True)
    assert not view.flags.writeable


@given(NUMBERS, st.booleans(), st.booleans())
def test_whatever_numpy_saves_is_read(
    array: NDArray[Any], by_column: bool, said: bool
) -> None:
    array = np.asarray(array, order="F" if by_column else "C")
    about: Any = (str(array.dtype), array.shape) if said else ("", ())
    record = ArrayRecord({"a": Array(*about, "numpy.ndarray", saved(array))})

    np.testing.assert_array_equal(from_arrayrecord(record)["a"], array, strict=True)


@pytest.mark.parametrize(
    ("data", "stype"),
    [(b"", "numpy.ndarray"), (saved(np.zeros(2))[:60], "numpy.ndarray"),
     (saved(np.zeros(2)), "torch.Tensor")],
)  # fmt: skip
def test_bytes_of_anything_else_are_refused(data: bytes, stype: str) -> None:
    array = Array("float64", (2,), stype, data)

    with pytest.raises(WireError, match="an array cannot be read"):
        from_arrayrecord(ArrayRecord({"a": array}))
