"""Recovery without labels: every layer is solved, in closed form, to make again what the original's layer made.

Layer-wise least squares as in channel pruning (He, Zhang & Sun, ICCV 2017), but for every layer, inside one forward
pass of the compressed model, so that each layer is fitted to what the layers before it, already fitted, now give it.
With X the layer's inputs and Y the original's pre-activations at the same positions, both centred,

    W = W₀ + (Y − X·W₀ᵀ)ᵀ·X·(XᵀX + λ·n·I)⁻¹,    b = mean Y − W·mean X,

λ·n being a multiple of the mean diagonal of XᵀX, chosen by the error on a quarter of the images that the solution has
not seen; "leave W" (λ = ∞) and "leave the layer" are among the choices.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, batch_size, call
from model_opt.compression.samples import SOLVABLE, Solvable, hooked, outputs_of, sample, sampled_inputs
from model_opt.compression.technique import Material
from model_opt.compression.techniques.clean import reference

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
KEPT = "_model_opt_kept"
"""Attribute of a pruned layer: which of the original layer's outputs it still has, `[outputs]`."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the original makes of `inputs`: pre-activations by layer, `[images, samples, outputs]`."""

    inputs: Inputs
    outputs: dict[str, Tensor]


def targets(material: Material) -> Targets:
    """The targets of every refit of this model, recorded once."""
    if material.findings.targets is None:
        material.phase("prepare")
        inputs = sample(material.fit)
        outputs = outputs_of(reference(material), inputs, material.seed)
        material.findings.targets = Targets(inputs=inputs, outputs=outputs)
    return material.findings.targets


def refit(model: nn.Module, material: Material) -> int:
    """Solves the layers of `model`, in place, in the order in which they run. Returns how many were changed."""
    wanted = targets(material)
    images, changed = batch_size(wanted.inputs), []

    def watch(name: str, layer: Solvable, Y: Tensor) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            X = sampled_inputs(name, layer, args[0], images, material.seed)
            if X is not None and X.shape[:2] == Y.shape[:2] and solve(layer, X, Y):
                changed.append(name)

        return layer.register_forward_pre_hook(before)

    pairs = [(n, end_of(model, n), y) for n, y in wanted.outputs.items()]
    fitting = [(n, layer, y if kept is None else y[..., kept]) for n, (layer, kept), y in pairs if layer is not None]
    with hooked(watch(*each) for each in fitting if each[2].shape[-1] == each[1].weight.shape[0]):
        call(model, wanted.inputs)
    return len(changed)


def end_of(model: nn.Module, name: str) -> tuple[Solvable | None, Tensor | None]:
    """The layer that makes the outputs of the original's layer `name`, and which outputs it still has.

    Where low rank put a sequence in the layer's place, that is the last of it.
    """
    try:
        module: nn.Module = model.get_submodule(name)
    except AttributeError:
        return None, None
    if isinstance(module, nn.Sequential):
        module = module[-1]
    return (module, getattr(module, KEPT, None)) if isinstance(module, SOLVABLE) else (None, None)


def solve(layer: Solvable, X: Tensor, Y: Tensor) -> bool:
    """Fits `layer` to `Y` `[images, samples, outputs]` from `X` `[images, samples, groups, features]`, in place.

    Returns whether anything is better than the layer as it is.
    """
    groups, features = X.shape[2:]
    seen = max(1, X.shape[0] * 3 // 4)
    if seen == X.shape[0]:
        return False
    W0 = layer.weight.detach().reshape(groups, -1, features)
    X, Y = X.transpose(1, 2), Y.reshape(*Y.shape[:2], groups, -1).transpose(1, 2)  # [images, groups, samples, …]
    problem = _Problem(*_flat(X[:seen]), *_flat(Y[:seen]), W0)
    held_X, held_Y = _stack(X[seen:]), _stack(Y[seen:])
    as_it_is = held_Y - held_X @ W0.mT - (0 if layer.bias is None else layer.bias.detach().view(groups, 1, -1))
    best = float(as_it_is.square().sum())
    if best <= 1e-9 * float(held_Y.square().sum()):
        return False
    ridge = _best_ridge(problem, held_X - problem.mean_X, held_Y - problem.mean_Y, best)
    if ridge is None:
        return False
    _store(layer, _Problem(*_flat(X), *_flat(Y), W0), ridge)
    return True


def _best_ridge(problem: "_Problem", held_X: Tensor, held_Y: Tensor, as_it_is: float) -> float | None:
    """The ridge with the least error on images not seen (infinite: only the bias changes), judged on at most 128 of
    the outputs; None where nothing is below `as_it_is`, the error of the layer as it is."""
    rest = held_Y - held_X @ problem.W0.mT
    some = torch.linspace(0, rest.shape[2] - 1, min(rest.shape[2], 128), device=rest.device).long()
    errors = {ridge: float((rest[..., some] - held_X @ problem.change(ridge, some)).square().sum()) for ridge in RIDGES}
    ridge = min(errors, key=errors.__getitem__)
    if errors[ridge] >= float(rest[..., some].square().sum()):
        ridge, error = math.inf, float(rest.square().sum())
    else:
        error = float((rest - held_X @ problem.change(ridge)).square().sum())
    return ridge if error < as_it_is else None


def _store(layer: Solvable, problem: "_Problem", ridge: float) -> None:
    W = problem.W0 if math.isinf(ridge) else problem.W0 + problem.change(ridge).mT
    bias = (problem.mean_Y - problem.mean_X @ W.mT).flatten()
    layer.weight.data.copy_(W.reshape(layer.weight.shape))
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=layer.weight.requires_grad)
    layer.bias.data.copy_(bias)


def _stack(values: Tensor) -> Tensor:
    """`[images, groups, samples, k]` as `[groups, images·samples, k]`."""
    return values.transpose(0, 1).flatten(1, 2)


def _flat(values: Tensor) -> tuple[Tensor, Tensor]:
    """`values` stacked and centred, with its mean `[groups, 1, k]`."""
    stacked = _stack(values)
    mean = stacked.mean(1, keepdim=True)
    return stacked - mean, mean


class _Problem:
    """One layer's least squares, `[groups, …]`: in primal form, or in dual where there are fewer rows than features."""

    def __init__(self, X: Tensor, mean_X: Tensor, Y: Tensor, mean_Y: Tensor, W0: Tensor) -> None:
        self.mean_X, self.mean_Y, self.W0 = mean_X, mean_Y, W0
        residual = Y - X @ W0.mT
        self._dual = X if X.shape[1] < X.shape[2] else None
        self._gram = X @ X.mT if self._dual is not None else X.mT @ X
        self._right = residual if self._dual is not None else X.mT @ residual
        self._scale = X.square().sum((1, 2)) / X.shape[2]  # the mean diagonal of XᵀX, [groups]

    def change(self, ridge: float, outputs: Tensor | slice = slice(None)) -> Tensor:
        """(W − W₀)ᵀ for λ·n = `ridge` times the mean diagonal, `[groups, features, outputs]`."""
        eye = torch.eye(self._gram.shape[1], dtype=self._gram.dtype, device=self._gram.device)
        tiny = torch.finfo(self._gram.dtype).tiny
        factor, failed = torch.linalg.cholesky_ex(self._gram + (ridge * self._scale + tiny)[:, None, None] * eye)
        if bool(failed.any()):
            return torch.zeros_like(self.W0[:, outputs]).mT
        solution = torch.cholesky_solve(self._right[..., outputs], factor)
        return solution if self._dual is None else self._dual.mT @ solution
