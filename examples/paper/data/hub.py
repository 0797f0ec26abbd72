"""The same data sets from the Hugging Face hub, through flwr-datasets."""

import numpy as np
from datasets import Dataset
from flwr_datasets import FederatedDataset

from .examples import MIN_ROLE, SEQUENCE, TEST_SHARE, Examples, windows_of

LEAF_TEST_SHARE = 0.1
SOURCES = {
    "mnist": ("ylecun/mnist", "image", "label", "L"),
    "cifar10": ("uoft-cs/cifar10", "img", "label", "RGB"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", "RGB"),
    "femnist": ("flwrlabs/femnist", "image", "character", "L"),
}
"""Data set's id, the columns of images and labels, the images' mode."""


def load_hub(name: str) -> tuple[Examples, Examples]:
    """Load (train, test) from the hub.

    FEMNIST and Shakespeare have one split there: a tenth of each writer's images, as
    LEAF splits them, or the last fifth of each role's windows is the test set.
    """
    if name == "shakespeare":
        return _split_by_owner(_windows(_load("flwrlabs/shakespeare")), TEST_SHARE)
    if name == "femnist":
        return _split_by_owner(_images(name, "train"), LEAF_TEST_SHARE)
    return _images(name, "train"), _images(name, "test")


def _load(dataset: str, split: str = "train") -> Dataset:
    # Unshuffled: Shakespeare's rows follow each other in time.
    federated = FederatedDataset(dataset=dataset, partitioners={}, shuffle=False)
    return federated.load_split(split)


def _images(name: str, split: str) -> Examples:
    """Decode a split's pictures."""
    dataset, image, label, mode = SOURCES[name]
    rows = _load(dataset, split)
    images = np.stack([np.asarray(picture.convert(mode)) for picture in rows[image]])
    owners = np.array(rows["writer_id"]) if "writer_id" in rows.column_names else None
    return Examples(images, np.asarray(rows[label], np.int64), owners)


def _windows(rows: Dataset) -> Examples:
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
    return windows_of(texts, roles)


def _split_by_owner(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Make the last share of what everybody has the test set."""
    assert examples.owners is not None
    test = np.zeros(len(examples), bool)
    for owner in np.unique(examples.owners):
        own = np.flatnonzero(examples.owners == owner)
        test[own[len(own) - max(1, round(share * len(own))) :]] = True
    train = np.flatnonzero(~test)
    return examples.select(train), examples.select(np.flatnonzero(test))
