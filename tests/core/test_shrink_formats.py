"""What users do to models besides training them still works on small ones."""

import warnings

import torch
import torch.nn.functional as F
from models import batch, build, layout_of, random_plan

from flwr_autoflip.core.shrink import hold_mask, shrink


def test_channels_last_stays_and_computes_the_same() -> None:
    plan = random_plan(layout_of("conv_flat"), 0)
    model = build("conv_flat").eval()
    x = batch("conv_flat")
    expected = shrink(model, plan)(x)

    small = shrink(model.to(memory_format=torch.channels_last), plan)

    torch.testing.assert_close(
        small(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-5
    )


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
