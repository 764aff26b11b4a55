"""The networks of the comparison, as every environment builds them: torch, torchvision and nothing of ours."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def mnist_cnn() -> nn.Module:
    """A residual CNN for digits of 28×28."""
    stem = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def mnist_vit() -> nn.Module:
    """A vision transformer for digits of 28×28 in three equal channels: 49 patches, 4 layers, width 96."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(28, 4, 4, 4, 96, 384, num_classes=10)


def efficientnet_lite0() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "mnist_cnn": mnist_cnn,
    "mnist_vit": mnist_vit,
    **{name: _torchvision(name) for name in ("resnet50", "mobilenet_v3_small", "convnext_tiny", "vit_b_16")},
}

TRANSFORMERS = ("mnist_vit", "vit_b_16")
