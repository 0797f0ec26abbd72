"""``export``: a pruned model for another runtime."""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..errors import AutoFlipError, visible
from ..graph.save import export_onnx, load_pruned
from ..ledger.amounts import amount
from .output import say

DTYPES = {"float32": torch.float32, "int64": torch.int64, "int32": torch.int32}
LONGEST_CAUSE = 300
"""Characters of another's error that are shown."""


def export_model(path: Path, onnx: Path, model: str, example: str) -> None:
    """Build a pruned model from its file, write it as ONNX, compare both.

    A file of :func:`flwr_autoflip.save_pruned` holds values and structure, no code: the
    user says which code, nothing in the file does. Model and example input are as
    :func:`find_model` and :func:`parse_example` read them.

    Raises
    ------
    AutoFlipError
        If anything does not fit, or the extra is not installed.
    """
    inputs, make = parse_example(example), find_model(model)
    with _said(f"--model {model} cannot be built for {path}"):
        small, _ = load_pruned(path, make)
    with _said(f"--input {example}: the model cannot take it"), torch.no_grad():
        small(inputs)
    onnx.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), _said(f"{onnx} cannot be made"):
        warnings.simplefilter("ignore")  # the exporter's own
        try:
            export_onnx(onnx, small, inputs)
        except ImportError as error:
            raise AutoFlipError(
                f'{error}; install the extra: pip install "flwr-autoflip[onnx]"'
            ) from error
    size = sum(p.stat().st_size for p in onnx.parent.glob(f"{onnx.name}*"))
    say(f"Written: {onnx}, {amount(size, 'B')}; onnxruntime computes the same.")


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say in a line what failed: the user's model and the exporter may raise anything.

    An exporter's error has hundreds of lines; what its first cause begins with helps.
    """
    try:
        yield
    except AutoFlipError:
        raise
    except Exception as error:
        while isinstance(error.__cause__, Exception):
            error = error.__cause__
        first = visible(str(error).partition("\n")[0], LONGEST_CAUSE)
        raise AutoFlipError(f"{what}: {type(error).__name__}: {first}") from error


def find_model(where: str) -> Callable[[], nn.Module]:
    """Import what gives the dense model, ``module:name``; an AutoFlipError if none."""
    module, _, name = where.partition(":")
    if not module or not name:
        raise AutoFlipError(
            f"--model must read MODULE:NAME, such as task:Net, got {where!r}."
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise AutoFlipError(
            f"--model {where}: {error}; run this where `import {module}` works."
        ) from error
    if not callable(found):
        raise AutoFlipError(f"--model {where} is no class or function, but {found!r}.")
    return found  # type: ignore[no-any-return]


def parse_example(text: str) -> torch.Tensor:
    """Make an example input of zeros of ``1,3,32,32`` or ``1,80:int64``."""
    shape, _, dtype = text.partition(":")
    sizes, dtype = [part.strip() for part in shape.split(",")], dtype or "float32"
    whole = all(size.isdecimal() and int(size) > 0 for size in sizes)
    if dtype not in DTYPES or not whole:
        raise AutoFlipError(
            f"--input must read 1,3,32,32 or 1,80:int64, got {text!r}; dtypes are "
            f"{', '.join(DTYPES)}."
        )
    return torch.zeros(*map(int, sizes), dtype=DTYPES[dtype])
