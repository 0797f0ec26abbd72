"""The loops."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from examples.paper.training import evaluate, recompute_statistics, train


def data(count: int = 13) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorDataset(inputs, (inputs[:, 0] > 0).long())


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def test_full_batch_step_is_sgd_by_hand() -> None:
    layer, twin = nn.Linear(4, 2), nn.Linear(4, 2)
    twin.load_state_dict(layer.state_dict())
    inputs, labels = data().tensors
    loss = nn.functional.cross_entropy(twin(inputs), labels)
    loss.backward()

    got = train(layer, data(), epochs=1, batch_size=13, lr=0.1, weight_decay=0.5)

    expected = twin.weight - 0.1 * (twin.weight.grad + 0.5 * twin.weight)
    torch.testing.assert_close(layer.weight, expected)
    assert got == pytest.approx(loss.item())


def test_the_seed_decides_everything_and_torchs_own_state_stays() -> None:
    weights = []
    for seed in (0, 0, 1):
        trained = model()
        before = torch.get_rng_state()
        train(trained, data(), epochs=2, batch_size=4, lr=0.1, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(trained[0].weight)

    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


def test_batchnorm_never_meets_a_batch_of_one() -> None:
    normed = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    train(normed, data(13), epochs=1, batch_size=4, lr=0.1)

    assert int(normed[1].num_batches_tracked) == 4  # 4, 3, 3, 3 and not 4, 4, 4, 1


def test_no_epoch_changes_nothing() -> None:
    trained = model()

    assert train(trained, data(), epochs=0, batch_size=4, lr=0.1) == 0

    torch.testing.assert_close(trained[0].weight, model()[0].weight, rtol=0, atol=0)


def test_loss_and_top1_by_hand() -> None:
    inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    normalised = torch.log_softmax(inputs, 1)[range(3), labels]

    loss, top1 = evaluate(nn.Identity(), TensorDataset(inputs, labels))

    assert loss == pytest.approx(-float(normalised.mean()))
    assert top1 == pytest.approx(2 / 3)


def test_every_position_of_a_text_counts() -> None:
    codes = torch.arange(600).view(300, 2) % 5  # two parts of a pass
    one_hot = nn.Embedding(5, 5, _weight=torch.eye(5))
    labels = codes.clone()
    labels[:, 1] = 4 - labels[:, 1]

    _, top1 = evaluate(one_hot, TensorDataset(codes, labels))

    right = 1 + (codes[:, 1] == 2).float().mean()
    assert top1 == pytest.approx(float(right) / 2)
    assert train(one_hot, TensorDataset(codes, labels), 1, 300, 0.1) > 0


def test_models_of_images_learn() -> None:
    images = torch.randn(32, 1, 6, 6)
    labels = (images[:, 0, 0, 0] > 0).long()
    images[:, 0] += 2.0 * labels[:, None, None]
    examples = TensorDataset(images, labels)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(64, 2))

    train(network, examples, epochs=20, batch_size=8, lr=0.1)

    assert evaluate(network, examples)[1] > 0.9
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_statistics_by_hand_and_nothing_else_changes() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean, norm.running_var = torch.tensor([9.0]), torch.tensor([9.0])
    inputs = torch.tensor([1.0, 2.0, 6.0]).reshape(3, 1, 1, 1)

    recompute_statistics(model, inputs)

    assert norm.running_mean.item() == pytest.approx(3)
    assert norm.running_var.item() == pytest.approx(7)  # (4 + 1 + 9) / 2
    assert (norm.momentum, norm.training, model[1].training) == (0.1, False, False)
    assert norm.weight.item() == 1


def test_statistics_of_many_batches_are_their_mean() -> None:
    norm = nn.BatchNorm2d(1)
    inputs = torch.arange(128.0).reshape(128, 1, 1, 1)

    recompute_statistics(norm, inputs)

    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(63.5)
