"""Tiny data sets in the formats of the paper example's real files."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PLAYS = 3
ROLE_LENGTH = 4000


def write_all(folder: Path) -> None:
    """Write five small data sets of random content."""
    generator = np.random.default_rng(0)
    for name in ("mnist", "cifar10", "cifar100", "femnist", "shakespeare"):
        (folder / name).mkdir(parents=True)
    write_mnist(folder / "mnist", generator)
    write_mosaics(folder / "cifar10", 5, 10, generator)
    write_mosaics(folder / "cifar100", 1, 100, generator)
    write_femnist(folder / "femnist", generator)
    write_shakespeare(folder / "shakespeare", generator)


def write_idx(path: Path, values: NDArray[Any]) -> None:
    """Write one gzipped IDX file of unsigned bytes."""
    header = np.array([0x0800 + values.ndim, *values.shape], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_mnist(folder: Path, generator: np.random.Generator) -> None:
    """Write 400 images for training and 60 for testing, classes in turn."""
    for part, count in (("train", 400), ("t10k", 60)):
        images = generator.integers(0, 256, (count, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)


def write_mosaics(
    folder: Path, count: int, classes: int, generator: np.random.Generator
) -> None:
    """Write mosaics of 100x100 images of a single pixel."""
    for name in (*(f"train_{i + 1}" for i in range(count)), "test"):
        pixels = generator.integers(0, 256, (100, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.webp", lossless=True)
    labels = np.arange(50_000, dtype=np.int64) % classes
    np.savez(folder / "labels.npz", y_train=labels, y_test=labels[:10_000])


def write_femnist(folder: Path, generator: np.random.Generator) -> None:
    """Write writers 0 to 4 with 20 to 40 images each; 5 has test images only."""
    owners = np.repeat(np.arange(5), [20, 25, 30, 35, 40])
    arrays: dict[str, Any] = {"writers": np.array([f"f{i:04}_00" for i in range(6)])}
    for part, who in (("train", owners), ("test", np.arange(12) % 6)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (len(who), 28, 28), np.uint8)
        arrays[f"y_{part}"] = generator.integers(0, 62, len(who), np.uint8)
        arrays[f"writer_{part}"] = who.astype(np.int16)
    np.savez(folder / "femnist_leaf_105writers.npz", **arrays)


def write_shakespeare(folder: Path, generator: np.random.Generator) -> None:
    """Write a long and a short role a play."""
    letters = np.array(list("abcdefgh \n"))
    rows = [
        {"play": f"Play {play}", "role": role, "text": "".join(drawn)}
        for play in range(PLAYS)
        for role, length in (("LONG", ROLE_LENGTH), ("SHORT", 1999))
        for drawn in [generator.choice(letters, length)]
    ]
    content = gzip.compress(json.dumps(rows).encode())
    (folder / "bosak_plays_by_role.json.gz").write_bytes(content)
