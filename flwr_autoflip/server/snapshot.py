"""What a server's process holds beside our own state: strategies and generators."""

import dataclasses
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from inspect import isroutine
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from ..errors import AutoFlipWarning
from ..methods import Policy
from .noise import is_seed
from .tree import Kind, TreeWriter

Attributes = dict[str, Any]
_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        *(np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM),
        *(np.random.Philox, np.random.SFC64),
    )
}


def _arrays_of(record: ArrayRecord) -> dict[str, Any]:
    return {name: array.numpy() for name, array in record.items()}


def _record_of(arrays: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _random_from(state: tuple[Any, ...]) -> random.Random:
    generator = random.Random()
    generator.setstate(state)
    return generator


def _numpy_from(state: dict[str, Any]) -> np.random.Generator:
    generator = np.random.Generator(_BIT_GENERATORS[state["bit_generator"]]())
    generator.bit_generator.state = state
    return generator


PLAIN_KINDS = (
    Kind("arrays", ArrayRecord, _arrays_of, _record_of),
    Kind("metrics", MetricRecord, dict, MetricRecord),
    Kind("config", ConfigRecord, dict, ConfigRecord),
    Kind("tensor", torch.Tensor, lambda t: t.detach().cpu().numpy(), torch.from_numpy),
)
"""What a state may hold beside plain values, but for generators."""

KINDS = (
    *PLAIN_KINDS,
    Kind("random", random.Random, random.Random.getstate, _random_from),
    Kind(
        "generator",
        np.random.Generator,
        lambda generator: generator.bit_generator.state,
        _numpy_from,
    ),
)
"""And with them."""


# --- Strategies ---


def attributes_of(strategy: Strategy, noisy: bool = False) -> Attributes:
    """Take what a strategy remembers, and the strategies that it wraps.

    Parameters
    ----------
    strategy : Strategy
        Momentum, moments, clipping norms, whatever it has: every attribute that a tree
        can hold (see :data:`KINDS`), or that has ``state_dict`` and
        ``load_state_dict``, such as Flower's privacy accountant.
    noisy : bool (default: False)
        Leave out what foretells noise: generators, and what is called a seed.

    Returns
    -------
    dict of str to object
        Attribute name to value; a dict of the same kind for a strategy.
    """
    taken: Attributes = {}
    kinds = PLAIN_KINDS if noisy else KINDS
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            taken[name] = attributes_of(value, noisy)
        elif noisy and is_seed(name):
            continue
        elif _is_storable(state := state_of(value), kinds):
            taken[name] = state
    return taken


def restore_inplace(strategy: Strategy, attributes: Attributes) -> None:
    """Give a strategy back what :func:`attributes_of` took; the inverse.

    Parameters
    ----------
    strategy : Strategy
        Built as the one that was saved.
    attributes : dict of str to object
    """
    for name, value in attributes.items():
        own: Any = getattr(strategy, name, None)
        if isinstance(own, Strategy):
            restore_inplace(own, value)
        elif has_state(own):
            own.load_state_dict(value)
        elif not _is_about_presence(name):
            setattr(strategy, name, value)


def warn_unsaved(strategy: Strategy, noisy: bool = False) -> None:
    """Warn of attributes that may change in a run but cannot be saved.

    Functions, classes, enumerations and frozen dataclasses are settings, not state.

    Warns
    -----
    AutoFlipWarning
        With all of them, also those of strategies inside strategies.
    """
    if names := unsaved(strategy, PLAIN_KINDS if noisy else KINDS):
        warnings.warn(
            f"checkpoints cannot hold {', '.join(names)} of the inner strategy: if "
            "that changes during the run, a resumed run will differ. Numbers, arrays, "
            "lists and dicts of them, and what has state_dict and load_state_dict can "
            "be held.",
            AutoFlipWarning,
            stacklevel=4,
        )


def unsaved(strategy: Strategy, kinds: Sequence[Kind]) -> list[str]:
    """Name the attributes that may change in a run but that a tree cannot hold."""
    names = []
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            names += [f"{name}.{inner}" for inner in unsaved(value, kinds)]
        elif not (_is_storable(state_of(value), kinds) or _is_fixed(value)):
            names.append(f"{name} ({type(value).__name__})")
    return names


def has_state(value: Any) -> bool:
    """Tell whether a value gives and takes its state itself."""
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def state_of(value: Any) -> Any:
    """Give a value's state, or the value where it is its own state."""
    return dict(value.state_dict()) if has_state(value) else value


def _is_storable(value: Any, kinds: Sequence[Kind]) -> bool:
    try:
        TreeWriter(kinds).write(value)
    except TypeError:
        return False
    return True


def _is_fixed(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    frozen = parameters is not None and parameters.frozen
    return frozen or isinstance(value, (type, Enum, partial)) or isroutine(value)


def _is_about_presence(name: str) -> bool:
    """Tell settings that follow who is connected now, such as ``min_train_nodes``."""
    return name.startswith("min_") and name.endswith("_nodes")


# --- Settings: is it the same run? ---


def settings_of(
    strategy: Strategy, noisy: bool = False, prefix: str = "strategy"
) -> dict[str, str]:
    """Describe how a strategy was built, before it ran.

    Parameters
    ----------
    strategy : Strategy
    noisy : bool (default: False)
        Leave out what is called a seed.
    prefix : str (default: "strategy")

    Returns
    -------
    dict of str to str
        Dotted attribute name to a text; a strategy's own name to its class. How many
        nodes have to be connected is left out: a federation may shrink.
    """
    settings = {prefix: type(strategy).__qualname__}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            settings |= settings_of(value, noisy, f"{prefix}.{name}")
        elif noisy and is_seed(name):
            continue
        elif isinstance(value, (int, float, str)) and not _is_about_presence(name):
            settings[f"{prefix}.{name}"] = repr(value)
    return settings


def describe_policy(policy: Policy) -> str:
    """Describe a policy by its class and, if it is a dataclass, its fields."""
    name = type(policy).__qualname__
    return repr(policy) if dataclasses.is_dataclass(policy) else name


def differences(
    before: Mapping[str, str], now: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """List the settings that differ: name, what it was, what it is."""
    for name in {**before, **now}:
        was, is_now = before.get(name, "absent"), now.get(name, "absent")
        if was != is_now:
            yield name, was, is_now


# --- Generators of the process ---


def take_generators() -> dict[str, Any]:
    """Take the states of Python's, NumPy's and PyTorch's global generators.

    Flower samples nodes with the first and its differential privacy draws from the
    second; in one process nodes use all of them.
    """
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - Flower's DP draws from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def set_generators(states: Mapping[str, Any]) -> None:
    """Set the global generators to states of :func:`take_generators`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
