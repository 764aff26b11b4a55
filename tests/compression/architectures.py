"""Small networks of every family, for tests: a residual CNN, a ViT, a UNet with cross attention, a DiT."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)  # used twice, as torchvision does
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualCNN(nn.Module):
    """Digits of 8×8 or 28×28 pixels, one channel."""

    def __init__(self, width: int = 32, classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = ResidualBlock(width, width, 1)
        self.layer2 = ResidualBlock(width, 2 * width, 2)
        self.layer3 = ResidualBlock(2 * width, 4 * width, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.head(self.dropout(x.mean((2, 3))))


class TinyBlock(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """A ViT with `nn.MultiheadAttention` for images of 32×32 and three channels."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4, image: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(TinyBlock(width, heads, 0.1) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def time_features(timestep: Tensor, width: int) -> Tensor:
    """Sinusoidal features of `timestep`, `[batch]` → `[batch, width]`."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2, device=timestep.device) / (width // 2))
    angles = timestep.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], -1)


class Attention(nn.Module):
    """Attention as diffusers names it; `context` None means self-attention."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(0.0)])

    def forward(self, x: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        other = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, t in ((self.to_q, x), (self.to_k, other), (self.to_v, other))
        )
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[1](self.to_out[0](y))


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, context, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), encoder_hidden_states)
        return x + self.ff(self.norm3(x))


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x))) + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        return self.conv2(functional.silu(self.norm2(y))) + self.conv_shortcut(x)


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(width, context, heads)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        batch, width, high, wide = x.shape
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            y = block(y, encoder_hidden_states)
        return x + self.proj_out(y.transpose(1, 2).reshape(batch, width, high, wide))


class UNet(nn.Module):
    """A denoiser with cross attention: `(sample [b, 4, 16, 16], timestep [b], encoder_hidden_states [b, 7, 32])`."""

    def __init__(self, width: int = 32, context: int = 32) -> None:
        super().__init__()
        self.width, time = width, 4 * width
        self.time_embedding = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down1, self.attn1 = ResnetBlock(width, width, time), SpatialTransformer(width, context, 4)
        self.downsample = nn.Conv2d(width, width, 3, 2, 1)
        self.down2, self.attn2 = ResnetBlock(width, 2 * width, time), SpatialTransformer(2 * width, context, 4)
        self.middle = ResnetBlock(2 * width, 2 * width, time)
        self.upsample = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up, self.attn3 = ResnetBlock(3 * width, width, time), SpatialTransformer(width, context, 4)
        self.norm_out, self.conv_out = nn.GroupNorm(8, width), nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        time = self.time_embedding(time_features(timestep, self.width))
        skip = self.attn1(self.down1(self.conv_in(sample), time), encoder_hidden_states)
        x = self.attn2(self.down2(self.downsample(skip), time), encoder_hidden_states)
        x = self.upsample(functional.interpolate(self.middle(x, time), scale_factor=2.0))
        x = self.attn3(self.up(torch.cat([x, skip], 1), time), encoder_hidden_states)
        return self.conv_out(functional.silu(self.norm_out(x)))


class DiTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        a, b, c, d, e, f = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        x = x + c * self.attn1(self.norm1(x) * (1 + a) + b)
        return x + f * self.ff(self.norm2(x) * (1 + d) + e)


class DiT(nn.Module):
    """A diffusion transformer: `(sample [b, 4, 16, 16], timestep [b])`."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4, patch: int = 2) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.patches = nn.Conv2d(4, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, (16 // patch) ** 2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList([DiTBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 4 * patch * patch)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        batch, channels, high, wide = sample.shape
        condition = self.time(time_features(timestep, self.width))
        x = self.patches(sample).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            x = block(x, condition)
        x = self.out(self.norm(x)).reshape(batch, high // self.patch, wide // self.patch, self.patch, self.patch, 4)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, high, wide)


def unet_inputs(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    make = torch.Generator().manual_seed(seed)
    steps = torch.randint(1000, (batch,), generator=make)
    return torch.randn(batch, 4, 16, 16, generator=make), steps, torch.randn(batch, 7, 32, generator=make)
