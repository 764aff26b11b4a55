"""Low rank by what layers see: output PCA for linears and 1×1 convolutions, Tucker-2 for k×k; then the refit.

With C the covariance of a layer's inputs and U the top eigenvectors of W·C·Wᵀ, the layer becomes Uᵀ·W followed by U:
the best approximation of its *outputs* of that rank. A k×k convolution also loses input channels, along the directions
that its weights do not look at (whitened by the channels' covariance). Ranks are chosen over all layers by one
threshold on (eigenvalue × ½·Fisher) ÷ cost of a rank, so that a given share of the cost is kept; without a Fisher
information (large models) by the eigenvalue's share of the layer's output power. Layers that would not get cheaper
stay dense.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from model_opt.compression.cost import cost, require_cheaper
from model_opt.compression.inputs import Inputs, batch_size, call, output
from model_opt.compression.samples import (
    Solvable,
    few,
    hooked,
    sampled_inputs,
    solvable_layers,
    stage_filter,
)
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.clean import ensure
from model_opt.compression.techniques.prune import shapes_of
from model_opt.compression.techniques.refit import KEPT, refit, targets
from model_opt.errors import TechniqueError
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

Made = TypeVar("Made", nn.Linear, nn.Conv2d)
SHARES = ("0.75", "0.5", "0.25")
_FISHER_NUMBERS = 2_000_000
"""Calibration numbers times layers above which backward passes are not worth their time."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that may be factorised. `inside` and `outside` are the principal directions of its input channels
    (k×k only) and outputs, best first, with the power that each carries, weighted by how much outputs matter."""

    name: str
    layer: Solvable
    places: int
    basis: Tensor
    power: Tensor
    encode: Tensor | None = None
    decode: Tensor | None = None
    channel_power: Tensor | None = None

    def ranks(self, threshold: float) -> tuple[int, int] | None:
        """(input rank, output rank) whose directions are worth `threshold` each; None where dense is no dearer.

        The input rank of a linear or 1×1 is all of its inputs.
        """
        out, taps, inputs = self.basis.shape[0], self._taps, self._inputs
        into, rank = inputs, out
        for _ in range(3 if self.channel_power is not None else 1):
            price = (into * taps + out) * self.weight
            rank = _rounded(int((self.power / price >= threshold).sum()), len(self.power))
            if self.channel_power is not None:
                price = (inputs + rank * taps) * self.weight
                into = _rounded(int((self.channel_power / price >= threshold).sum()), inputs)
        return (into, rank) if self.cost(into, rank) < 0.95 * self.dense else None

    def cost(self, into: int, rank: int) -> float:
        """The cost of these ranks, in the unit of `dense`."""
        first = self._inputs * into if self.channel_power is not None else 0
        return (first + into * self._taps * rank + rank * self.basis.shape[0]) * self.weight

    @property
    def dense(self) -> float:
        """The cost as it is: weights, and as much again by how often they are used in a call."""
        return self.layer.weight.numel() * self.weight

    @property
    def weight(self) -> float:
        """The cost of one weight of this layer: half for being stored, half for each place where it is used."""
        return 0.5 + 0.5 * self.places / 64

    @property
    def _inputs(self) -> int:
        return int(self.layer.weight.shape[1])

    @property
    def _taps(self) -> int:
        return self.layer.weight[0, 0].numel()


def _rounded(rank: int, most: int) -> int:
    unit = 8 if most >= 64 else 4 if most >= 16 else 1
    return min(most, max(unit, round(rank / unit) * unit))


def factorise(model: nn.Module, share: float, material: Material, inside: Callable[[str], bool]) -> int:
    """Replaces layers of `model` that are `inside`, in place, until about `share` of their cost is left.

    Returns how many were replaced.
    """
    return replace(model, analyse(model, material, inside), share)


def replace(model: nn.Module, layers: Sequence[Layer], share: float) -> int:
    """Replaces those of `layers` whose ranks fall short of the one threshold that leaves `share` of their cost, in
    place; returns how many."""
    budget = share * sum(layer.dense for layer in layers)
    low, high = -60.0, 60.0  # log of the threshold
    for _ in range(40):
        middle = (low + high) / 2
        total = sum(_cost_at(layer, middle) for layer in layers)
        low, high = (middle, high) if total > budget else (low, middle)
    replaced = 0
    for layer in layers:
        ranks = layer.ranks(float(torch.tensor(high, dtype=torch.float64).exp()))
        if ranks is not None:
            model.set_submodule(layer.name, _split(layer, *ranks))
            replaced += 1
    return replaced


def _cost_at(layer: Layer, log_threshold: float) -> float:
    ranks = layer.ranks(float(torch.tensor(log_threshold, dtype=torch.float64).exp()))
    return layer.dense if ranks is None else layer.cost(*ranks)


def analyse(model: nn.Module, material: Material, inside: Callable[[str], bool]) -> list[Layer]:
    """The layers of `model` that may be factorised, with their principal directions on the calibration data."""
    inputs = targets(material).inputs
    images, found, calls = batch_size(inputs), dict[str, Layer](), dict[str, int]()
    pairs = [(n, m) for n, m in solvable_layers(model) if inside(n) and _worth(m)]
    fisher = _fisher(model, few(inputs, 64), pairs)

    def watch(name: str, layer: Solvable) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], made: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            X = sampled_inputs(name, layer, args[0], images, material.seed)
            if X is not None:
                places = made.numel() // (images * layer.weight.shape[0])
                found[name] = _directions(name, layer, X.flatten(0, 2), places, fisher.get(name))

        return layer.register_forward_hook(seen)

    with hooked(watch(name, layer) for name, layer in pairs):
        call(model, inputs)
    return [layer for name, layer in found.items() if calls[name] == 1]


def _worth(layer: Solvable) -> bool:
    plain = isinstance(layer, nn.Linear) or layer.groups == 1
    return plain and min(layer.weight.shape[:2]) >= 8


def _directions(name: str, layer: Solvable, X: Tensor, places: int, fisher: float | None) -> Layer:
    """The principal directions of `layer` for inputs `X`, `[rows, features]`."""
    X = X - X.mean(0)
    power, basis = _outputs(X, layer.weight.detach().flatten(1))
    scale = 0.5 * fisher * places if fisher is not None else 1 / max(float(power.sum()), 1e-30)
    made = Layer(name=name, layer=layer, places=places, basis=basis, power=power * scale)
    if made._taps == 1:
        return made
    return _channels(made, X.reshape(len(X), layer.weight.shape[1], -1), scale)


def _outputs(X: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of W·C·Wᵀ, greatest first, `[k]` and `[outputs, k]` with the least k."""
    if W.shape[0] <= W.shape[1]:
        Y = X @ W.mT
        power, basis = torch.linalg.eigh(Y.mT @ Y / len(Y))
        return power.flip(0).clamp(min=0), basis.flip(1)
    values, vectors = torch.linalg.eigh(X.mT @ X / len(X))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    power, directions = torch.linalg.eigh(root @ (W.mT @ W) @ root)
    basis, _ = torch.linalg.qr(W @ root @ directions.flip(1))
    return power.flip(0).clamp(min=0), basis


