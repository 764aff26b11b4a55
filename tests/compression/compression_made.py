"""Small models, plans and material for the tests of precisions, runtimes and shipping."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_opt.compression.inputs import Inputs
from model_opt.compression.machine import inspect
from model_opt.compression.technique import Material
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.search.plan import Choice, Plan


class Block(nn.Module):
    """A transformer block as `clean` leaves it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.proj(y)
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def cnn() -> tuple[nn.Module, Tensor, Family]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return model.eval(), torch.randn(8, 3, 16, 16), Family.CNN


def vit() -> tuple[nn.Module, Tensor, Family]:
    torch.manual_seed(0)
    return TinyViT().eval(), torch.randn(8, 3, 32, 32), Family.VIT


def plan(**options: str) -> Plan:
    left_alone = ("fp32", "torch")
    return Plan(tuple(Choice(decision=d, option=o) for d, o in options.items() if o not in left_alone))


def material(model: nn.Module, x: Inputs, family: Family, phases: list[str] | None = None, **changes: Any) -> Material:
    seen = [] if phases is None else phases
    return Material(
        teacher=model,
        example=x,
        fit=[x],
        held_out=[x],
        signature=ModelSignature(family=family, parameters=1, layers=1, operators={}, stages=()),
        machine=inspect(),
        threads=1,
        seed=0,
        phase=seen.append,
        **changes,
    )
