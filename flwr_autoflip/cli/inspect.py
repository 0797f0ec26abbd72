"""``inspect``: what a file of a pruned model holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from ..graph.plan import Plan
from ..graph.save import read_pruned
from ..graph.summary import LayerSize, layer_sizes
from ..ledger.page.svg import amount, percent
from .output import print_json, print_table


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
    dense = sum(t.size * _itemsize(t.dtype) for t in plan.layout.tensors)
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


def _itemsize(dtype: str) -> int:
    import numpy as np

    return np.dtype(dtype).itemsize


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
