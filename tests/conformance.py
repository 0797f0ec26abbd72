"""What tracing, shrinking and expanding promise, checked on any model.

Whoever teaches the package a layer adds a model that holds it to the table in
``graph/test_layers.py``, and :func:`check_model` does the rest.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from models import random_arrays, random_plan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from flwr_autoflip import AutoFlipWarning, Layout, Plan, expand, shrink, trace
from flwr_autoflip.graph import codec
from flwr_autoflip.graph.pack import pack, pack_small, unpack_small
from flwr_autoflip.graph.shrink import (
    arrays_of,
    build_small,
    describe,
    hold_mask,
    load_arrays_inplace,
)
from flwr_autoflip.graph.tracing.verify import answering_groups
from flwr_autoflip.ledger.cost import count_macs

Inputs = tuple[Any, ...]
Macs = Callable[[nn.Module], float]


def check_model(
    model_fn: Callable[[], nn.Module],
    inputs: Tensor | Inputs,
    groups: dict[str, int] | None = None,
    *,
    ignored_layers: Sequence[str] = (),
    warns: str = "",
    rate: float = 0.1,
    unseen_macs: Macs | None = lambda small: 0.0,
    seeds: Sequence[int] = (0, 1, 2),
) -> Layout:
    """Check a model in float64: all that is promised of layouts, plans, small models.

    Parameters
    ----------
    model_fn : callable
        Gives the dense model.
    inputs : Tensor or tuple
        A batch of at least two examples along axis 0; one of them is traced.
    groups : dict of str to int, optional
        Expected groups and their sizes, in order.
    ignored_layers : sequence of str (default: ())
        :func:`trace`'s.
    warns : str (default: "")
        A pattern that tracing's warnings match. Without it none may come.
    rate : float (default: 0.1)
        Learning rate of the steps that are compared.
    unseen_macs : callable, optional
        Small model -> MACs an example that ``plan.macs`` leaves out, such as those of
        attention scores; None where they are not to be compared.
    seeds : sequence of int (default: 0, 1, 2)
        Of random plans; that of seed 2 prunes single weights, too.

    Returns
    -------
    Layout
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    with pytest.warns(AutoFlipWarning, match=warns) if warns else nullcontext():
        layout = trace(model_fn(), tuple(x[:1] for x in inputs), ignored_layers)
    assert groups is None or sizes(layout) == groups
    check_layout(model_fn(), layout)
    model, alive = prepare(model_fn), []
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    for seed in seeds:
        plan = random_plan(layout, seed, masked=seed == 2)
        check_values(plan, seed)
        calibrate_inplace(model, plan, inputs)
        alive.append(check_outputs(model, plan, inputs))
        check_training(model, plan, inputs, rate)
        if unseen_macs is not None:
            small = shrink(model, plan.without_mask())
            counted = count_macs(small, inputs) - unseen_macs(small)
            assert plan.macs == pytest.approx(counted, abs=1e-6, rel=0)
    assert any(alive), "the signal is dead at the end, whatever is pruned"
    check_build(model_fn, random_plan(layout, seeds[0]))
    check_answers(model, layout, inputs)
    return layout


def sizes(layout: Layout) -> dict[str, int]:
    """Give group name -> number of units."""
    return {group.name: group.size for group in layout.groups}


# --- What is compared ---


def prepare(model_fn: Callable[[], nn.Module]) -> nn.Module:
    """Build a model in float64, always alike, without zeros that could hide faults."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = model_fn().double()
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    return model


def masked_twin(model: nn.Module, plan: Plan) -> nn.Module:
    """Give the dense model whose removed coordinates are 0 and get no gradient."""
    twin = copy.deepcopy(model)
    load_arrays_inplace(twin, plan.apply(arrays_of(model)))
    for name, parameter in twin.named_parameters():
        mask = torch.as_tensor(plan.dense_mask(name))
        parameter.register_hook(lambda grad, mask=mask: grad * mask)
    return twin


def calibrate_inplace(model: nn.Module, plan: Plan, inputs: Inputs) -> None:
    """Set BatchNorm's statistics to the masked model's own, or its signal dies out."""
    twin = masked_twin(model, plan)
    for module in twin.modules():
        if type(module).__name__.startswith("BatchNorm"):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        twin(*inputs)
    buffers = {name: array.numpy() for name, array in twin.named_buffers()}
    arrays = arrays_of(model)
    load_arrays_inplace(model, {n: buffers.get(n, a) for n, a in arrays.items()})


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model; list its output tensors."""
    return [x for x in tree_leaves(model(*inputs)) if isinstance(x, Tensor)]


