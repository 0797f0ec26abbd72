"""Rows that every source makes: images with labels, windows of text."""

import string
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, Dataset, Features, Sequence, Value
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
    """Make a data set of (n, h, w) or (n, h, w, 3) uint8 images."""
    shape = images.shape[1:]
    array = (Array2D if len(shape) == 2 else Array3D)(shape, "uint8")
    features = {"image": array, "label": Value("int64")}
    features |= {name: Value("string") for name in ids}
    columns = {"image": images, "label": labels.astype(np.int64), **ids}
    return Dataset.from_dict(columns, features=Features(features))


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
    return table[np.frombuffer(text.encode("latin-1", "replace"), np.uint8)]
