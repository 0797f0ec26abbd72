"""Noise that no file may foretell: which strategies draw it, and from what."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)

_QUIET = {
    kind.aggregate_train
    for kind in (
        *(Bulyan, FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, FedProx),
        *(FedTrimmedAvg, FedYogi, Krum, MultiKrum, QFedAvg),
    )
}


def draws_noise(strategy: Strategy) -> bool:
    """Tell whether a strategy may add noise to what it aggregates.

    Flower's differential privacy does. So may any strategy with an ``aggregate_train``
    that is not Flower's own, alone or inside another.
    """
    own = vars(strategy)
    if type(strategy).aggregate_train not in _QUIET or "aggregate_train" in own:
        return True
    return any(draws_noise(v) for v in own.values() if isinstance(v, Strategy))


def nodes_draw_noise(grid: Grid) -> bool:
    """Tell whether nodes of this process noise what they send, as Flower's mod does.

    They share its generators. Elsewhere a server's generators say nothing of theirs.
    """
    mods = getattr(getattr(grid, "app", None), "_mods", ())  # private to Flower
    return any(isinstance(mod, LocalDpMod) for mod in mods)


def is_seed(name: str) -> bool:
    """Tell whether an attribute goes by the name of a seed."""
    return "seed" in name.lower()


def seed_anew(strategy: Strategy) -> None:
    """Let the operating system seed the global generators, and a strategy's own.

    Noise that was drawn before a stop is then never drawn again.
    """
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    _seed_anew(strategy)


def _seed_anew(value: Any) -> None:
    if isinstance(value, (random.Random, np.random.RandomState, torch.Generator)):
        value.seed()
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator
        bits.state = type(bits)().state
    elif isinstance(value, (Strategy, Mapping, list, tuple, set)):
        inside = vars(value) if isinstance(value, Strategy) else value
        for each in inside.values() if isinstance(inside, Mapping) else inside:
            _seed_anew(each)
