"""What a plan leaves of each layer."""

from dataclasses import dataclass

import numpy as np

from .layout import TensorSpec
from .plan import Plan


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
