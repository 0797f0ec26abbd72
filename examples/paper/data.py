"""The five data sets, from files (``--data DIR``) or from the Hugging Face hub.

The files, a folder a data set:

- ``mnist/``: the four official IDX ``.gz`` files.
- ``cifar10/``: ``train_1.webp`` to ``train_5.webp`` and ``test.webp``, lossless
  mosaics of 100x100 images, and ``labels.npz`` (``y_train``, ``y_test``).
- ``cifar100/``: the same with ``train_1.webp`` only: the *first 10,000* of the 50,000
  official training images. The hub has all of them.
- ``femnist/femnist_leaf_105writers.npz``: LEAF's images by writer; 105 writers have
  training images, the official test set has 79 more.
- ``shakespeare/bosak_plays_by_role.json.gz``: all plays by (play, role).

Whatever the source, :func:`load_dataset` gives (train, test) with columns ``image``
(uint8) or ``text`` (codes), ``label``, and the id of the person where there is one.
"""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset

from .hub import load_hub
from .rows import MIN_ROLE, TEST_SHARE, image_rows, text_rows

MOSAIC = 100

PIXELS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "femnist": ((0.0388,), (0.1656,)),
}


class DataError(ValueError):
    """A data file that is missing or is not what its name says."""


def load_dataset(name: str, data_dir: Path | None) -> tuple[Dataset, Dataset]:
    """Load one data set.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"femnist"``, ``"shakespeare"``.
    data_dir : Path or None
        Folder of the files; without one, from the hub.

    Returns
    -------
    tuple of (Dataset, Dataset)
        Train and test. Columns: ``image`` (uint8) and ``label``, with ``writer`` for
        FEMNIST; ``text``, ``label`` (80 codes each) and ``role`` for Shakespeare.

    Raises
    ------
    DataError
        If a file is missing, truncated or of another format, or the hub is away.
    """
    if data_dir is None:
        try:
            return load_hub(name)
        except OSError as error:  # no network, or the hub is down
            raise DataError(
                f"{name}: the Hugging Face hub does not answer ({error}). Connect, or "
                "give the folder of the files with --data."
            ) from error
    return READERS[name](Path(data_dir) / name)


def to_tensors(name: str, rows: Dataset) -> TensorDataset:
    """Turn rows into what a model takes: normalised float32 images, or codes.

    Pixels are brought to [0, 1], then to mean 0 and standard deviation 1 of the whole
    training set, a channel. FEMNIST is inverted first: its paper is white (255),
    whereas a model's zero padding should look like paper, as it does on MNIST.
    """
    if "text" in rows.column_names:
        columns = rows.with_format("numpy", dtype=np.int64)[:]
        return TensorDataset(*(torch.from_numpy(columns[c]) for c in ("text", "label")))
    pixels = rows.select_columns(["image"]).with_format("numpy", dtype=np.uint8)[:]
    labels = torch.tensor(np.asarray(rows["label"], np.int64))
    images = torch.from_numpy(pixels["image"]).float() / 255
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    images = 1 - images if name == "femnist" else images
    mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in PIXELS[name])
    return TensorDataset(((images - mean) / deviation).contiguous(), labels)


# --- Files ---


def read_mnist(folder: Path) -> tuple[Dataset, Dataset]:
    """Read the official IDX files."""

    def rows(name: str) -> Dataset:
        images = read_idx(folder / f"{name}-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", 1)
        _check_equal(folder / f"{name}-labels-idx1-ubyte.gz", len(images), len(labels))
        return image_rows(images, labels)

    return rows("train"), rows("t10k")


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
    if len(values) != np.prod(shape, dtype=np.int64):
        expected = f"{np.prod(shape, dtype=np.int64)} bytes after its header"
        raise _fault(path, expected, f"{len(values)}")
    return values.reshape(shape)


def read_cifar10(folder: Path) -> tuple[Dataset, Dataset]:
    """Read five training mosaics and the test one."""
    return _read_mosaics(folder, 5)


def read_cifar100(folder: Path) -> tuple[Dataset, Dataset]:
    """Read the one training mosaic, 10,000 of 50,000 images, and the test one."""
    return _read_mosaics(folder, 1)


def _read_mosaics(folder: Path, count: int) -> tuple[Dataset, Dataset]:
    labels = _read_npz(folder / "labels.npz", ("y_train", "y_test"))

    def rows(names: list[str], y: NDArray[Any]) -> Dataset:
        images = np.concatenate([read_mosaic(folder / f"{n}.webp") for n in names])
        if len(y) < len(images):
            _check_equal(folder / "labels.npz", len(images), len(y))
        return image_rows(images, y[: len(images)])

    names = [f"train_{number}" for number in range(1, count + 1)]
    return rows(names, labels["y_train"]), rows(["test"], labels["y_test"])


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


def read_femnist(folder: Path) -> tuple[Dataset, Dataset]:
    """Read LEAF's FEMNIST by writer."""
    path = folder / "femnist_leaf_105writers.npz"
    keys = [f"{k}_{part}" for part in ("train", "test") for k in ("x", "y", "writer")]
    arrays = _read_npz(path, (*keys, "writers"))

    def rows(part: str) -> Dataset:
        images, labels, owners = (arrays[f"{k}_{part}"] for k in ("x", "y", "writer"))
        _check_equal(path, len(images), len(labels))
        _check_equal(path, len(images), len(owners))
        return image_rows(images, labels, writer=arrays["writers"][owners].tolist())

    return rows("train"), rows("test")


def read_shakespeare(folder: Path) -> tuple[Dataset, Dataset]:
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
    train = text_rows([texts[role][: cuts[role]] for role in roles], roles)
    return train, text_rows([texts[role][cuts[role] :] for role in roles], roles)


def _read_npz(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    expected = f"an npz file with {', '.join(keys)}"
    with _reading(path, expected), path.open("rb") as file, np.load(file) as content:
        return {key: content[key] for key in keys}


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _fault(path, expected, "no such file") from error
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError),
        *(zlib.error, zipfile.BadZipFile),
    ) as error:
        raise _fault(path, expected, f"{type(error).__name__}: {error}") from error


def _check_equal(path: Path, images: int, labels: int) -> None:
    if images != labels:
        raise _fault(path, f"{images} labels, one an image", f"{labels}")


def _fault(path: Path, expected: str, got: str) -> DataError:
    line = " ".join(got.split())  # some decoders explain themselves over many lines
    return DataError(
        f"{path}: expected {expected}, got {line}. Copy the file again, or leave "
        "--data out to load from the Hugging Face hub."
    )


READERS = {
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "femnist": read_femnist,
    "shakespeare": read_shakespeare,
}