def _channels(made: Layer, X: Tensor, scale: float) -> Layer:
    """`made` with the principal directions of its input channels; `X` is `[rows, channels, taps]`."""
    flat = X.transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(flat.mT @ flat / len(flat))
    floor = 1e-6 * float(values.max()) + torch.finfo(values.dtype).tiny
    root = values.clamp(min=floor).sqrt()
    half, inverse = (vectors * root) @ vectors.mT, (vectors / root) @ vectors.mT
    W = made.layer.weight.detach().flatten(2)  # [outputs, channels, taps]
    seen = half @ torch.einsum("oct,odt->cd", W, W) @ half
    power, directions = torch.linalg.eigh(seen)
    directions = directions.flip(1)
    return Layer(
        name=made.name,
        layer=made.layer,
        places=made.places,
        basis=made.basis,
        power=made.power,
        encode=directions.mT @ inverse,
        decode=half @ directions,
        channel_power=power.flip(0).clamp(min=0) * scale,
    )


def _fisher(model: nn.Module, inputs: Inputs, pairs: Sequence[tuple[str, Solvable]]) -> dict[str, float]:
    """Mean squared gradient of log p(y) by each layer's outputs, y drawn from the model; empty where too dear."""
    if sum(t.numel() for t in [output(inputs)]) * len(pairs) > _FISHER_NUMBERS * 32:
        return {}
    made: dict[str, Tensor] = {}

    def watch(name: str, layer: Solvable) -> Any:
        def seen(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
            made[name] = result

        return layer.register_forward_hook(seen)

    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(True)
    try:
        with hooked(watch(name, layer) for name, layer in pairs), torch.enable_grad():
            loss = _surprise(output(call(model, inputs)))
            if not made or not loss.requires_grad:
                return {}
            gradients = torch.autograd.grad(loss, list(made.values()), allow_unused=True)
    finally:
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)
    found = {n: float(g.square().mean()) for n, g in zip(made, gradients, strict=True) if g is not None}
    return found if all(found.values()) else {}  # zero behind a head that has not been trained


