"""The proof of a layout: random numbers, and units that answer though removed."""

import pytest
import torch
from torch import nn

from flwr_autoflip.errors import AutoFlipWarning
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.graph.tracing.verify import answering_groups


class Vae(nn.Module):
    """A variational autoencoder, which draws also when it is evaluated."""

    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.first, self.mean = nn.Linear(6, 8), nn.Linear(8, latent)
        self.spread, self.back = nn.Linear(8, latent), nn.Linear(latent, 8)
        self.last = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        drawn = torch.randn_like(self.spread(x))
        code = self.mean(x) + drawn * (self.spread(x) / 2).exp()
        return self.last(torch.relu(self.back(code)))


class Noisy(nn.Module):
    """Noise on the input: as many numbers, whatever is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.randn(x.shape, dtype=x.dtype)
        return self.last(torch.relu(self.first(x)))


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_noise_is_drawn_alike_by_both_models() -> None:
    layout = trace(Noisy(), torch.zeros(1, 6))

    assert [group.name for group in layout.groups] == ["first"]


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_a_latent_space_that_is_drawn_stays_and_the_rest_is_pruned() -> None:
    with pytest.warns(AutoFlipWarning, match="forward draws random numbers") as found:
        layout = trace(Vae(), torch.zeros(1, 6))

    assert len(found) == 2  # and that no axis shows itself to be the batch
    assert {group.name for group in layout.groups} == {"first", "back"}


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_the_callers_generator_stays() -> None:
    model = Noisy()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)

    trace(model, torch.zeros(1, 6))

    torch.testing.assert_close(torch.rand(2), expected)


# --- What removed units still do in the masked model ---


def network(activation: nn.Module, norm: bool = False) -> nn.Sequential:
    between = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(
        nn.Linear(6, 8),
        *between,
        activation,
        nn.Linear(8, 5),
        nn.ReLU(),
        nn.Linear(5, 2),
    )


@pytest.mark.parametrize(
    "activation",
    [nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid()],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("norm", [False, True])
def test_units_that_answer_although_they_are_gone(
    activation: nn.Module, norm: bool
) -> None:
    model, example = network(activation, norm), torch.zeros(2, 6)

    assert answering_groups(model, example, trace(model, example)) == ("0",)


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU(), nn.Hardswish(), nn.PReLU()],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("norm", [False, True])
def test_units_that_are_gone_in_the_masked_model_too(
    activation: nn.Module, norm: bool
) -> None:
    model, example = network(activation, norm), torch.zeros(2, 6)

    assert answering_groups(model, example, trace(model, example)) == ()
