"""What a node really does with its model: examples, multiply-accumulates, seconds.

Apps call their models as they like: ``model(x)``, ``model.encode(x)``, a Lightning
module's ``training_step``. So hooks on all modules note the *outermost* calls. A call
of the model itself tells the examples; where an app never makes one, the part that it
calls first does. The first call of each kind (module, shapes, gradients or not) runs
under :class:`.macs.MacCounter`; later ones cost the same.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ..graph.batch import batch_size
from .macs import MacCounter


@dataclass
class Spent:
    """What went through a model, and the seconds that took; None is unknown.

    Examples and multiply-accumulates of forward passes are apart with and without
    (``eval_``) gradients; ``uncounted`` says why something is unknown, ``called``
    whether the model, or a part of it, was seen to be called.
    """

    examples: int | None = None
    eval_examples: int | None = None
    macs: int | None = None
    eval_macs: int | None = None
    seconds: float = 0.0
    uncounted: str = ""
    called: bool = False

    def of(self, num_examples: int) -> "Spent":
        """Give what was done, where the app says on how many examples.

        No examples and no call is no work; examples without one are work not seen.
        """
        if num_examples or self.called:
            return self
        return Spent(0, 0, 0, 0, self.seconds)


@contextmanager
def measure(model: nn.Module, axis: int = 0) -> Iterator[Spent]:
    """Count what a model really does, into what is given and complete at the end.

    The model computes exactly what it would; copies of it count, too. Examples lie
    along this axis of a call's first tensor.
    """
    spent, meter = Spent(), _Meter(axis)
    unseen = [] if torch.is_grad_enabled() else _fast_layers(model)
    handles = [
        handle
        for name, module in model.named_modules()
        if not any(_is_inside(name, layer) for layer in unseen)
        for handle in _watch(meter, name, module)
    ]
    start = time.perf_counter()
    try:
        yield spent
    finally:
        spent.seconds = time.perf_counter() - start
        for handle in handles:
            handle.remove()
        meter.tell(spent, unseen)


def _fast_layers(model: nn.Module) -> list[str]:
    """Name the layers that hooks would keep from their fast path, in evaluation.

    It has other last digits. Calls of these layers are seen if they are part of
    another's.
    """
    kind = nn.TransformerEncoderLayer
    return [n for n, module in model.named_modules() if n and isinstance(module, kind)]


def _is_inside(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def _watch(meter: "_Meter", name: str, module: nn.Module) -> tuple[Any, Any]:
    # Closures, since a copy of the model must not get a meter of its own. A compiled
    # model is counted from outside: hooks inside it would break its graph. Importing
    # the compiler takes seconds, which optimizers spend anyway.
    enter, leave = meter.enter, meter.leave
    if torch.is_grad_enabled() or "torch._dynamo" in sys.modules:
        disable: Any = torch.compiler.disable
        enter, leave = disable(enter), disable(leave)

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        if name and torch.compiler.is_compiling():
            return
        if meter.outer is None or meter.outer is module:
            enter(name, module, args, kwargs)

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if name and torch.compiler.is_compiling():
            return
        if meter.outer is module:
            leave(whole=out is not None)

    return (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True, always_call=True),
    )


class _Meter:
    """Adds up outermost calls."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.outer: nn.Module | None = None
        self._depth = 0  # a module may call itself
        self._open: tuple[Any, MacCounter] | None = None
        self._known: dict[Any, tuple[int, int]] = {}
        self._macs = self._eval_macs = 0
        self._examples: dict[bool, dict[str, int | None]] = {True: {}, False: {}}
        self._faults: dict[str, None] = {}

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begin a call; the outermost one is counted."""
        self.outer = module
        self._depth += 1
        if self._depth > 1:
            return
        grad = torch.is_grad_enabled()
        called = self._examples[grad]
        before = called.setdefault(name, 0)
        try:
            size = batch_size(args, kwargs, self.axis)
            key = name, module.training, grad, _kind(args, kwargs)
        except Exception as error:  # counting must not end what is counted
            called[name] = None
            self._faults[f"{type(error).__name__}: {error}"] = None
            return
        called[name] = None if size is None or before is None else before + size
        if key in self._known:
            self._add(*self._known[key])
            return
        self._open = key, MacCounter()
        self._open[1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self, whole: bool) -> None:
        """End a call; one that failed is not taken as an example of later ones."""
        self._depth -= 1
        if self._depth:
            return
        self.outer = None
        if self._open is None:
            return
        (key, counter), self._open = self._open, None
        counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if counter.fault:
            self._faults[counter.fault] = None
        if whole:
            self._known[key] = counter.macs, counter.eval_macs
        self._add(counter.macs, counter.eval_macs)

    def _add(self, macs: int, eval_macs: int) -> None:
        self._macs += macs
        self._eval_macs += eval_macs

    def tell(self, spent: Spent, unseen: Sequence[str]) -> None:
        """Write down what was counted."""
        called = {name for names in self._examples.values() for name in names}
        spent.called = bool(called)
        if not called:
            spent.uncounted = "the app called neither the model nor a part of it"
            return
        reasons = [f"MACs: {fault}" for fault in self._faults]
        reasons += [
            f"MACs: calls of {layer!r} cannot be watched"
            for layer in unseen
            if not any(_is_inside(layer, name) for name in called)
        ]
        if not reasons:
            spent.macs, spent.eval_macs = self._macs, self._eval_macs
        spent.examples, spent.eval_examples = map(self._count, (True, False))
        if None in (spent.examples, spent.eval_examples):
            reasons.append("examples: no tensor of a call says how many they are")
        spent.uncounted = "; ".join(reasons)

    def _count(self, grad: bool) -> int | None:
        """Give the examples of the model itself, or of the part called first."""
        called = self._examples[grad]
        return called.get("", next(iter(called.values()), 0))


def _kind(args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Say what tells calls of different cost apart: shapes, and switches."""
    return len(args), *kwargs, *(_kind_of(leaf) for leaf in tree_leaves((args, kwargs)))


def _kind_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return None if leaf.is_nested else leaf.shape
    return leaf if isinstance(leaf, (bool, str, int)) else type(leaf)
