"""Multiply-accumulates of what really runs: one formula an ATen operator.

torch has the formulas of matrix products, convolutions and attention on GPUs; here are
those it lacks. Server and nodes count with the same ones: on ``meta`` an LSTM is many
matrix products, on a CPU one operator, and both add up to the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

KNOWN_NAMESPACES = ("aten", "prim", "prims", "profiler", "c10d", "_c10d_functional")
"""Operators of torch's own; others are code of which nobody knows what it costs."""

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count what runs inside; every operator computes exactly what it does outside.

    Attributes
    ----------
    macs, eval_macs : int
        With and without gradients.
    fault : str
        Why the count is not whole; empty if it is.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = self.eval_macs = 0
        self.fault = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(getattr(func, "overloadpacket", func))
        if formula is None and _is_composite(func):  # whole under inference_mode()
            self._count_parts(func, args, kwargs)
            with _as_outside():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        try:
            self._add(func, formula, args, kwargs, out)
        except Exception as error:  # counting must not end what is counted
            self.fault = f"{func}: {type(error).__name__}: {error}"
        return out

    def _count_parts(self, func: Any, args: Any, kwargs: Any) -> None:
        """Count the operators that one is made of, where it costs no arithmetic.

        To take it apart where it really runs would change its last digits.
        """
        try:
            with torch.inference_mode(False), torch.no_grad():
                args, kwargs = tree_map_only(torch.Tensor, _shape_of, (args, kwargs))
                with self:
                    func(*args, **kwargs)
        except Exception:  # what needs values, such as item(), multiplies nothing
            return

    def _add(self, func: Any, formula: Any, args: Any, kwargs: Any, out: Any) -> None:
        if formula is not None:
            macs = int(formula(*args, **kwargs, out_val=out))
            if torch.is_grad_enabled():
                self.macs += macs
            else:
                self.eval_macs += macs
        elif getattr(func, "namespace", "") not in KNOWN_NAMESPACES:
            self.fault = f"{func} is no operator of torch"


def _is_composite(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    name = func.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, _COMPOSITE)


def _as_outside() -> Any:
    """Let an operator choose its way as it does where nobody counts.

    A dispatch mode's handler hides which views need gradients, and products of
    matrices look at that.
    """
    include = torch._C._dispatch_tls_local_include_set()
    exclude = torch._C._dispatch_tls_local_exclude_set()
    exclude = exclude.remove(torch._C.DispatchKey.ADInplaceOrView)
    return torch._C._ForceDispatchKeyGuard(include, exclude)


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    """Leave values only to integers: lengths of sequences, say."""
    return tensor.to("meta") if tensor.is_floating_point() else tensor.clone()


# --- Formulas ---


def _recurrent(source: Any, weights: Sequence[Any]) -> int:
    """Count an RNN's layer: every matrix at every step of every example."""
    steps = source.numel() // source.shape[-1]
    return int(steps * sum(w.numel() for w in weights if w.dim() == 2))


def _onednn_rnn(source: Any, *args: Any, **_: Any) -> int:
    return _recurrent(source, args[:4])


def _cudnn_rnn(source: Any, weight: Any, *_: Any, **__: Any) -> int:
    return _recurrent(source, weight)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count queries on keys, and scores on values."""
    queries = query.numel() // query.shape[-1]
    return int(queries * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _encoder_layer(source: Any, *args: Any, **_: Any) -> int:
    return _fused_attention(source, args[2:17])


def _attention_layer(query: Any, *args: Any, **_: Any) -> int:
    return _fused_attention(query, args[4:8])


def _fused_attention(source: Any, weights: Sequence[Any]) -> int:
    """Count self-attention and the layers around it, of padded or nested sequences."""
    lengths = [len(sequence) for sequence in source.unbind()]
    tensors = [w for w in weights if isinstance(w, torch.Tensor)]
    matrices = sum(w.numel() for w in tensors if w.dim() == 2)
    pairs = sum(length**2 for length in lengths)
    return int(sum(lengths) * matrices + 2 * source.size(-1) * pairs)


def _matrix_by_vector(matrix: Any, *_: Any, **__: Any) -> int:
    return int(matrix.numel())


def _added_matrix_by_vector(_: Any, matrix: Any, *__: Any, **___: Any) -> int:
    return int(matrix.numel())


def _bilinear(left: Any, weight: Any, *_: Any, **__: Any) -> int:
    return int(left.shape[0] * weight.numel())


def _halved(flops: Callable[..., int]) -> Callable[..., int]:
    return lambda *args, **kwargs: flops(*args, **kwargs) // 2


_NAMES: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _onednn_rnn,
    "_cudnn_rnn": _cudnn_rnn,
    "miopen_rnn": _cudnn_rnn,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_native_multi_head_attention": _attention_layer,
    "mv": _matrix_by_vector,
    "dot": _matrix_by_vector,
    "addmv": _added_matrix_by_vector,
    "_trilinear": _bilinear,
}

_FORMULAS: dict[Any, Callable[..., int]] = {
    **{packet: _halved(flops) for packet, flops in flop_registry.items()},
    **{
        getattr(torch.ops.aten, name): formula
        for name, formula in _NAMES.items()
        if hasattr(torch.ops.aten, name)
    },
}
