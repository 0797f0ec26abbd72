"""Pruned models on disk."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet
from torch import nn

from flwr_autoflip import AutoFlipError, export_onnx, load_pruned, save_pruned
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.graph.tracing.trace import trace

LAYOUT = trace(TinyNet(), EXAMPLE)
KEEP = {"conv": np.array([0, 2, 5]), "fc1": np.array([1, 2, 6, 7])}
MASK = {"fc1.weight": np.random.default_rng(0).random((8, 96)) > 0.5}


def model() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet().eval()


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
    class Wide(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))

    layout = trace(Wide(), torch.zeros(1, 64))
    mask = {"0.weight": np.random.default_rng(0).random((1000, 64)) > 0.9}
    plan = Plan(layout, {"0": np.arange(500)}, mask)

    save_pruned(tmp_path / "x", Wide(), plan)

    bits = mask["0.weight"][:500].size // 8
    assert (tmp_path / "x").stat().st_size < 4 * plan.num_values + 4 * bits / 3 + 2500


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_pruned(path, model(), Plan(LAYOUT, KEEP))
    whole = path.read_bytes()

    for damaged in (whole[:-5], whole[:40], b"", b"junk" * 50):
        path.write_bytes(damaged)
        with pytest.raises(AutoFlipError, match="is no whole pruned model"):
            load_pruned(path, TinyNet)
    with pytest.raises(AutoFlipError, match="is no whole pruned model"):
        load_pruned(tmp_path / "nowhere", TinyNet)


def test_other_files_and_models_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "other", {"format": "pt"})
    with pytest.raises(AutoFlipError, match="expected format 'flwr-autoflip 1'"):
        load_pruned(tmp_path / "other", TinyNet)

    save_pruned(tmp_path / "x", model(), Plan(LAYOUT, KEEP))
    with pytest.raises(AutoFlipError, match="not the server's"):
        load_pruned(tmp_path / "x", lambda: nn.Linear(3, 2))
    with pytest.raises(AutoFlipError, match=r"'conv.weight': expected shape"):
        save_pruned(tmp_path / "y", nn.Linear(3, 2), Plan(LAYOUT, KEEP))


def test_tensors_that_do_not_fit_the_plan_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_pruned(tmp_path / "x", model(), Plan(LAYOUT, KEEP))
    with safe_open(tmp_path / "x", "numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    arrays["fc1.bias"] = arrays["fc1.bias"][:-1]
    save_file(arrays, tmp_path / "x", metadata)

    with pytest.raises(AutoFlipError, match=r"'fc1.bias' is missing or odd"):
        load_pruned(tmp_path / "x", TinyNet)


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    small = shrink(model(), Plan(LAYOUT, KEEP)).eval()
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
    assert json.dumps(given.shape) == "[1, 1, 8, 8]"
