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
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from .examples import DataError, Examples
from .files import READERS
from .hub import load_hub

__all__ = ["DataError", "Examples", "load_dataset", "to_tensors"]

PIXELS = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "femnist": ((0.0388,), (0.1656,)),
}
"""Mean and standard deviation of a training set's pixels in [0, 1], a channel."""


def load_dataset(name: str, data_dir: Path | None) -> tuple[Examples, Examples]:
    """Load one data set.

    Parameters
    ----------
    name : str
        ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"femnist"``, ``"shakespeare"``.
    data_dir : Path or None
        Folder of the files; without one, from the hub.

    Returns
    -------
    tuple of (Examples, Examples)
        Train and test; FEMNIST's owners are writers, Shakespeare's roles.

    Raises
    ------
    DataError
        If a file is missing, truncated or of another format, or the hub is away.
    """
    if data_dir is not None:
        return READERS[name](Path(data_dir) / name)
    try:
        return load_hub(name)
    except OSError as error:  # no network, or the hub is down
        raise DataError(
            f"{name}: the Hugging Face hub does not answer ({error}). Connect, or "
            "give the folder of the files with --data."
        ) from error


def to_tensors(
    name: str, examples: Examples, chosen: NDArray[Any] | None = None
) -> TensorDataset:
    """Turn examples into what a model takes: normalised float32 images, or codes.

    Pixels are brought to [0, 1], then to mean 0 and standard deviation 1 of the whole
    training set, a channel. FEMNIST is inverted first: its paper is white (255),
    whereas a model's zero padding should look like paper, as it does on MNIST.

    Parameters
    ----------
    name : str
        Of the data set.
    examples : Examples
    chosen : ndarray of int, optional
        Which of them, in this order; left out, all.

    Returns
    -------
    TensorDataset
        Inputs and int64 labels.
    """
    rows = slice(None) if chosen is None else chosen
    inputs, labels = examples.inputs[rows], torch.from_numpy(examples.labels[rows])
    if name not in PIXELS:
        return TensorDataset(torch.from_numpy(inputs.astype(np.int64)), labels)
    images = torch.from_numpy(inputs).float() / 255
    images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    images = 1 - images if name == "femnist" else images
    mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in PIXELS[name])
    return TensorDataset(((images - mean) / deviation).contiguous(), labels)
