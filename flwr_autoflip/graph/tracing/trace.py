"""From an ``nn.Module`` to its :class:`Layout`: run it once, watch every operator.

The forward pass runs on an example input under a dispatch mode that sees ATen
operators, so any Python control flow is fine as long as the example takes the usual
path. Each operator moves unit labels along (:mod:`.propagate`). An operator without a
rule that touches prunable units makes one error, with all such layers by name.
"""

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import AutoFlipError, AutoFlipWarning, UnsupportedLayerError
from ..batch import Arguments, arguments, batch_size, find_batch_axis, map_tensors
from ..layout import DTYPES, FIXED, Group, Layout, TensorSpec
from ..shrink import describe
from . import operators  # noqa: F401  imported to fill RULES
from .modules import LAYER_RULES, LayerCall
from .propagate import FROZEN, RULES, Call, Flow, Units, fixed
from .rules import pointwise
from .verify import another, randomized, verified_layout

Place = tuple[str, int]
"""A tensor's name and one of its axes."""


def trace(
    model: nn.Module, example_input: Any, ignored_layers: Sequence[str] = ()
) -> Layout:
    """Find a model's units by running it once.

    Parameters
    ----------
    model : nn.Module
        Left untouched: a copy runs, in evaluation mode, on the CPU.
    example_input : Tensor, tuple or mapping of str to object
        What ``forward`` takes: one argument, positional ones (a dict among them is one
        of them), or arguments by keyword. A batch of one is enough.
    ignored_layers : sequence of str (default: ())
        Names of modules whose units are all kept.

    Returns
    -------
    Layout

    Raises
    ------
    UnsupportedLayerError
        If an operator has no rule, a parameter is shared, or no unit can be pruned.
    AutoFlipError
        If ``forward`` fails on the example.

    Warns
    -----
    AutoFlipWarning
        If no axis of the example turns out to be the batch: axis 0 is taken. For
        groups that turn out not to shrink (a size written into ``forward``): they stay
        dense.
    """
    _check(model, ignored_layers)
    given = map_tensors(lambda x: x.cpu(), arguments(example_input))
    model = copy.deepcopy(model).cpu().eval()
    with _no_fused_transformer():
        watch = _Watch(model, ignored_layers)
        if ignored_layers:  # a first run tells which axes are those layers' own
            _run(model, given, watch)
            watch = _Watch(model, ignored_layers, frozenset(watch.units.input_axes))
        _run(model, given, watch)
        watch.raise_unsupported()
        drawn = randomized(model, given)
        axis = _batch_axis(*drawn)
        batch = batch_size(*given, axis) or 1
        return verified_layout(*drawn, partial(_build_layout, watch, batch, axis))


