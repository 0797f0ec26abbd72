"""The attacks do what their names say."""

import pytest
import torch

from examples.benchmarks.attacks import ATTACKS, INSIDE, Cell, Seen, run


def seen(before: torch.Tensor | None = None) -> Seen:
    received = {"w": torch.tensor([3.0, 4.0]), "n.running_var": torch.tensor([2.0])}
    honest = {"w": torch.tensor([3.0, 5.0]), "n.running_var": torch.tensor([1.5])}
    first = {"w": torch.tensor([0.0, 2.0]), "n.running_var": torch.tensor([1.0])}
    last = None if before is None else {"w": before}
    return Seen(received, honest, last, {"": 1.0}, first, frozenset({"w"}))


def sent(attack: str, before: torch.Tensor | None = None) -> list[float]:
    made = ATTACKS[attack]
    assert made is not None
    return made(seen(before))["w"].tolist()


def test_attacks_by_hand() -> None:
    assert sent("nobody is bad") == [3, 5]
    assert sent("minus the model") == [-3, -4]
    assert sent("minus the model x 9.9") == pytest.approx([-29.7, -39.6])
    # The others moved by 1; the first model lay along the second axis.
    assert sent("slow drip of one direction") == pytest.approx([3, 4 - INSIDE])
    assert sent("undoing the others' steps") == [3, 5]
    before = torch.tensor([2.0, 4.0])
    assert sent("undoing the others' steps", before) == pytest.approx([3 - INSIDE, 4])
    noise = torch.tensor(sent("noise to the limit")) - torch.tensor([3.0, 4.0])
    assert float(noise.norm()) == pytest.approx(INSIDE, rel=1e-5)


def test_the_model_turned_round_is_refused_in_every_round() -> None:
    found = run(Cell("BatchNorm", "FedAvg", 3, "minus the model x 9.9", 0), 2)

    assert (found["bad_refused"], found["honest_refused"]) == (2, 0)
    assert 0 <= found["top1"] <= 1


def test_nobody_is_refused_where_nobody_is_bad() -> None:
    found = run(Cell("BatchNorm", "Krum", 4, "nobody is bad", 0), 2)

    assert (found["bad_refused"], found["honest_refused"]) == (0, 0)
