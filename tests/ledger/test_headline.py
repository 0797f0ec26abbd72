"""Which metric is shown first."""

import pytest

from flwr_autoflip.ledger.headline import headline


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"loss": 0.1, "accuracy": 0.2, "top1": 0.3}, "top1"),
        ({"loss": 0.1, "Val-Accuracy": 0.2}, "Val-Accuracy"),
        ({"dense-top1": 0.3, "loss": 0.1}, "loss"),
        ({"text": "x", "perplexity": 3}, "perplexity"),
        ({"dense-loss": 0.1, "text": "x"}, None),
        ({}, None),
    ],
)
def test_accuracy_comes_first(metrics: dict[str, object], name: str | None) -> None:
    found = headline(metrics)

    assert (None if found is None else found[0]) == name
    assert found is None or found[1] == metrics[name or ""]
