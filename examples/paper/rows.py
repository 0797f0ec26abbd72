"""Rows that every source makes: images with labels, windows of text."""

import string
import zlib
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import (
    Array2D,
    Array3D,
    Dataset,
    DatasetInfo,
    Features,
    Sequence,
    Value,
)
from numpy.typing import NDArray

SEQUENCE = 80
VOCABULARY = (
    "\n !\"&'(),-."
    + string.digits
    + ":;>?"
    + string.ascii_uppercase
    + "[]"
    + string.ascii_lowercase
    + "}"
)
"""LEAF's 80 symbols."""

MIN_ROLE = 2000
TEST_SHARE = 0.2


def image_rows(images: NDArray[Any], labels: NDArray[Any], **ids: Any) -> Dataset:
    """Make a data set of (n, h, w) or (n, h, w, 3) uint8 images.

    ``Dataset.from_dict`` takes ten seconds for CIFAR-10, since it walks through the
    images and then pickles them for a fingerprint; wrapping their memory takes one.
    """
    shape = images.shape[1:]
    array = (Array2D if len(shape) == 2 else Array3D)(shape, "uint8")
    features = Features(
        {"image": array, "label": Value("int64")} | {n: Value("string") for n in ids}
    )
    pixels = pa.array(images.ravel())
    for size in reversed(shape):
        offsets = np.arange(0, len(pixels) + 1, size, dtype=np.int32)
        pixels = pa.ListArray.from_arrays(offsets, pixels)
    wrapped = pa.ExtensionArray.from_storage(array(), pixels)
    columns = [wrapped, pa.array(labels.astype(np.int64)), *map(pa.array, ids.values())]
    table = pa.Table.from_arrays(columns, schema=features.arrow_schema)
    mark = f"{zlib.crc32(images.data):08x}{zlib.crc32(labels.tobytes()):08x}"
    return Dataset(table, DatasetInfo(features=features), fingerprint=mark)


def text_rows(texts: Items[str], roles: Items[str]) -> Dataset:
    """Make a data set of windows: 80 symbols, and for each the one that follows."""
    windows, owners = [], []
    for text, role in zip(texts, roles, strict=True):
        codes = encode(text)
        count = max(0, (len(codes) - 1) // SEQUENCE)
        starts = SEQUENCE * np.arange(count)[:, None] + np.arange(SEQUENCE + 1)
        windows.append(codes[starts])
        owners += [role] * count
    codes = np.concatenate(windows)
    columns = {"text": codes[:, :-1], "label": codes[:, 1:], "role": owners}
    codes_type = Sequence(Value("uint8"))
    features = {"text": codes_type, "label": codes_type, "role": Value("string")}
    return Dataset.from_dict(columns, features=Features(features))


def encode(text: str) -> NDArray[np.uint8]:
    """Give each symbol's place in the vocabulary; an unknown one is a space."""
    table = np.full(256, VOCABULARY.index(" "), np.uint8)
    table[[ord(symbol) for symbol in VOCABULARY]] = range(len(VOCABULARY))
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return table[np.minimum(points, 255)]  # no symbol lies as high
