"""ONNX files from the command line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet
from typer.testing import CliRunner, Result

from flwr_autoflip import AutoFlipError, Plan, load_pruned, save_pruned, trace
from flwr_autoflip.cli.export import find_model, parse_example
from flwr_autoflip.cli.main import app

LAYOUT = trace(TinyNet(), EXAMPLE)
KEEP = {"conv": np.array([0, 2, 5]), "fc1": np.array([1, 2, 6, 7])}


def export(folder: Path, model: str, shape: str) -> Result:
    torch.manual_seed(0)
    save_pruned(folder / "model", TinyNet(), Plan(LAYOUT, KEEP))
    words = ["export", str(folder / "model"), "--onnx", str(folder / "out" / "m.onnx")]
    return CliRunner().invoke(app, [*words, "--model", model, "--input", shape])


@pytest.mark.slow
def test_an_onnx_file_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    done = export(tmp_path, "federation:TinyNet", "1,1,8,8")

    assert done.exit_code == 0, done.output
    small, _ = load_pruned(tmp_path / "model", TinyNet)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "m.onnx"))
    image = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    (got,) = session.run(None, {session.get_inputs()[0].name: image})
    expected = small(torch.from_numpy(image)).detach()
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("federation", "1,1,8,8", "must read MODULE:NAME"),
        ("nowhere.at_all:Net", "1,1,8,8", "No module named 'nowhere'"),
        ("federation:Nobody", "1,1,8,8", "has no attribute 'Nobody'"),
        ("federation:EXAMPLE", "1,1,8,8", "is no class or function"),
        ("federation:TinyNet", "1,x", "must read 1,3,32,32"),
        ("federation:TinyNet", "1,8:complex", "dtypes are float32, int64, int32"),
        ("torch.nn:Identity", "1,8", "not the server's"),
        ("federation:TinyNet", "1,3,32,32", "expected input[1, 3, 32, 32] to have 1"),
        ("federation:TinyNet", "7", "--input 7: the model cannot take it"),
        ("federation:TinyNet", "1,1,8,8:int64", "--input 1,1,8,8:int64: the model"),
        ("torch.nn:Linear", "1,8", "--model torch.nn:Linear cannot be built"),
        ("builtins:int", "1,8", "--model builtins:int cannot be built"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    tmp_path: Path, model: str, shape: str, expected: str
) -> None:
    done = export(tmp_path, model, shape)

    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert expected in done.stderr
    assert done.stderr.startswith("Error: ")
    assert len(done.output.splitlines()) == 1
    assert len(done.output) < 700
    assert not (tmp_path / "out").exists()


def test_what_the_exporter_cannot_do_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    def fail(*words: object, **options: object) -> None:
        try:
            raise NotImplementedError("no such operator\n" + "trace\n" * 300)
        except NotImplementedError as error:
            raise RuntimeError("Failed to export\n" * 340) from error

    monkeypatch.setattr(torch.onnx, "export", fail)

    done = export(tmp_path, "federation:TinyNet", "1,1,8,8")

    assert done.exit_code == 1
    assert "m.onnx cannot be made: NotImplementedError: no such operator" in done.stderr
    assert len(done.output.splitlines()) == 1


def test_without_the_extra_its_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    done = export(tmp_path, "federation:TinyNet", "1,1,8,8")

    assert done.exit_code == 1
    assert 'pip install "flwr-autoflip[onnx]"' in done.stderr


def test_examples_and_models_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an_app_of_mine.py").write_text("def net():\n    return 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    assert find_model("an_app_of_mine:net")() == 7  # type: ignore[comparison-overlap]
    assert parse_example("1, 3,32,32").shape == (1, 3, 32, 32)
    assert parse_example("1,80:int64").dtype == torch.int64
    with pytest.raises(AutoFlipError, match="must read"):
        parse_example("1,0")