def take_steps(model: nn.Module, inputs: Inputs, rate: float) -> None:
    """Take three steps of SGD with momentum .9 and weight decay 1e-3."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3
    )
    for _ in range(3):
        optimizer.zero_grad()
        logits = outputs(model, inputs)[0].flatten(1)
        F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
        optimizer.step()


# --- The promises ---


def check_layout(model: nn.Module, layout: Layout) -> None:
    """A layout lists the tensors as the ``state_dict`` does, and survives its bytes."""
    assert tuple(spec.described for spec in layout.tensors) == describe(model)
    parameters = [name for name, _ in model.named_parameters()]
    assert [t.name for t in layout.tensors if t.trainable] == parameters
    again = codec.decode_layout(codec.encode_layout(layout))
    assert codec.layout_digest(again) == codec.layout_digest(layout)


def check_values(plan: Plan, seed: int) -> None:
    """A plan survives its bytes, and ``expand`` undoes ``pack`` on what it keeps."""
    layout = plan.layout
    again = codec.decode_plan(codec.encode_plan(plan), layout)
    arrays, base = (random_arrays(layout, seed + i) for i in (0, 1))
    before = copy.deepcopy(base)

    values = pack(arrays, plan)
    small = unpack_small(values, plan)

    np.testing.assert_array_equal(pack_small(small, plan), values)
    for full in (expand(base, values, plan), expand(base, small, again)):
        for spec in layout.tensors:
            kept = plan.dense_mask(spec.name)
            expected = np.where(kept, arrays[spec.name], base[spec.name])
            np.testing.assert_array_equal(full[spec.name], expected, spec.name)
            assert full[spec.name].dtype == np.dtype(spec.dtype)
    np.testing.assert_equal(base, before)


def check_outputs(model: nn.Module, plan: Plan, inputs: Inputs) -> bool:
    """The small model holds the plan's values and computes what the masked one does.

    Tell whether outputs differ from example to example, so that this shows something.
    """
    masked, alive = plan.apply(arrays_of(model)), True
    for name, array in arrays_of(shrink(model, plan)).items():
        np.testing.assert_array_equal(array, plan.take(name, masked[name]), name)
    for training in (False, True):
        model.train(training)
        with torch.no_grad():  # lets torch fuse where it can
            pairs = zip(
                outputs(masked_twin(model, plan), inputs),
                outputs(shrink(model, plan), inputs),
                strict=True,
            )
            for expected, got in pairs:
                alive &= bool(expected.std(0).mean() > 1e-8)
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-11)
    return alive


def check_training(
    model: nn.Module, plan: Plan, inputs: Inputs, rate: float = 0.1
) -> None:
    """Steps move kept coordinates as in the masked model, and nothing else."""
    start = arrays_of(model)
    small, dense = shrink(model.train(), plan), masked_twin(model, plan)
    before = arrays_of(small)

    with hold_mask(small, plan):
        take_steps(small, inputs, rate)
    take_steps(dense, inputs, rate)

    little, big = arrays_of(small), arrays_of(dense)
    for spec in plan.layout.tensors:
        name = spec.name
        np.testing.assert_allclose(
            little[name], plan.take(name, big[name]), 1e-5, 1e-7, err_msg=name
        )
        if spec.trainable:
            np.testing.assert_array_equal(big[name][~plan.dense_mask(name)], 0)
    assert any((before[name] != little[name]).any() for name in before)
    np.testing.assert_equal(arrays_of(model), start)


def check_build(model_fn: Callable[[], nn.Module], plan: Plan) -> None:
    """A small model that is built without the dense one is the shrunk one."""
    expected = arrays_of(shrink(model_fn(), plan))

    small = build_small(model_fn, plan)
    load_arrays_inplace(small, expected)

    assert {t.device.type for t in small.state_dict().values()} == {"cpu"}
    np.testing.assert_equal(arrays_of(small), expected)


def check_answers(model: nn.Module, layout: Layout, inputs: Inputs) -> None:
    """One gradient tells whether training moves what is masked but not held."""
    halves = {g.name: np.arange(g.size // 2, g.size) for g in layout.groups}
    plan = Plan(layout, halves)
    kept = {t.name: torch.as_tensor(plan.dense_mask(t.name)) for t in layout.tensors}
    masked = copy.deepcopy(model)
    masked.load_state_dict({n: v * kept[n] for n, v in model.state_dict().items()})
    optimizer = torch.optim.SGD(masked.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([(x**2).mean() for x in outputs(masked, inputs)]).sum().backward()
        optimizer.step()

    moved = any(bool((p[~kept[n]] != 0).any()) for n, p in masked.named_parameters())

    assert moved == bool(answering_groups(model, inputs, layout))
