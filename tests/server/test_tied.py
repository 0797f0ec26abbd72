"""Tied weights are one tensor everywhere: they travel once and never drift apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from grid import LocalGrid
from realistic import CASES, SIZES, Node, Words, app, build, initial
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipError,
    autoflip_mod,
    client_app,
    load_pruned,
    save_pruned,
)
from flwr_autoflip.graph.codec import decode_layout, encode_layout, layout_digest
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.wire.records import to_arrayrecord

FIRST, SECOND = "embed.weight", "head.weight"


def run(
    client: ClientApp = app, rounds: int = 3, inner: Any = None, **options: Any
) -> tuple[AutoFlip, dict[str, np.ndarray], LocalGrid]:
    strategy = build("words", inner, **options)
    grid = LocalGrid(client, len(SIZES))
    for context in grid.contexts.values():
        context.run_config["case"] = "words"
    result = strategy.start(grid, initial("words"), num_rounds=rounds)
    return strategy, {n: a.numpy() for n, a in result.arrays.items()}, grid


def untied(arrays: dict[str, Any]) -> int:
    """How many values a model has, each once."""
    return sum(array.size for name, array in arrays.items() if name != SECOND)


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("method", ["l1", "autoflip"])
def test_both_names_have_one_value_after_rounds(value_dtype: str, method: str) -> None:
    strategy, arrays, _ = run(value_dtype=value_dtype, method=method)

    start = initial("words")[FIRST].numpy()
    assert np.abs(arrays[FIRST] - start).max() > 0.01
    np.testing.assert_array_equal(arrays[FIRST], arrays[SECOND])
    assert "failed" not in {row["status"] for row in node_rows(strategy.ledger.rows)}
    small = strategy.deployable_model(to_arrayrecord(arrays))
    assert small.head.weight is small.embed.weight


def test_server_optimizers_move_both_alike() -> None:
    _, arrays, _ = run(inner=FedAdam(min_available_nodes=len(SIZES)), method="dense")

    np.testing.assert_array_equal(arrays[FIRST], arrays[SECOND])


def test_the_second_name_does_not_travel() -> None:
    strategy, arrays, grid = run(rounds=1, method="dense", value_dtype="float32")

    records = [m.content.array_records.values() for _, m in grid.log]
    sizes = {a.numpy().size for (record,) in records for a in record.values()}
    assert sizes == {untied(arrays)}
    assert dense_plan(strategy.layout).num_values == untied(arrays)
    assert strategy.layout.num_parameters == sum(
        p.numel() for p in Words().parameters()
    )


def test_a_node_trains_one_tensor() -> None:
    tied = []

    class Asked(Node):
        def train(self, model: nn.Module, config: Any) -> Any:
            tied.append(model.head.weight is model.embed.weight)
            return super().train(model, config)

    run(client_app(Asked), rounds=1)

    assert tied == [True] * len(SIZES)


def dense_app() -> ClientApp:
    """A dense app behind the mod."""
    behind = ClientApp(mods=[autoflip_mod])

    @behind.train()
    def train(message: Message, context: Context) -> Message:
        model = Words()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        case = CASES["words"]
        logits = case.call(model, case.make(8, 0))
        torch.sum(logits**2).backward()
        torch.optim.SGD(model.parameters(), lr=1e-3).step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": 8}),
        }
        return Message(RecordDict(content), reply_to=message)

    return behind


def no_evaluation() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_available_nodes=len(SIZES))


@pytest.mark.parametrize("value_dtype", ["float32", "int8"])
def test_a_dense_app_behind_the_mod_keeps_both(value_dtype: str) -> None:
    strategy, arrays, _ = run(dense_app(), 2, no_evaluation(), value_dtype=value_dtype)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert (arrays[FIRST] != initial("words")[FIRST].numpy()).any()
    np.testing.assert_array_equal(arrays[FIRST], arrays[SECOND])


class Untied(Words):
    """The same tensors, of which none is another."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.detach().clone())


def test_a_model_that_is_not_tied_is_told_so() -> None:
    class Other(Node):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.model_fn = Untied

    words = r"head.weight: expected float32 \(11, 8\), the same as embed.weight, got"
    with pytest.raises(AutoFlipError, match=words):
        run(client_app(Other), 1, no_evaluation())


def test_files_hold_it_once_and_load_it_tied(tmp_path: Path) -> None:
    strategy, arrays, _ = run(rounds=1, method="dense", value_dtype="float32")
    model = Words()
    model.load_state_dict({n: torch.tensor(a) for n, a in arrays.items()})

    save_pruned(tmp_path / "m.safetensors", model, strategy.deployable_plan)
    loaded, _ = load_pruned(tmp_path / "m.safetensors", Words)

    assert loaded.head.weight is loaded.embed.weight
    np.testing.assert_array_equal(loaded.embed.weight.detach(), arrays[FIRST])
    size = (tmp_path / "m.safetensors").stat().st_size
    assert size < 4 * untied(arrays) + 2000


def test_layouts_and_values_there_and_back() -> None:
    layout = build("words").layout
    again = decode_layout(encode_layout(layout))
    generator = np.random.default_rng(0)
    arrays = {t.name: generator.random(t.shape, np.float32) for t in layout.tensors}
    arrays[SECOND] = arrays[FIRST]
    plan, other = dense_plan(again), {n: np.zeros_like(a) for n, a in arrays.items()}

    back = expand(other, pack(arrays, plan), plan)

    assert [t.described for t in again.tensors] == [t.described for t in layout.tensors]
    assert layout_digest(again) == layout_digest(layout)
    assert again.by_name[SECOND].same_as == FIRST
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
