"""``inspect``: what a file of a pruned model holds."""

from pathlib import Path
from typing import Any

import numpy as np
import typer

from ..graph.layout import TensorSpec
from ..graph.plan import Plan
from ..graph.save import read_pruned
from ..ledger.amounts import amount, percent
from .output import print_json, print_table


def layer_sizes(plan: Plan) -> list[dict[str, Any]]:
    """List what a plan leaves of the layers that have parameters.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    list of dict
        In the model's order: ``name``, "" for tensors of the model itself; ``shape``
        of the largest tensor, ``parameters`` (trainable values), ``macs`` (forward, an
        example), and each of these with ``dense_`` before it. MACs are the layout's:
        linear layers, convolutions and recurrent ones, whose weights multiply; single
        weights that are pruned are computed, so they count.
    """
    layers: dict[str, list[TensorSpec]] = {}
    for spec in plan.layout.tensors:
        if spec.trainable:
            layers.setdefault(spec.name.rpartition(".")[0], []).append(spec)
    return [_size(name, tensors, plan) for name, tensors in layers.items()]


def _size(name: str, tensors: list[TensorSpec], plan: Plan) -> dict[str, Any]:
    largest = max(tensors, key=lambda t: t.size)
    macs = sum(t.macs_per_weight * np.prod(plan.small_shape(t.name)) for t in tensors)
    return {
        "name": name,
        "dense_shape": largest.shape,
        "shape": plan.small_shape(largest.name),
        "dense_parameters": sum(t.size for t in tensors),
        "parameters": sum(plan.count(t.name) for t in tensors),
        "dense_macs": round(sum(t.macs_per_weight * t.size for t in tensors)),
        "macs": round(float(macs)),
    }


def describe(path: Path) -> dict[str, Any]:
    """Put what a file holds into figures; the dense model's are the layout's in it.

    Raises
    ------
    AutoFlipError
        If it is no whole pruned model.
    """
    plan, arrays = read_pruned(path)
    layers, layout = layer_sizes(plan), plan.layout
    return {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "parameters": plan.num_parameters,
        "dense_parameters": layout.num_parameters,
        "macs": sum(layer["macs"] for layer in layers),
        "dense_macs": sum(layer["dense_macs"] for layer in layers),
        "bytes": sum(array.nbytes for array in arrays.values()),
        "dense_bytes": sum(t.size * np.dtype(t.dtype).itemsize for t in layout.tensors),
        "units": {
            group.name: {"kept": len(plan.keep[group.name]), "dense": group.size}
            for group in layout.groups
        },
        "layers": layers,
    }


def show_model(path: Path, as_json: bool) -> None:
    """Print a pruned model's layers and totals, or JSON."""
    found = describe(path)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            layer["name"] or "(model)",
            "x".join(map(str, layer["dense_shape"])),
            "x".join(map(str, layer["shape"])),
            _kept(layer, "parameters"),
            _kept(layer, "macs") if layer["dense_macs"] else "-",
        )
        for layer in found["layers"]
    ]
    total = ("total", "", "", _kept(found, "parameters"), _kept(found, "macs"))
    heads = ("layer", "before", "after", "parameters", "MACs")
    print_table(heads, [*rows, [""] * 5, total], words=(0, 1, 2))
    size, dense = found["bytes"], found["dense_bytes"]
    typer.echo(
        f"\nIn memory {amount(size, 'B')} of {amount(dense, 'B')}"
        f"{_of(size, dense)}; the file has {amount(found['file_bytes'], 'B')}."
    )


def _kept(found: dict[str, Any], key: str) -> str:
    return amount(found[key]) + _of(found[key], found[f"dense_{key}"])


def _of(small: int, dense: int) -> str:
    return f" ({percent(small / dense)})" if dense else ""
