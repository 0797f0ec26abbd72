"""The data sets' files."""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .examples import MIN_ROLE, TEST_SHARE, DataError, Examples, windows_of

MOSAIC = 100


def read_mnist(folder: Path) -> tuple[Examples, Examples]:
    """Read the official IDX files."""

    def part(name: str) -> Examples:
        path = folder / f"{name}-labels-idx1-ubyte.gz"
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", 3)
        return _images(path, images, read_idx(path, 1))

    return part("train"), part("t10k")


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes."""
    with _reading(path, "a gzipped IDX file"):
        content = gzip.decompress(path.read_bytes())
    start = 4 + 4 * axes
    magic = (0x0800 + axes).to_bytes(4)
    if len(content) < start or content[:4] != magic:
        got = content[:4].hex() or "an empty file"
        raise _fault(path, f"an IDX file that starts with {magic.hex()}", got)
    shape = np.frombuffer(content[4:start], ">u4")
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != (size := np.prod(shape, dtype=np.int64)):
        raise _fault(path, f"{size} bytes after its header", f"{len(values)}")
    return values.reshape(shape)


def read_cifar10(folder: Path) -> tuple[Examples, Examples]:
    """Read five training mosaics and the test one."""
    return _read_mosaics(folder, 5)


def read_cifar100(folder: Path) -> tuple[Examples, Examples]:
    """Read the one training mosaic, 10,000 of 50,000 images, and the test one."""
    return _read_mosaics(folder, 1)


def _read_mosaics(folder: Path, count: int) -> tuple[Examples, Examples]:
    """Read mosaics and their labels, of which there may be more."""
    path = folder / "labels.npz"
    labels = _read_npz(path, ("y_train", "y_test"))

    def part(names: Sequence[str], y: NDArray[Any]) -> Examples:
        images = np.concatenate([read_mosaic(folder / f"{n}.webp") for n in names])
        return _images(path, images, y[: len(images)])

    names = [f"train_{number}" for number in range(1, count + 1)]
    return part(names, labels["y_train"]), part(["test"], labels["y_test"])


def read_mosaic(path: Path) -> NDArray[np.uint8]:
    """Cut a mosaic of 100x100 images, row by row."""
    with _reading(path, "a WebP mosaic"), Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    if height != width or height % MOSAIC:
        raise _fault(path, "100x100 square images", f"{width}x{height} pixels")
    side = height // MOSAIC
    grid = pixels.reshape(MOSAIC, side, MOSAIC, side, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, side, side, 3)


def read_femnist(folder: Path) -> tuple[Examples, Examples]:
    """Read LEAF's FEMNIST by writer."""
    path = folder / "femnist_leaf_105writers.npz"
    keys = [f"{k}_{part}" for part in ("train", "test") for k in ("x", "y", "writer")]
    arrays = _read_npz(path, (*keys, "writers"))

    def part(name: str) -> Examples:
        images, labels, owners = (arrays[f"{k}_{name}"] for k in ("x", "y", "writer"))
        return _images(path, images, labels, arrays["writers"][owners].astype(str))

    return part("train"), part("test")


def read_shakespeare(folder: Path) -> tuple[Examples, Examples]:
    """Read the plays by (play, role); the last fifth of each role's text is test."""
    path = folder / "bosak_plays_by_role.json.gz"
    with _reading(path, "gzipped JSON, a list of play, role and text"):
        content = json.loads(gzip.decompress(path.read_bytes()))
        texts = {f"{row['play']}: {row['role']}": str(row["text"]) for row in content}
    texts = {role: text for role, text in texts.items() if len(text) >= MIN_ROLE}
    if not texts:
        raise _fault(path, f"roles of at least {MIN_ROLE} characters", "none")
    cuts = {role: round((1 - TEST_SHARE) * len(text)) for role, text in texts.items()}
    roles = list(texts)
    train = windows_of([texts[role][: cuts[role]] for role in roles], roles)
    return train, windows_of([texts[role][cuts[role] :] for role in roles], roles)


READERS = {
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "femnist": read_femnist,
    "shakespeare": read_shakespeare,
}


def _images(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[Any],
    owners: NDArray[Any] | None = None,
) -> Examples:
    """Put a set together, if everything is there once an image."""
    for found in (labels, labels if owners is None else owners):
        if len(found) != len(images):
            expected = f"{len(images)} labels, one an image"
            raise _fault(path, expected, f"{len(found)}")
    return Examples(images, labels.astype(np.int64), owners)


def _read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    expected = f"an npz file with {', '.join(keys)}"
    with _reading(path, expected), path.open("rb") as file, np.load(file) as content:
        return {key: content[key] for key in keys}


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a broken file raises into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise _fault(path, expected, "no such file") from error
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError),
        *(zlib.error, zipfile.BadZipFile),
    ) as error:
        raise _fault(path, expected, f"{type(error).__name__}: {error}") from error


def _fault(path: Path, expected: str, got: str) -> DataError:
    line = " ".join(got.split())  # some decoders explain themselves over many lines
    return DataError(
        f"{path}: expected {expected}, got {line}. Copy the file again, or leave "
        "--data out to load from the Hugging Face hub."
    )
