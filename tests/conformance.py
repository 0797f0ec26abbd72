"""What tracing, shrinking and expanding promise, checked on any model.

Whoever teaches the package a layer adds a model that holds it to the table in
``graph/test_layers.py``, and :func:`check_model` does the rest.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from models import random_arrays, random_plan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from flwr_autoflip import Layout, Plan, expand, shrink, trace
from flwr_autoflip.errors import AutoFlipWarning
from flwr_autoflip.graph.codec import (
    decode_layout,
    decode_plan,
    encode_layout,
    encode_plan,
    layout_digest,
)
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
    model, doubled = prepare(model_fn), as_double(inputs)
    one = tuple(x[:1] if isinstance(x, Tensor) else x for x in inputs)
    with expected_warnings(warns):
        layout = trace(copy.deepcopy(model).float(), one, ignored_layers)
    assert groups is None or sizes(layout) == groups
    check_layout(model.float(), layout)
    model, alive = model.double(), []
    for seed in seeds:
        plan = random_plan(layout, seed, masked=seed == 2)
        calibrate_inplace(model, plan, doubled)
        check_bytes(plan)
        check_values(plan, seed)
        alive.append(check_outputs(model, plan, doubled))
        check_training(model, plan, doubled, rate)
        if unseen_macs is not None:
            small = shrink(model, plan.without_mask())
            counted = count_macs(small, doubled) - unseen_macs(small)
            assert plan.macs == pytest.approx(counted, abs=1e-6, rel=0)
    assert any(alive), "the signal is dead at the end, whatever is pruned"
    check_build(model_fn, random_plan(layout, seeds[0]))
    check_answers(model, layout, doubled)
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


def as_double(inputs: Inputs) -> Inputs:
    """Cast what is float32 to float64."""
    return tuple(
        x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in inputs
    )


@contextmanager
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", AutoFlipWarning)
        yield


def expected_warnings(pattern: str) -> AbstractContextManager[Any]:
    """Expect our warnings, or none."""
    return pytest.warns(AutoFlipWarning, match=pattern) if pattern else _quiet()


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
    norms = [
        m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        twin.eval() if not norms else twin(*inputs)
    buffers = {name: array.numpy() for name, array in twin.named_buffers()}
    load_arrays_inplace(
        model,
        arrays_of(model)
        | {n: a for n, a in buffers.items() if n in model.state_dict()},
    )


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
    again = decode_layout(encode_layout(layout))
    assert layout_digest(again) == layout_digest(layout)


def check_bytes(plan: Plan) -> None:
    """A plan survives its bytes."""
    again = decode_plan(encode_plan(plan), decode_layout(encode_layout(plan.layout)))
    for spec in plan.layout.tensors:
        np.testing.assert_array_equal(
            again.dense_mask(spec.name), plan.dense_mask(spec.name), spec.name
        )


def check_values(plan: Plan, seed: int) -> None:
    """``expand`` gives arrays on kept coordinates, and elsewhere the base."""
    arrays, base = (random_arrays(plan.layout, seed + i) for i in (0, 1))
    before = copy.deepcopy(base)

    values = pack(arrays, plan)
    small = unpack_small(values, plan)

    assert values.shape == (plan.num_values,)
    np.testing.assert_array_equal(pack_small(small, plan), values)
    for full in (expand(base, values, plan), expand(base, small, plan)):
        assert list(full) == list(base)
        for spec in plan.layout.tensors:
            kept = plan.dense_mask(spec.name)
            expected = np.where(kept, arrays[spec.name], base[spec.name])
            np.testing.assert_array_equal(full[spec.name], expected, spec.name)
            assert full[spec.name].dtype == np.dtype(spec.dtype)
    for name, array in base.items():
        np.testing.assert_array_equal(array, before[name], name)


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
    small, dense = shrink(model.train(), plan), masked_twin(model, plan)
    before, start = arrays_of(small), arrays_of(model)

    with hold_mask(small, plan):
        take_steps(small, inputs, rate)
    take_steps(dense, inputs, rate)

    little, big, still = arrays_of(small), arrays_of(dense), arrays_of(model)
    for spec in plan.layout.tensors:
        name = spec.name
        np.testing.assert_allclose(
            little[name], plan.take(name, big[name]), 1e-5, 1e-7, err_msg=name
        )
        if spec.trainable:
            np.testing.assert_array_equal(big[name][~plan.dense_mask(name)], 0)
        np.testing.assert_array_equal(still[name], start[name], name)
    assert any((before[name] != little[name]).any() for name in before)


def check_build(model_fn: Callable[[], nn.Module], plan: Plan) -> None:
    """A small model that is built without the dense one is the shrunk one."""
    expected = arrays_of(shrink(model_fn(), plan))

    small = build_small(model_fn, plan)
    load_arrays_inplace(small, expected)

    assert {t.device.type for t in small.state_dict().values()} == {"cpu"}
    for name, array in arrays_of(small).items():
        np.testing.assert_array_equal(array, expected[name], name)


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
        sum((x**2).mean() for x in outputs(masked, inputs)).backward()  # type: ignore[union-attr]
        optimizer.step()

    moved = any(bool((p[~kept[n]] != 0).any()) for n, p in masked.named_parameters())

    assert moved == bool(answering_groups(model, inputs, layout))
