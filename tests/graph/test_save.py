"""Pruned models on disk, whole, damaged and foreign."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from flwr_autoflip import (
    AutoFlipError,
    Plan,
    export_onnx,
    load_pruned,
    save_pruned,
    shrink,
    trace,
)
from flwr_autoflip.graph.shrink import arrays_of

LAYOUT = trace(TinyNet(), EXAMPLE)
KEEP = {"conv": np.array([0, 2, 5]), "fc1": np.array([1, 2, 6, 7])}
MASK = {"fc1.weight": np.random.default_rng(0).random((8, 96)) > 0.5}
PLAN = Plan(LAYOUT, KEEP)


def model() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet().eval()


def rewrite(path: Path, **changes: Any) -> None:
    """Save PLAN's model, then change some of its tensors and texts."""
    save_pruned(path, model(), PLAN)
    with safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        (metadata if isinstance(value, str) else arrays)[name] = value
    save_file(arrays, path, metadata)


@pytest.mark.parametrize("mask", [{}, MASK])
@pytest.mark.parametrize("source", ["small", "dense", "arrays"])
def test_what_is_saved_is_what_is_loaded(
    tmp_path: Path, mask: dict[str, np.ndarray], source: str
) -> None:
    plan = Plan(LAYOUT, KEEP, mask)
    small = shrink(model(), plan)
    given = {"small": small, "dense": model(), "arrays": arrays_of(small)}[source]
    path = tmp_path / "pruned.safetensors"

    save_pruned(path, given, plan)
    loaded, found = load_pruned(path, TinyNet)

    images = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(loaded(images), small.eval()(images), rtol=0, atol=0)
    np.testing.assert_array_equal(found.alive, plan.alive)
    assert not loaded.training
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_is_as_small_as_its_values(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))
    mask = {"0.weight": np.random.default_rng(0).random((1000, 64)) > 0.9}
    plan = Plan(trace(wide, torch.zeros(1, 64)), {"0": np.arange(500)}, mask)

    save_pruned(tmp_path / "x", wide, plan)

    bits = mask["0.weight"][:500].size // 8
    assert (tmp_path / "x").stat().st_size < 4 * plan.num_values + 4 * bits / 3 + 2500


@pytest.mark.parametrize("cut", [slice(-5), slice(40), slice(0)])
def test_damage_is_noticed(tmp_path: Path, cut: slice) -> None:
    path = tmp_path / "x"
    save_pruned(path, model(), PLAN)
    path.write_bytes(path.read_bytes()[cut])

    for damaged in (path, tmp_path / "nowhere"):
        with pytest.raises(AutoFlipError, match="is no whole pruned model"):
            load_pruned(damaged, TinyNet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pt"}, "expected format 'flwr-autoflip 1', got 'pt'"),
        ({"plan": "?"}, "no whole pruned model"),
        ({"layout": "AAAA"}, "no whole pruned model"),
        ({"fc1.bias": np.zeros(3, np.float32)}, "'fc1.bias' is missing or odd"),
        ({"fc1.bias": np.zeros(4, np.float64)}, "'fc1.bias' is missing or odd"),
        # A name that would rewrite a terminal is shown as what can be seen.
        ({"\x1b[2J": np.zeros(1)}, r"lacks the tensor '\?\[2J'"),
    ],
)
def test_foreign_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(tmp_path / "x", **changes)

    with pytest.raises(AutoFlipError, match=message):
        load_pruned(tmp_path / "x", TinyNet)


def test_other_models_are_refused(tmp_path: Path) -> None:
    save_pruned(tmp_path / "x", model(), PLAN)
    with pytest.raises(AutoFlipError, match="not the server's"):
        load_pruned(tmp_path / "x", lambda: nn.Linear(3, 2))
    with pytest.raises(AutoFlipError, match=r"'conv.weight': expected shape"):
        save_pruned(tmp_path / "y", nn.Linear(3, 2), PLAN)


@pytest.mark.slow
def test_onnx_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    small = shrink(model(), PLAN).eval()
    path = tmp_path / "small.onnx"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        export_onnx(path, small, EXAMPLE)

    session = onnxruntime.InferenceSession(str(path))
    (given,) = session.get_inputs()
    image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    (got,) = session.run(None, {given.name: image})
    expected = small(torch.from_numpy(image)).detach()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert given.shape == [1, 1, 8, 8]