def _check(model: nn.Module, ignored: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    if unknown := [name for name in ignored if name not in modules]:
        raise AutoFlipError(f"ignored_layers: the model has no module named {unknown}.")
    if odd := [f"{n}: {d}" for n, _, d, _ in describe(model) if d not in DTYPES]:
        raise UnsupportedLayerError(
            f"NumPy, and so the wire, lacks these dtypes: {odd}. Convert the model, "
            "such as model.float()."
        )
    shared: dict[str, list[str]] = {}
    for name, _, _, first in describe(model):
        shared.setdefault(first or name, []).append(name)
    faults = [
        " = ".join(names)
        for names in shared.values()
        if len(names) > 1 and not any(_is_inside(name, ignored) for name in names)
    ]
    if faults:
        raise UnsupportedLayerError(
            f"parameters that are shared by two layers cannot be pruned: {faults}. "
            "Name one of the layers in ignored_layers=(...), and both stay dense."
        )


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@contextmanager
def _no_fused_transformer() -> Iterator[None]:
    """Make encoder layers call their parts, also where torch would fuse them."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _run(model: nn.Module, given: Arguments, watch: "_Watch") -> None:
    args, kwargs = given
    try:
        # The caller's generator stays, whatever forward draws.
        rng = torch.random.fork_rng(devices=[])
        with torch.no_grad(), rng, watch.modules_named(), watch:
            output = model(*args, **kwargs)
    except UnsupportedLayerError:
        raise
    except Exception as error:
        shapes = [tuple(x.shape) for x in tree_leaves(given) if hasattr(x, "shape")]
        raise AutoFlipError(
            f"{type(model).__name__}.forward fails on example_input of shape {shapes}: "
            f"{error} Give one batch of the shape that clients train on, such as "
            "torch.zeros(1, 1, 28, 28)."
        ) from error
    for leaf in _tensors(output):
        watch.units.freeze(*watch.flow_of(leaf).axes)


def _batch_axis(model: nn.Module, given: Arguments) -> int:
    generator = torch.Generator().manual_seed(1)
    other = map_tensors(lambda x: another(x, generator), given)
    axis = find_batch_axis(model, given, other)
    if axis is None and any(x.dim() for x in _tensors(given)):
        warnings.warn(
            "examples are counted along axis 0 of the first tensor of example_input, "
            "since no axis shows itself to be the batch: outputs depend on chance, on "
            "other examples, or are one number for all.",
            AutoFlipWarning,
            stacklevel=3,
        )
    return axis or 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carry labels from tensor to tensor while the model runs."""

    def __init__(
        self,
        model: nn.Module,
        ignored: Sequence[str],
        input_axes: frozenset[Place] = frozenset(),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.ignored = tuple(ignored)
        self.units = Units()
        self.unsupported: list[str] = []
        self.path: list[tuple[str, str]] = []
        self.inside: nn.Module | None = None
        self.flows: dict[str, Flow] = {}
        self._flow_of: Any = WeakIdKeyDictionary()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor in self._flow_of:  # one layer's input may be the other's output
                self.flows[name] = self._flow_of[tensor]
                self.units.freeze(*self.flows[name].axes)
                continue
            axes = range(tensor.dim())
            flow = Flow([self.units.new(n) for n in tensor.shape], (name, tuple(axes)))
            if _is_inside(name, ignored):
                own = [axis for axis in axes if (name, axis) not in input_axes]
                self.units.freeze(*(flow.axes[axis] for axis in own))
            self.flows[name] = self._flow_of[tensor] = flow

    def flow_of(self, tensor: Any) -> Flow:
        """Labels of a tensor; one that nobody produced cannot be pruned."""
        if tensor not in self._flow_of:
            return Flow([fixed(length) for length in tensor.shape])
        flow: Flow = self._flow_of[tensor]
        return flow

    @contextmanager
    def modules_named(self) -> Iterator[None]:
        """Know which module runs: for error messages, and layers with a rule."""
        handles = []
        for name, module in self.model.named_modules():

            def enter(module: nn.Module, args: Any, name: str = name) -> None:
                self.path.append((name, type(module).__name__))
                if type(module) in LAYER_RULES and self.inside is None:
                    self.inside = module

            def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                name, _ = self.path.pop()
                if self.inside is module:
                    self.inside = None
                    self._follow_layer(name, module, (args, kwargs), out)

            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.inside is not None:  # the whole layer has a rule
            return out
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        call = Call(self.units, self.flow_of, args, out)
        if name == "_local_scalar_dense" and self._is_computed(args[0]):
            self._report("a Python number made of data (control flow?)")
        if name in RULES:
            flows = RULES[name](call)
        elif _is_pointwise(func, name):
            flows = pointwise(call)
        else:
            flows = self._unknown(name, args, kwargs)
        flows = [flows] if isinstance(flows, Flow) else flows
        for leaf, flow in zip(_tensors(out), flows, strict=False):
            self._flow_of[leaf] = flow
        return out

    def _follow_layer(self, name: str, module: nn.Module, given: Any, out: Any) -> None:
        prefix = f"{name}." if name else ""
        own = {local: self.flows[prefix + local] for local in module.state_dict()}
        args, kwargs = given
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        inputs = [self.flow_of(t) for t in _tensors(tuple(bound.arguments.values()))]
        call = LayerCall(self.units, module, own, inputs, _tensors(out))
        for leaf, flow in zip(
            call.outputs, LAYER_RULES[type(module)](call), strict=True
        ):
            self._flow_of[leaf] = flow

    def _unknown(self, name: str, args: Any, kwargs: Any) -> list[Flow]:
        for leaf in _tensors((args, kwargs)):
            axes = self.flow_of(leaf).axes
            if not all(self.units.is_frozen(labels) for labels in axes):
                self.units.freeze(*axes)
                self._report(name)
        return []

    def _is_computed(self, tensor: torch.Tensor) -> bool:
        """Tell values that layers computed from lengths and other given integers."""
        whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
        return tensor in self._flow_of and not whole

    def _report(self, what: str) -> None:
        module, kind = self.path[-1] if self.path else ("", "")
        if not _is_inside(module, self.ignored):
            self.unsupported.append(f"{module or 'forward'} ({kind}): {what}")

    def raise_unsupported(self) -> None:
        """Raise one error for everything that no rule knew."""
        if self.unsupported:
            faults = "; ".join(dict.fromkeys(self.unsupported))
            raise UnsupportedLayerError(
                f"these operators cannot be followed: {faults}. Name the layers that "
                "feed them in ignored_layers=(...), and they stay dense."
            )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _is_pointwise(func: Any, name: str) -> bool:
    """Tell from ATen's tags; in-place operators borrow those of their twin."""
    twin = getattr(getattr(torch.ops.aten, name, None), func._overloadname, func)
    return torch.Tag.pointwise in func.tags or torch.Tag.pointwise in twin.tags


# --- Labels -> Layout ---


def _build_layout(
    watch: _Watch, batch: int, axis: int, dense: frozenset[str]
) -> Layout:
    """Turn labels into owners; groups named in ``dense`` stay whole."""
    units = watch.units
    roots = {
        (name, axis): np.array([units.find(x) for x in labels.tolist()], np.int64)
        for name, flow in watch.flows.items()
        for axis, labels in enumerate(flow.axes)
    }
    groups, number = _group_units(roots, units.input_axes, dense)
    lookup = np.full(len(units.parent), FIXED)
    lookup[list(number)] = list(number.values())
    trainable = {name for name, _ in watch.model.named_parameters()}
    tensors = []
    for name, shape, dtype, same_as in describe(watch.model):
        places = [(name, axis) for axis in range(len(shape))]
        owners = [lookup[roots[place]] for place in places]
        owned = [o if o.max(initial=FIXED) > FIXED else None for o in owners]
        tensors.append(
            TensorSpec(
                name,
                shape,
                dtype,
                trainable=name in trainable,
                owners=tuple(owned),
                input_axes=tuple(a for n, a in places if (n, a) in units.input_axes),
                macs_per_weight=units.macs.get(name, 0.0) / batch,
                normalized=name in units.normalized,
                same_as=same_as,
            )
        )
    return Layout(tuple(tensors), tuple(groups), axis)


def _group_units(
    roots: dict[Place, Any], input_axes: set[Place], dense: frozenset[str]
) -> tuple[list[Group], dict[int, int]]:
    """Put units that own slices of the same tensors into one group."""
    touched: dict[int, list[Place]] = {}
    for place, labels in roots.items():
        for root in dict.fromkeys(labels.tolist()):
            if root != FROZEN:
                touched.setdefault(root, []).append(place)
    members: dict[tuple[Place, ...], list[int]] = {}
    for root, touches in touched.items():
        # A unit that is not both produced and consumed belongs to a layer not in use.
        if 0 < sum(place in input_axes for place in touches) < len(touches):
            members.setdefault(tuple(touches), []).append(root)
    groups: list[Group] = []
    number: dict[int, int] = {}
    copies: dict[str, int] = {}
    for places, unit_roots in members.items():
        first = next(name for name, axis in places if (name, axis) not in input_axes)
        layer = first.rpartition(".")[0] or first
        copies[layer] = copies.get(layer, 0) + 1  # a layer's second group is layer#2
        name = layer if copies[layer] == 1 else f"{layer}#{copies[layer]}"
        if name not in dense and len(unit_roots) > 1:
            groups.append(Group(name, len(number), len(unit_roots)))
            number |= {root: len(number) + i for i, root in enumerate(unit_roots)}
    return groups, number
