"""What the inner strategy remembers, and noise that no file may foretell.

``noisy`` says everywhere here that noise may be drawn in a run: generators, and what is
called a seed, are then neither kept nor put back.
"""

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from enum import Enum
from functools import partial
from inspect import isroutine
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flowers
from flwr.serverapp.strategy import Strategy

from ...errors import AutoFlipWarning
from .tree import is_storable

_QUIET = {
    kind.aggregate_train
    for kind in (
        *(flowers.Bulyan, flowers.FedAdagrad, flowers.FedAdam, flowers.FedAvg),
        *(flowers.FedAvgM, flowers.FedMedian, flowers.FedProx, flowers.FedTrimmedAvg),
        *(flowers.FedYogi, flowers.Krum, flowers.MultiKrum, flowers.QFedAvg),
    )
}


def _walk(
    strategy: Strategy, prefix: str = ""
) -> Iterator[tuple[str, Strategy, str, Any]]:
    """Give dotted name, owner, name and value, also of strategies inside."""
    for name, value in list(vars(strategy).items()):
        yield f"{prefix}{name}", strategy, name, value
        inside = vars(strategy).get(name)  # who asked may have taken it away
        if isinstance(inside, Strategy):
            yield from _walk(inside, f"{prefix}{name}.")


# --- Noise ---


def draws_noise(strategy: Strategy) -> bool:
    """Tell whether a strategy may add noise to what it aggregates.

    Flower's differential privacy does. So may any strategy with an ``aggregate_train``
    that is not Flower's own, alone or inside another.
    """
    every = [strategy, *(v for *_, v in _walk(strategy) if isinstance(v, Strategy))]
    return any(
        type(each).aggregate_train not in _QUIET or "aggregate_train" in vars(each)
        for each in every
    )


def nodes_draw_noise(grid: Grid) -> bool:
    """Tell whether nodes of this process noise what they send, as Flower's mod does.

    They share its generators. Elsewhere a server's generators say nothing of theirs.
    """
    mods = getattr(getattr(grid, "app", None), "_mods", ())  # private to Flower
    return any(isinstance(mod, LocalDpMod) for mod in mods)


def seed_anew(value: Any) -> None:
    """Let the operating system seed the global generators, and those in a strategy.

    Noise that was drawn before a stop is then never drawn again.
    """
    if isinstance(value, (random.Random, np.random.RandomState, torch.Generator)):
        value.seed()
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator
        bits.state = type(bits)().state
    elif isinstance(value, Strategy):
        random.seed()
        np.random.seed()  # noqa: NPY002 - Flower's DP draws from it
        torch.seed()
        seed_anew(vars(value))
    elif isinstance(value, (Mapping, list, tuple, set)):
        for each in value.values() if isinstance(value, Mapping) else value:
            seed_anew(each)


# --- Into a checkpoint, and back ---


def attributes_of(strategy: Strategy, noisy: bool = False) -> dict[str, Any]:
    """Take all that a strategy and those inside it remember, by dotted name.

    That is every attribute that a :class:`.Tree` can hold, or that has ``state_dict``
    and ``load_state_dict``, such as Flower's privacy accountant.
    """
    return {
        dotted: state
        for dotted, _, name, value in _walk(strategy)
        if is_storable(state := _state_of(value), noisy)
        and not (noisy and _is_seed(name))
    }


def restore_inplace(strategy: Strategy, attributes: Mapping[str, Any]) -> None:
    """Give a strategy back what :func:`attributes_of` took; the inverse.

    How many nodes have to be connected stays as it is.
    """
    for dotted, value in attributes.items():
        path, _, name = dotted.rpartition(".")
        owner = attrgetter(path)(strategy) if path else strategy
        own: Any = getattr(owner, name, None)
        if _has_state(own):
            own.load_state_dict(value)
        elif not _is_about_presence(name):
            setattr(owner, name, value)


def warn_unsaved(strategy: Strategy, noisy: bool = False) -> None:
    """Warn once of all attributes that may change in a run but cannot be saved."""
    _warn_of_unsaved(
        strategy,
        noisy,
        "checkpoints cannot hold {} of the inner strategy: if that changes during the "
        "run, a resumed run will differ. Numbers, arrays, lists and dicts of them, and "
        "what has state_dict and load_state_dict can be held.",
    )


def settings_of(strategy: Strategy, noisy: bool = False) -> dict[str, str]:
    """Describe how a strategy was built, by dotted name, before it ran.

    How many nodes have to be connected is left out: a federation may shrink.
    """
    settings = {"strategy": type(strategy).__qualname__}
    for dotted, _, name, value in _walk(strategy, "strategy."):
        if isinstance(value, Strategy):
            settings[dotted] = type(value).__qualname__
        elif (noisy and _is_seed(name)) or _is_about_presence(name):
            continue
        elif isinstance(value, (int, float, str)):
            settings[dotted] = repr(value)
    return settings


# --- One object, started twice ---


class Beginning:
    """What a strategy was before its first run: each later one begins there, too.

    What the app assigns between runs stays, and later runs begin with it. So does what
    a privacy accountant has counted: another run spends on top of it.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self._before: dict[tuple[int, str], Any] = {}
        self._after: dict[tuple[int, str], Any] = {}

    @contextmanager
    def restored(self, noisy: bool = False) -> Iterator[None]:
        """Put the strategy back to its beginning, and let a run change it.

        From the second run on it warns of attributes that no copy can be made of.
        """
        if self._after:
            _warn_of_unsaved(
                self.strategy,
                noisy,
                "this run begins with {} of the inner strategy as the last one left "
                "them: no copy can be made of them. Build a new AutoFlip if that "
                "matters.",
            )

        def copied(value: Any) -> Any:
            return deepcopy(value) if is_storable(value, noisy) else value

        for _, owner, name, value in _walk(self.strategy):
            key = id(owner), name
            if value is not self._after.get(key, self):  # the app's, not the run's
                self._before[key] = copied(_state_of(value))
            elif key not in self._before:
                delattr(owner, name)
            elif not _has_state(value):
                setattr(owner, name, copied(self._before[key]))
            elif not hasattr(value, "get_privacy_spent"):
                value.load_state_dict(copied(self._before[key]))
        try:
            yield
        finally:
            found = _walk(self.strategy)
            self._after = {(id(owner), name): value for _, owner, name, value in found}


# --- Which attributes ---


def _warn_of_unsaved(strategy: Strategy, noisy: bool, text: str) -> None:
    """Name the attributes that may change in a run but that a tree cannot hold."""
    names = ", ".join(
        f"{dotted} ({type(value).__name__})"
        for dotted, _, _, value in _walk(strategy)
        if not (_is_fixed(value) or is_storable(_state_of(value), noisy))
    )
    if names:
        warnings.warn(text.format(names), AutoFlipWarning, stacklevel=5)


def _is_fixed(value: Any) -> bool:
    """Tell settings from state: code, enumerations, frozen dataclasses."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return True
    return isinstance(value, (type, Enum, partial, Strategy)) or isroutine(value)


def _has_state(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _state_of(value: Any) -> Any:
    return dict(value.state_dict()) if _has_state(value) else value


def _is_seed(name: str) -> bool:
    return "seed" in name.lower()


def _is_about_presence(name: str) -> bool:
    """Tell settings that follow who is connected now, such as ``min_train_nodes``."""
    return name.startswith("min_") and name.endswith("_nodes")
