"""Fast cuts against NumPy's own indexing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.graph import gather as module
from flwr_autoflip.graph.gather import gather


def plain(array: np.ndarray, axes: list[np.ndarray | None]) -> np.ndarray:
    whole = [
        np.arange(n) if a is None else a for a, n in zip(axes, array.shape, strict=True)
    ]
    return array[np.ix_(*whole)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray | None]]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=12))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    axes: list[np.ndarray | None] = []
    for length in shape:
        kept = draw(st.none() | st.sets(st.integers(0, length - 1), min_size=1))
        axes.append(None if kept is None else np.array(sorted(kept)))
    return array, axes


@pytest.mark.parametrize("chunk", [1, 64, 1 << 18])
def test_it_is_numpys_indexing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)

    @settings(max_examples=150, deadline=None)
    @given(cases())
    def check(case: tuple[np.ndarray, list[np.ndarray | None]]) -> None:
        array, axes = case
        expected = plain(array, axes)
        out = np.full_like(expected, -1)

        gather(array, axes, out)

        np.testing.assert_array_equal(out, expected)

    check()


@pytest.mark.parametrize("run", [1, 3, 49])
def test_runs_of_columns_behind_a_flatten(run: int) -> None:
    array = np.random.default_rng(0).random((40, 6 * run), np.float32)
    rows = np.array([0, 3, 4, 39])
    units = np.array([1, 2, 5])
    columns = (units[:, None] * run + np.arange(run)).ravel()
    out = np.empty((4, 3 * run), np.float32)

    gather(array, [rows, columns], out)

    np.testing.assert_array_equal(out, array[np.ix_(rows, columns)])


def test_an_array_that_is_not_contiguous() -> None:
    array = np.arange(48, dtype=np.float32).reshape(8, 6).T
    out = np.empty((2, 8), np.float32)

    gather(array, [np.array([1, 4]), None], out)

    np.testing.assert_array_equal(out, array[[1, 4]])
