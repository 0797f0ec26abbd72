"""Files that are whole or not there."""

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_autoflip.errors import DamagedFileError
from flwr_autoflip.graph.storage import (
    open_private,
    read_arrays,
    write_arrays,
    write_whole,
)

DTYPES = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?"])
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1, max_size=5), ARRAYS, max_size=3),
    st.text(max_size=9),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray], text: str
) -> None:
    path = tmp_path_factory.mktemp("x") / "x"
    arrays = {f"a{name}": array for name, array in arrays.items()}
    arrays |= {f"{name}.T": array.T for name, array in arrays.items()}

    checksum = write_arrays(path, arrays, {"text": text})
    found, metadata = read_arrays(path)

    assert metadata == {"text": text, "checksum": checksum}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    arrays = {"a": np.float32([1, 2, 3]), "b": np.array([True, False])}
    write_arrays(path, arrays, {"text": "some"})
    whole = path.read_bytes()

    noticed = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            found, metadata = read_arrays(path)
        except DamagedFileError:
            noticed += 1
            continue
        assert metadata["text"] == "some"  # a blank of the header, at most
        np.testing.assert_equal(found, arrays)
    assert noticed > 0.9 * len(whole)


def test_a_file_cut_short_or_gone_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_arrays(path, {"a": np.zeros(9)}, {})
    whole = path.read_bytes()

    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="cannot be read"):
            read_arrays(path)
    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_arrays(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "\x1b[2J\n\u202e"])
def test_dtypes_that_numpy_lacks(tmp_path: Path, dtype: str) -> None:
    size = 2 if dtype == "BF16" else 1
    about = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    head = json.dumps(about).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))

    with pytest.raises(DamagedFileError, match="cannot be read") as found:
        read_arrays(path)

    assert str(found.value).isprintable()  # a file's escapes are not repeated


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_an_old_file_stays_until_the_new_one_is_complete(
    tmp_path: Path, step: str
) -> None:
    path = tmp_path / "x"
    write_whole(path, b"old")

    with patch(step, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")

    assert path.read_bytes() == b"old"
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_for_others_is_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "mine", b"x")
        write_whole(tmp_path / "public", b"x", private=False)
    finally:
        os.umask(before)

    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert found == {"mine": 0o600, "public": 0o644}


@pytest.mark.parametrize("private", [True, False])
def test_a_link_is_replaced_and_what_it_points_to_stays(
    tmp_path: Path, private: bool
) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "link.partial").symlink_to(tmp_path / "other")

    write_whole(tmp_path / "link", b"new", private=private)

    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("mode", ["ab", "xb"])
def test_nothing_is_written_through_a_link(tmp_path: Path, mode: Any) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "other")

    with pytest.raises(OSError, match="link"):
        open_private(tmp_path / "link", mode)

    assert (tmp_path / "other").read_bytes() == b"precious"
