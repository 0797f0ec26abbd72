"""Noise on reports: the bound, the noise's size, and what is drawn from where."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import mlp_layout, random_arrays

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.wire import encode_report, privacy
from flwr_autoflip.wire.privacy import (
    SENSITIVITY,
    ReportPrivacy,
    add_noise,
    bound,
    parse_privacy,
)


def delta_of(epsilon: float, std: float, sensitivity: float) -> float:
    """The Gaussian mechanism's exact delta (Balle and Wang 2018, Theorem 8)."""

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    half, ratio = sensitivity / (2 * std), epsilon * std / sensitivity
    return below(half - ratio) - math.exp(epsilon) * below(-half - ratio)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 8.0, 32.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_the_accountants_noise_is_what_the_exact_formula_asks_for(
    epsilon: float, delta: float
) -> None:
    pytest.importorskip("dp_accounting")

    std = ReportPrivacy(epsilon, delta).noise_std()

    assert delta_of(epsilon, std, SENSITIVITY) == pytest.approx(delta, rel=1e-3)


def test_no_accountant_is_an_error_with_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)

    with pytest.raises(AutoFlipError, match=r"pip install 'flwr-autoflip\[privacy\]'"):
        ReportPrivacy(1.0).noise_std()


@settings(deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**32 - 1)] * 2), sparse=st.booleans())
def test_no_two_reports_are_farther_apart_than_the_sensitivity(
    seeds: tuple[int, int], sparse: bool
) -> None:
    ends = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        scale = 10.0 ** rng.uniform(-6, 6)
        parts = {name: scale * rng.random(5) ** 9 for name in "abc"}
        if sparse:
            one = rng.integers(5)
            parts = {n: np.eye(5)[one] * scale for n in parts}
        bounded = np.concatenate(list(bound(parts).values()))
        assert np.linalg.norm(bounded) == pytest.approx(1)
        ends.append(bounded)

    assert np.linalg.norm(ends[0] - ends[1]) <= SENSITIVITY * (1 + 1e-12)


def test_what_is_not_finite_says_nothing() -> None:
    parts = bound({"a": np.float32([np.nan, np.inf, 1]), "b": np.float32([0, 0])})

    np.testing.assert_allclose(parts["a"], [0, 0, 0.5**0.5])
    np.testing.assert_array_equal(parts["b"], [0, 0])


def test_noise_has_its_size_and_parts_start_at_0() -> None:
    found = add_noise({"a": np.zeros(20_000), "b": np.zeros((2, 3))}, 2.0)

    assert np.std(found["a"]) == pytest.approx(2.0, rel=0.03)
    assert abs(np.mean(found["a"]) - np.median(found["a"])) < 0.1
    assert found["a"].min() == found["b"].min() == 0
    assert found["b"].shape == (2, 3)


def test_noise_comes_from_the_operating_system() -> None:
    assert isinstance(privacy.NOISE, random.SystemRandom)


def test_nothing_is_drawn_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value kept back would be the first of every process forked from this one."""
    generator = random.Random(7)
    monkeypatch.setattr(privacy, "NOISE", generator)

    add_noise({"a": np.zeros(3)}, 1.0)

    _, _, ahead = generator.getstate()
    assert ahead is None


def test_without_noise_the_order_of_units_stays() -> None:
    plan = dense_plan(mlp_layout())
    both = [pack(random_arrays(plan.layout, seed), plan) for seed in (0, 1)]

    plain, _ = encode_report(*both, plan, "units")
    bounded, _ = encode_report(*both, plan, "units", ReportPrivacy(np.inf))

    np.testing.assert_array_equal(np.argsort(plain), np.argsort(bounded))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("", None),
        ("epsilon:8", ReportPrivacy(8.0)),
        ("epsilon: 0.5, delta:1e-6", ReportPrivacy(0.5, 1e-6)),
        ("epsilon:inf", ReportPrivacy(np.inf)),
        (str(ReportPrivacy(3.0, 1e-7)), ReportPrivacy(3.0, 1e-7)),
    ],
)
def test_texts(text: Any, expected: Any) -> None:
    assert parse_privacy(text, whose="node 7") == expected


@pytest.mark.parametrize(
    "text",
    ["8", "epsilon", "epsilon:0", "epsilon:-1", "epsilon:nan", "delta:1e-5", 8.0,
     "epsilon:8,delta:1", "epsilon:8,delta:0", "epsilon:8,sigma:1",
     "epsilon:" + "8" * 99],
)  # fmt: skip
def test_other_texts_are_errors(text: Any) -> None:
    with pytest.raises(
        AutoFlipError, match="node 7: autoflip-privacy must be 'epsilon:8'"
    ):
        parse_privacy(text, whose="node 7")
