"""Tiny data sets in the formats of the paper example's real files."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_all(folder: Path) -> None:
    """Write five small data sets of random content.

    MNIST has 400 and 60 images, CIFAR's have one pixel, five writers have 20 to 40
    images and a sixth test images only, three plays have a long and a short role.
    """
    rng = np.random.default_rng(0)
    for name in ("mnist", "cifar10", "cifar100", "femnist", "shakespeare"):
        (folder / name).mkdir(parents=True)
    for part, count in (("train", 400), ("t10k", 60)):
        images = rng.integers(0, 256, (count, 28, 28))
        write_idx(folder / "mnist" / f"{part}-images-idx3-ubyte.gz", images)
        labels = np.arange(count) % 10
        write_idx(folder / "mnist" / f"{part}-labels-idx1-ubyte.gz", labels)
    write_mosaics(folder / "cifar10", 5, 10, rng)
    write_mosaics(folder / "cifar100", 1, 100, rng)
    write_femnist(folder / "femnist", rng)
    letters = np.array(list("abcdefgh \n"))
    rows = [
        {"play": f"Play {play}", "role": role, "text": "".join(drawn)}
        for play in range(3)
        for role, length in (("LONG", 4000), ("SHORT", 1999))
        for drawn in [rng.choice(letters, length)]
    ]
    content = gzip.compress(json.dumps(rows).encode())
    (folder / "shakespeare" / "bosak_plays_by_role.json.gz").write_bytes(content)


def write_idx(path: Path, values: NDArray[Any]) -> None:
    """Write one gzipped IDX file of unsigned bytes."""
    header = np.array([0x0800 + values.ndim, *values.shape], ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


def write_mosaics(
    folder: Path, count: int, classes: int, rng: np.random.Generator
) -> None:
    """Write mosaics of 100x100 images of a single pixel."""
    for name in (*(f"train_{i + 1}" for i in range(count)), "test"):
        pixels = rng.integers(0, 256, (100, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.webp", lossless=True)
    labels = np.arange(50_000, dtype=np.int64) % classes
    np.savez(folder / "labels.npz", y_train=labels, y_test=labels[:10_000])


def write_femnist(folder: Path, rng: np.random.Generator) -> None:
    """Write the images of six writers."""
    owners = np.repeat(np.arange(5), [20, 25, 30, 35, 40])
    arrays: dict[str, Any] = {"writers": np.array([f"f{i:04}_00" for i in range(6)])}
    for part, who in (("train", owners), ("test", np.arange(12) % 6)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (len(who), 28, 28), np.uint8)
        arrays[f"y_{part}"] = rng.integers(0, 62, len(who), np.uint8)
        arrays[f"writer_{part}"] = who.astype(np.int16)
    np.savez(folder / "femnist_leaf_105writers.npz", **arrays)
