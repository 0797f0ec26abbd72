"""The same data sets from the Hugging Face hub, through flwr-datasets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, Dataset, Features, Value
from flwr_datasets import FederatedDataset

from .rows import MIN_ROLE, SEQUENCE, TEST_SHARE, text_rows

LEAF_TEST_SHARE = 0.1


@dataclass(frozen=True)
class ImageSource:
    """Where a data set of images lies and what its columns are called."""

    dataset: str
    image: str
    label: str
    shape: tuple[int, ...]
    writer: str = ""


IMAGES = {
    "mnist": ImageSource("ylecun/mnist", "image", "label", (28, 28)),
    "cifar10": ImageSource("uoft-cs/cifar10", "img", "label", (32, 32, 3)),
    "cifar100": ImageSource("uoft-cs/cifar100", "img", "fine_label", (32, 32, 3)),
    "femnist": ImageSource(
        "flwrlabs/femnist", "image", "character", (28, 28), "writer_id"
    ),
}
SHAKESPEARE = "flwrlabs/shakespeare"


def load_hub(name: str) -> tuple[Dataset, Dataset]:
    """Load (train, test) from the hub, with the columns of the files.

    FEMNIST and Shakespeare have one split there: a tenth of each writer's images, as
    LEAF splits them, or the last fifth of each role's windows is the test set.
    """
    if name == "shakespeare":
        rows = _load(SHAKESPEARE, "train")
        return _split_by(windows(rows), "role", TEST_SHARE)
    source = IMAGES[name]
    if source.writer:
        rows = image_columns(_load(source.dataset, "train"), source)
        return _split_by(rows, "writer", LEAF_TEST_SHARE)
    train, test = (_load(source.dataset, split) for split in ("train", "test"))
    return image_columns(train, source), image_columns(test, source)


def _load(dataset: str, split: str) -> Dataset:
    # Unshuffled: Shakespeare's rows follow each other in time.
    federated = FederatedDataset(dataset=dataset, partitioners={}, shuffle=False)
    return federated.load_split(split)


def image_columns(rows: Dataset, source: ImageSource) -> Dataset:
    """Decode a hub's pictures into our columns."""
    grey = len(source.shape) == 2
    array = (Array2D if grey else Array3D)(source.shape, "uint8")
    features = {"image": array, "label": Value("int64")}
    features |= {"writer": Value("string")} if source.writer else {}

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        picture = row[source.image].convert("L" if grey else "RGB")
        columns = {"image": np.asarray(picture), "label": row[source.label]}
        return columns | ({"writer": row[source.writer]} if source.writer else {})

    return rows.map(
        convert, remove_columns=rows.column_names, features=Features(features)
    )


def windows(rows: Dataset) -> Dataset:
    """Rebuild text from LEAF's examples, each one symbol further than the last."""
    owners = np.asarray(rows["character_id"])
    texts, roles = [], []
    for role in dict.fromkeys(owners.tolist()):
        own = np.flatnonzero(owners == role)
        if len(own) + SEQUENCE < MIN_ROLE:
            continue
        steps = rows.select(own[::SEQUENCE])
        texts.append("".join(steps["x"]) + steps["y"][-1])
        roles.append(role)
    return text_rows(texts, roles)


def _split_by(rows: Dataset, column: str, share: float) -> tuple[Dataset, Dataset]:
    owners = np.asarray(rows[column])
    test = np.zeros(len(rows), bool)
    for owner in dict.fromkeys(owners.tolist()):
        own = np.flatnonzero(owners == owner)
        test[own[len(own) - max(1, round(share * len(own))) :]] = True
    return rows.select(np.flatnonzero(~test)), rows.select(np.flatnonzero(test))
