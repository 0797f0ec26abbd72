"""Shared by all tests: quiet Flower, one thread, helpers on the path."""

import logging
import random

import numpy as np
import pytest
import torch

logging.getLogger("flwr").setLevel(logging.ERROR)
torch.set_num_threads(1)  # many only get in each other's way, and sum in other orders


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - Flower's DP draws from it
    torch.manual_seed(0)
