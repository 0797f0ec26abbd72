"""``inspect``: what a file of a pruned model holds."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from ..graph.layout import TensorSpec
from ..graph.plan import Plan
from ..graph.save import read_pruned
from ..ledger.page.svg import amount, percent
from .output import print_json, print_table


@dataclass(frozen=True)
class LayerSize:
    """A layer before and after: the tensors of one module.

    Parameters
    ----------
    name : str
        The module's; "" for tensors of the model itself.
    dense_shape, shape : tuple of int
        Of its largest tensor, before and after.
    dense_parameters, parameters : int
        Trainable values; after, those that are kept.
    dense_macs, macs : int
        Forward multiply-accumulates an example.
    """

    name: str
    dense_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dense_parameters: int
    parameters: int
    dense_macs: int
    macs: int


def layer_sizes(plan: Plan) -> list[LayerSize]:
    """List the layers that have parameters, in the model's order.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    list of LayerSize
        MACs are the layout's: linear layers, convolutions and recurrent ones, whose
        weights multiply; single weights that went are computed, so they count.
    """
    layers: dict[str, list[TensorSpec]] = {}
    for spec in plan.layout.tensors:
        if spec.trainable:
            layers.setdefault(spec.name.rpartition(".")[0], []).append(spec)
    return [_size(name, tensors, plan) for name, tensors in layers.items()]


def _size(name: str, tensors: list[TensorSpec], plan: Plan) -> LayerSize:
    largest = max(tensors, key=lambda t: t.size)
    small = {t.name: plan.small_shape(t.name) for t in tensors}
    return LayerSize(
        name,
        largest.shape,
        small[largest.name],
        sum(t.size for t in tensors),
        sum(plan.count(t.name) for t in tensors),
        round(sum(t.macs_per_weight * t.size for t in tensors)),
        round(sum(t.macs_per_weight * float(np.prod(small[t.name])) for t in tensors)),
    )


def describe(path: Path) -> dict[str, Any]:
    """Put what a file holds into figures.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        The dense model's are from the layout inside the file.

    Raises
    ------
    AutoFlipError
        If it is no whole pruned model.
    """
    plan, arrays = read_pruned(path)
    layers = layer_sizes(plan)
    dense = sum(t.size * np.dtype(t.dtype).itemsize for t in plan.layout.tensors)
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "parameters": plan.num_parameters,
        "dense_parameters": plan.layout.num_parameters,
        "macs": sum(layer.macs for layer in layers),
        "dense_macs": sum(layer.dense_macs for layer in layers),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "dense_bytes": dense,
        "units": _units(plan),
        "layers": [asdict(layer) for layer in layers],
    }


def _units(plan: Plan) -> dict[str, dict[str, int]]:
    return {
        group.name: {"kept": len(plan.keep[group.name]), "dense": group.size}
        for group in plan.layout.groups
    }


def show_model(path: Path, as_json: bool) -> None:
    """Print a pruned model's layers and totals, or JSON."""
    found = describe(path)
    if as_json:
        print_json(found)
        return
    rows = [_row(LayerSize(**layer)) for layer in found["layers"]]
    rows.append(("", "", "", "", ""))
    rows.append(("total", "", "", _kept(found, "parameters"), _kept(found, "macs")))
    heads = ("layer", "before", "after", "parameters", "MACs")
    print_table(heads, rows, words=(0, 1, 2))
    size, dense = found["bytes"], found["dense_bytes"]
    typer.echo(
        f"\nIn memory {amount(size, 'B')} of {amount(dense, 'B')}"
        f"{_of(size, dense)}; the file has {amount(found['file_bytes'], 'B')}."
    )


def _row(layer: LayerSize) -> tuple[str, ...]:
    return (
        layer.name or "(model)",
        "x".join(map(str, layer.dense_shape)),
        "x".join(map(str, layer.shape)),
        _share(layer.parameters, layer.dense_parameters),
        _share(layer.macs, layer.dense_macs) if layer.dense_macs else "-",
    )


def _kept(found: dict[str, Any], key: str) -> str:
    return _share(found[key], found[f"dense_{key}"])


def _share(small: int, dense: int) -> str:
    return amount(small) + _of(small, dense)


def _of(small: int, dense: int) -> str:
    return f" ({percent(small / dense)})" if dense else ""