def _surprise(logits: Tensor) -> Tensor:
    """−Σ log p(y), with y drawn from the model itself; half the square of the output where it is no classifier's."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        return 0.5 * logits.square().sum()
    generator = torch.Generator(device=logits.device).manual_seed(0)
    drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    return -logits.log_softmax(1).gather(1, drawn).sum()


def _split(layer: Layer, into: int, rank: int) -> nn.Sequential:
    """The factors in the layer's place; the last makes the layer's outputs, so that the refit can fit it."""
    old, U = layer.layer, layer.basis[:, :rank]
    W = old.weight.detach()
    bias = None if old.bias is None else old.bias.detach()
    if isinstance(old, nn.Linear):
        parts: list[nn.Module] = [_linear(U.mT @ W, None), _linear(U, bias)]
    else:
        core = torch.einsum("or,ocxy->rcxy", U, W)
        parts = []
        if layer.encode is not None and layer.decode is not None and into < W.shape[1]:
            parts.append(_conv(layer.encode[:into, :, None, None], None))
            core = torch.einsum("rcxy,ci->rixy", core, layer.decode[:, :into])
        parts += [_conv(core, None, old), _conv(U[:, :, None, None], bias)]
    last = parts[-1]
    if hasattr(old, KEPT):
        setattr(last, KEPT, getattr(old, KEPT))
    return nn.Sequential(*parts).train(old.training)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    return _filled(made, weight, bias)


def _conv(weight: Tensor, bias: Tensor | None, like: nn.Conv2d | None = None) -> nn.Conv2d:
    """A convolution with `weight`; strides, padding and dilation are those of `like`."""
    how: dict[str, Any] = {} if like is None else {k: getattr(like, k) for k in ("stride", "padding", "dilation")}
    outputs, inputs, high, wide = weight.shape
    made = nn.Conv2d(
        inputs, outputs, (high, wide), bias=bias is not None, device=weight.device, dtype=weight.dtype, **how
    )
    return _filled(made, weight, bias)


def _filled(made: Made, weight: Tensor, bias: Tensor | None) -> Made:
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None and made.bias is not None:
            made.bias.copy_(bias)
    return made


def _apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    model = ensure(model, material)
    inputs = few(material.example, 2)
    before, shape = cost(model, inputs), shapes_of(model, inputs)
    try:
        factorise(model, float(option), material, stage_filter(material.teacher, stage))
        after = shapes_of(model, inputs)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise TechniqueError(f"low rank {option} breaks this model: {error}") from error
    if after != shape:
        raise TechniqueError(f"low rank {option} changes the output's shape: {shape} → {after}")
    require_cheaper(before, cost(model, inputs), f"low rank {option}")
    return model


def _options(model: nn.Module, signature: ModelSignature, machine: Machine) -> Sequence[str]:
    """Offered where a layer is wide enough that half of its ranks cost less than all of its weights."""
    return SHARES if any(_worth(m) and min(m.weight.shape[:2]) >= 32 for _, m in solvable_layers(model)) else ()


register(
    Handler(
        decision="low_rank",
        leave_alone="0",
        technique=lambda option: Technique.LOW_RANK,
        options=_options,
        apply=_apply,
        after_last=refit,
        ordered=True,
        per_stage=False,
    )
)
