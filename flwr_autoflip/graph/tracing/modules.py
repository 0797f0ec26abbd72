"""Rules for whole layers, where operators inside say too little.

A layer with a rule here is not followed operator by operator: its rule sees the
module, labels of its own tensors and of its inputs, and answers with labels of its
outputs. Add one for a layer type of your own with :func:`layer_rule`, and teach
:func:`.shrink.register_resize` which size attributes it has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .propagate import Flow, Labels, Units, fixed


@dataclass
class LayerCall:
    """One layer at work.

    Parameters
    ----------
    units : Units
        Couples and freezes labels.
    module : nn.Module
    tensors : mapping of str to Flow
        Labels of its own tensors, by local name.
    inputs : sequence of Flow
        Labels of its tensor arguments, in order.
    outputs : sequence of Tensor
        Tensors it gave out, flattened.
    """

    units: Units
    module: Any
    tensors: Mapping[str, Flow]
    inputs: Sequence[Flow]
    outputs: Sequence[torch.Tensor]

    def consume(self, name: str, axis: int, labels: Labels, macs: float) -> None:
        """Say that a weight's axis takes in these units, at these MACs an element."""
        self.units.couple(self.tensors[name].axes[axis], labels)
        self.units.consume(self.tensors[name], axis, macs)

    def stay_dense(self) -> list[Flow]:
        """Freeze the layer and what it takes in; give outputs that cannot go."""
        for flow in (*self.tensors.values(), *self.inputs):
            self.units.freeze(*flow.axes)
        return [Flow([fixed(n) for n in out.shape]) for out in self.outputs]


LayerRule = Callable[[LayerCall], list[Flow]]
LAYER_RULES: dict[type[nn.Module], LayerRule] = {}


def layer_rule(*kinds: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
    """Register the rule of layer types; subclasses need their own.

    Parameters
    ----------
    *kinds : type

    Returns
    -------
    callable
        Decorator for ``function(call: LayerCall) -> list of Flow``.
    """

    def register(function: LayerRule) -> LayerRule:
        for kind in kinds:
            LAYER_RULES[kind] = function
        return function

    return register


@layer_rule(nn.LSTM, nn.GRU, nn.RNN)
def _recurrent(call: LayerCall) -> list[Flow]:
    """Hidden unit h: its rows in every gate, its recurrent column, its output.

    One ``nn.LSTM`` has one hidden size, so unit h of all its layers and directions is
    one unit. (Two modules of one layer each are pruned apart.)
    """
    module, units = call.module, call.units
    states = 2 if isinstance(module, nn.LSTM) else 1
    packed = len(call.outputs) > 1 + states
    if module.proj_size or packed:
        return call.stay_dense()
    hidden = units.new(module.hidden_size)
    directions = 2 if module.bidirectional else 1
    features = call.inputs[0].axes[-1]
    steps = float(call.outputs[0].numel() // (directions * module.hidden_size))
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            end = f"l{layer}{suffix}"
            call.consume(f"weight_ih_{end}", 1, features, steps)
            call.consume(f"weight_hh_{end}", 1, hidden, steps)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                if f"{kind}_{end}" in call.tensors:
                    rows = call.tensors[f"{kind}_{end}"].axes[0]
                    for gate in rows.reshape(-1, module.hidden_size):
                        units.couple(gate, hidden)
        features = np.tile(hidden, directions)
    for state in call.inputs[1:]:
        units.couple(state.axes[-1], hidden)
    flows = [Flow([*map(fixed, call.outputs[0].shape[:-1]), features])]
    for last in call.outputs[1:]:
        flows.append(Flow([*map(fixed, last.shape[:-1]), hidden]))
    return flows


@layer_rule(nn.MultiheadAttention)
def _attention(call: LayerCall) -> list[Flow]:
    """Units are whole heads: their rows of query, key and value, and what they feed."""
    module, units = call.module, call.units
    embedding, heads = module.embed_dim, module.num_heads
    features = call.tensors["out_proj.weight"].axes[0]
    output = Flow([*call.inputs[0].axes[:-1], features])
    rest = [Flow([fixed(n) for n in out.shape]) for out in call.outputs[1:]]
    extra = module.add_zero_attn or module.bias_k is not None
    if "in_proj_weight" not in call.tensors or extra:
        return call.stay_dense()
    per_head = np.repeat(units.new(heads), embedding // heads)
    tokens = [math.prod(map(len, flow.axes[:-1])) for flow in call.inputs[:3]]
    for flow, rows in zip(call.inputs[:3], tokens, strict=True):
        # Each input meets a third of the rows; scores themselves have no weights.
        call.consume("in_proj_weight", 1, flow.axes[-1], rows / 3)
    for name in ("in_proj_weight", "in_proj_bias"):
        if name in call.tensors:
            for third in call.tensors[name].axes[0].reshape(3, embedding):
                units.couple(third, per_head)
    call.consume("out_proj.weight", 1, per_head, tokens[0])
    if "out_proj.bias" in call.tensors:
        units.couple(call.tensors["out_proj.bias"].axes[0], output.axes[-1])
    return [output, *rest]
