"""Pruned models as files: safetensors and a plan, never a pickle."""

from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import nn
from torch.utils._pytree import tree_leaves

from ..errors import AutoFlipError, visible
from .batch import arguments
from .codec import decode_layout, decode_plan, encode_layout, encode_plan
from .layout import Arrays
from .plan import Plan
from .shrink import arrays_of, build_small, load_arrays_inplace
from .storage import UNREADABLE, read_safetensors, write_whole

FORMAT = "flwr-autoflip 1"


def save_pruned(path: str | Path, model: nn.Module | Arrays, plan: Plan) -> None:
    """Save a pruned model; the file is as large as its kept values.

    Parameters
    ----------
    path : path
        Conventionally ``*.safetensors``; an old file is replaced at once, not in part.
    model : nn.Module or mapping of str to ndarray
        The small model, the dense one, or arrays of either.
    plan : Plan

    Raises
    ------
    AutoFlipError
        If the tensors are neither the dense model's nor the plan's.
    """
    arrays = arrays_of(model) if isinstance(model, nn.Module) else model
    kept = {spec.name: _kept(arrays, plan, spec.name) for spec in plan.layout.distinct}
    metadata = {
        "format": FORMAT,
        "layout": b64encode(encode_layout(plan.layout)).decode(),
        "plan": b64encode(encode_plan(plan)).decode(),
    }
    write_whole(Path(path), save(kept, metadata), private=False)


def _kept(arrays: Arrays, plan: Plan, name: str) -> Any:
    shapes = plan.layout.by_name[name].shape, plan.small_shape(name)
    array = arrays.get(name)
    if array is None or array.shape not in shapes:
        got = "nothing" if array is None else array.shape
        raise AutoFlipError(
            f"tensor {name!r}: expected shape {shapes[0]} or {shapes[1]}, got {got}; "
            "save the model that this plan was made for."
        )
    small = plan.take(name, array) if array.shape == shapes[0] else array
    mask = plan.small_mask.get(name)
    return (small if mask is None else small[mask]).copy()


def read_pruned(path: str | Path) -> tuple[Plan, dict[str, NDArray[Any]]]:
    """Read what :func:`save_pruned` wrote, without a model.

    Parameters
    ----------
    path : path

    Returns
    -------
    plan : Plan
        With the dense model's layout.
    arrays : dict of str to ndarray
        The small model's; pruned single weights are 0.

    Raises
    ------
    AutoFlipError
        If the file is damaged or of another kind.
    """
    try:
        arrays, metadata = read_safetensors(Path(path))
        if metadata.get("format") != FORMAT:
            raise AutoFlipError(
                f"{path}: expected format {FORMAT!r}, got {metadata.get('format')!r}; "
                "only files of save_pruned can be read."
            )
        layout = decode_layout(b64decode(metadata["layout"], validate=True))
        plan = decode_plan(b64decode(metadata["plan"], validate=True), layout)
    except (*UNREADABLE, KeyError, MemoryError) as error:
        raise AutoFlipError(
            f"{path} is no whole pruned model: {visible(str(error))}"
        ) from error
    if surplus := sorted(arrays.keys() - layout.by_name.keys()):
        raise AutoFlipError(
            f"{path}: its layout lacks the tensor {visible(surplus[0], 80)!r}."
        )
    for spec in layout.distinct:
        stored, mask = arrays.get(spec.name), plan.small_mask.get(spec.name)
        shape = plan.small_shape(spec.name) if mask is None else (int(mask.sum()),)
        if stored is None or stored.shape != shape or stored.dtype.name != spec.dtype:
            raise AutoFlipError(f"{path}: tensor {spec.name!r} is missing or odd.")
        if mask is not None:
            arrays[spec.name] = np.zeros(mask.shape, stored.dtype)
            arrays[spec.name][mask] = stored
    return plan, layout.tie(arrays)


def load_pruned(
    path: str | Path, model_fn: Callable[[], nn.Module]
) -> tuple[nn.Module, Plan]:
    """Load what :func:`save_pruned` wrote.

    Parameters
    ----------
    path : path
    model_fn : callable
        Gives the dense model, which is never allocated.

    Returns
    -------
    model : nn.Module
        Small, in evaluation mode.
    plan : Plan

    Raises
    ------
    AutoFlipError
        If the file is damaged, of another kind, or of another model.
    """
    plan, arrays = read_pruned(path)
    model = build_small(model_fn, plan)
    load_arrays_inplace(model, arrays)
    return model.eval(), plan


def export_onnx(path: str | Path, small: nn.Module, example_input: Any) -> None:
    """Export a small model to ONNX and compare it with PyTorch in onnxruntime.

    Parameters
    ----------
    path : path
    small : nn.Module
    example_input : Tensor, tuple or mapping of str to object

    Raises
    ------
    AutoFlipError
        If onnxruntime's outputs differ by more than 1e-4; the file is removed.
    ImportError
        Without the extra ``flwr-autoflip[onnx]``.
    """
    import onnxruntime

    args, kwargs = arguments(example_input)
    small = small.eval()
    torch.onnx.export(
        small,
        args,
        str(path),
        kwargs=kwargs,
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), providers=providers)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    feeds = {
        node.name: x.numpy()
        for node, x in zip(session.get_inputs(), tensors, strict=True)
    }
    with torch.no_grad():
        expected = small(*args, **kwargs)
    leaves = [x for x in tree_leaves(expected) if isinstance(x, torch.Tensor)]
    for one, other in zip(leaves, session.run(None, feeds), strict=True):
        if not np.allclose(one.numpy(), other, rtol=1e-4, atol=1e-4):
            Path(path).unlink()
            raise AutoFlipError(f"{path}: onnxruntime computes something else.")
