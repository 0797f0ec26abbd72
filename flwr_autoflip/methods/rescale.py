"""Make up for lost inputs when a plan is made."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.layout import Arrays
from ..graph.plan import Plan


def rescale_fan_in(arrays: Arrays, plan: Plan) -> dict[str, NDArray[Any]]:
    """Multiply kept weights by ``sqrt(full fan-in / kept fan-in)``.

    A layer that loses inputs gives smaller outputs; this keeps their variance. Layers
    that feed a normalisation do not need it. Not in the paper: our own default, since
    it starts faster (random units gain from it as much). Takes and gives dense arrays,
    of which only layers that lost inputs are new.
    """
    scaled = dict(arrays)
    for spec in plan.layout.tensors:
        if spec.normalized or not spec.input_axes:
            continue
        full = np.prod([spec.shape[axis] for axis in spec.input_axes])
        small = plan.small_shape(spec.name)
        kept = np.prod([small[axis] for axis in spec.input_axes])
        if kept < full:
            dense = np.array(arrays[spec.name])
            factor = np.asarray(np.sqrt(full / kept), dense.dtype)
            plan.put(spec.name, dense, plan.take(spec.name, dense) * factor)
            scaled[spec.name] = dense
    return scaled
