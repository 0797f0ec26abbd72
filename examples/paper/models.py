"""The paper's five models, each with a ``width``; 1 is the paper's size.

Parameter counts at width 1 against Section V of the paper:

=================  ===========  ===========  =======================================
model              here         paper        what the text leaves open
=================  ===========  ===========  =======================================
six-layer CNN        7,628,490    7,628,484  everything but "six-layer": see the class
EfficientNet-B3     10,711,602   10,838,784  its classifier; torchvision's with 10
ResNet-50           23,712,932   23,755,900  its depth; torchvision's with 100 classes
FEMNIST-CNN         13,180,734   13,180,734  nothing: equal
two-layer LSTM       5,040,000    5,040,000  its sizes: see the class
=================  ===========  ===========  =======================================

The two models for larger images get a stem for 32x32 ones, without a change in
parameters: EfficientNet's first stride is 1, ResNet has no max-pool behind its first
convolution.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.resnet import Bottleneck


def scaled(sizes: Sequence[int], width: float) -> list[int]:
    """Multiply layer sizes by a width, at least 4 units a layer."""
    return [max(4, round(size * width)) for size in sizes]


class SixLayerCNN(nn.Sequential):
    """Four 3x3 convolutions and two linear layers, for 28x28 grey images.

    The paper gives only the number of layers and of parameters, 7,628,484. Of all
    rising channel counts with one kernel size and common sizes of the hidden layer,
    96-128-256-384 on a 2x2 map and 4,096 comes nearest: 6 parameters more.
    """

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        *conv, hidden = scaled((96, 128, 256, 384, 4096), width)
        layers: list[nn.Module] = []
        for before, after in zip([1, *conv[:-1]], conv, strict=True):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        layers[-1] = nn.AdaptiveAvgPool2d(2)  # the map is 3x3 here
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(4 * conv[-1], hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )


class FemnistCNN(nn.Sequential):
    """Two 5x5 convolutions and two linear layers: 13,180,734 parameters, as reported.

    Each convolution is followed by ReLU and a padded 2x2 max-pool; an adaptive
    average pool brings the 8x8 map to 7x7.
    """

    def __init__(self, classes: int = 62, width: float = 1.0) -> None:
        first, second, hidden = scaled((64, 128, 2048), width)
        super().__init__(
            nn.Conv2d(1, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, padding=1),
            nn.Conv2d(first, second, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2, padding=1),
            nn.AdaptiveAvgPool2d(7),
            nn.Flatten(),
            nn.Linear(49 * second, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )


class CharacterLSTM(nn.Module):
    """Embedding, two LSTM layers, one linear layer: the next character, everywhere.

    The paper gives only the depth and 5,040,000 parameters. An embedding of 24 and a
    hidden size of 640, the output layer without bias, has exactly as many; no other
    round sizes have. The authors' code has 8 and 256: 819,920.
    """

    def __init__(self, classes: int = 80, width: float = 1.0) -> None:
        super().__init__()
        embedding, hidden = scaled((24, 640), width)
        self.embed = nn.Embedding(classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, num_layers=2, batch_first=True)
        self.fc = nn.Linear(hidden, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, length)`` codes to logits ``(batch, length, classes)``."""
        return self.fc(self.lstm(self.embed(x))[0])


class ResNet50(nn.Module):
    """ResNet-50 of torchvision's blocks for 32x32 images.

    torchvision's own class has its widths written into it. At width and depth 1 the
    layers, their names and their number of parameters are torchvision's.
    """

    def __init__(
        self, classes: int = 100, width: float = 1.0, depth: float = 1.0
    ) -> None:
        super().__init__()
        self.before, *planes = scaled((64, 64, 128, 256, 512), width)
        blocks = [max(1, round(count * depth)) for count in (3, 4, 6, 3)]
        self.conv1 = nn.Conv2d(3, self.before, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.before)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(planes[0], blocks[0], 1)
        self.layer2 = self._stage(planes[1], blocks[1], 2)
        self.layer3 = self._stage(planes[2], blocks[2], 2)
        self.layer4 = self._stage(planes[3], blocks[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def _stage(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        after = planes * Bottleneck.expansion
        shortcut = nn.Sequential(
            nn.Conv2d(self.before, after, 1, stride, bias=False),
            nn.BatchNorm2d(after),
        )
        layers = [Bottleneck(self.before, planes, stride, shortcut)]
        layers += [Bottleneck(after, planes) for _ in range(blocks - 1)]
        self.before = after
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 3, 32, 32)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


EFFICIENTNET_STAGES = (
    # expansion, kernel, stride, channels before and after, blocks: B0's, which
    # B3 makes 1.2 times as wide and 1.4 times as deep
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


def efficientnet_b3(
    classes: int = 10, width: float = 1.0, depth: float = 1.0
) -> EfficientNet:
    """Build torchvision's EfficientNet-B3 for 32x32 images.

    Dropout (.3) and stochastic depth (.2) are B3's at width 1; a narrower model, which
    sees an image a few times only, goes without. Channels are multiples of 8.
    """
    settings = [
        MBConvConfig(*stage, width_mult=1.2 * width, depth_mult=1.4 * depth)
        for stage in EFFICIENTNET_STAGES
    ]
    regularise = width >= 1
    model = EfficientNet(
        settings,
        dropout=0.3 * regularise,
        stochastic_depth_prob=0.2 * regularise,
        num_classes=classes,
    )
    model.features[0][0].stride = (1, 1)
    return model
