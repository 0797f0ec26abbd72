"""What users do to models besides training them still works on small ones."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from models import batch, build, layout_of, random_plan
from torch import nn

from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.shrink import hold_mask, shrink
from flwr_autoflip.graph.tracing.trace import trace


def test_channels_last_stays_and_computes_the_same() -> None:
    plan = random_plan(layout_of("conv_flat"), 0)
    model = build("conv_flat").eval()
    x = batch("conv_flat")
    expected = shrink(model, plan)(x)

    small = shrink(model.to(memory_format=torch.channels_last), plan)

    torch.testing.assert_close(
        small(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-5
    )


def test_a_channels_last_model_traces_to_the_same_layout() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    x = torch.zeros(1, 3, 9, 9)

    layout = trace(
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        x.to(memory_format=torch.channels_last),
    )

    assert layout_digest(layout) == layout_digest(trace(model, x))
    assert [group.size for group in layout.groups] == [8, 4]


@pytest.mark.filterwarnings("ignore:examples are counted along axis 0")
def test_overlapping_strides_leave_their_units_dense() -> None:
    class Overlap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.b(self.a(x)).as_strided((len(x), 4), (1, 1))
            return self.c(hidden)

    layout = trace(Overlap(), torch.randn(2, 4))

    assert [group.name for group in layout.groups] == ["a"]


def test_a_compiled_small_model_trains_under_its_mask() -> None:
    plan = random_plan(layout_of("conv_flat"), 0, True)
    small = shrink(build("conv_flat"), plan).train()
    x = batch("conv_flat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = torch.compile(small, backend="eager")
        expected = small(x)
        torch.testing.assert_close(compiled(x), expected)

        optimizer = torch.optim.AdamW(small.parameters(), lr=0.1)
        with hold_mask(small, plan):
            F.mse_loss(compiled(x), torch.zeros_like(expected)).backward()
            optimizer.step()

    parameters = dict(small.named_parameters())
    assert plan.small_mask
    for name, mask in plan.small_mask.items():
        assert (parameters[name].detach()[~torch.from_numpy(mask)] == 0).all()
