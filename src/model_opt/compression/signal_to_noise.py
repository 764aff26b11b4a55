"""How close two answers of a model are."""

import math
from typing import Any

import torch
from torch import Tensor

from model_opt.compression.inputs import tensors

TINY = 1e-6
"""Outputs whose root mean square is below this are judged as if it were this: a network with fresh weights can return
1e-15 everywhere, which no coarser format keeps and nobody needs."""

RUINED, RUINED_DB, FEWEST = 30.0, 3.0, 4
"""One row or channel of so many or more, of as many rows, is ruined where its noise is this many times that of the
median one, and not so many decibels below what varies in it: coarse numbers err alike everywhere."""


def signal_to_noise_db(reference: Any, got: Any) -> float:
    """10·log10(‖reference‖² / ‖reference − got‖²) of the tensor of two outputs where it is least, so that a large one
    does not hide a small one; −∞ for other shapes, and for NaN or infinity where the reference has none or another.

    Of whole numbers and flags (classes, masks) it is −10·log10 of the share that differs.
    """
    wanted, made = tensors(reference), tensors(got)
    if len(wanted) != len(made):
        return -math.inf
    return min(
        (_closeness(a.detach().cpu(), b.detach().cpu()) for a, b in zip(wanted, made, strict=True)), default=math.inf
    )


def _closeness(wanted: Tensor, made: Tensor) -> float:
    if wanted.shape != made.shape:
        return -math.inf
    if not wanted.is_floating_point() and not wanted.is_complex():
        differ = float((wanted != made).double().mean()) if wanted.numel() else 0.0
        return math.inf if differ == 0 else -10 * math.log10(differ)
    wanted, made = wanted.double(), made.double()
    usual = torch.isfinite(wanted)
    if not torch.equal(wanted[~usual].nan_to_num(), made[~usual].nan_to_num()):
        return -math.inf
    wanted, made = wanted[usual], made[usual]
    noise = float((wanted - made).square().sum())
    if not math.isfinite(noise):
        return -math.inf
    power = max(float(wanted.square().sum()), TINY**2 * wanted.numel())
    return math.inf if noise == 0 else 10 * math.log10(power / noise)


def by_channel(output: Tensor) -> Tensor:
    """An output as `[rows, positions, channels]`: channels are the second axis of rows and images, the last of
    sequences; one number a row is one channel."""
    if output.dim() == 0:
        return output.reshape(1, 1, 1)
    if output.dim() == 1:
        return output.reshape(-1, 1, 1)
    if output.dim() == 2:
        return output.unsqueeze(1)
    return output if output.dim() == 3 else output.flatten(2).transpose(1, 2)


def noise(wanted: Tensor, made: Tensor) -> float:
    """The mean square of the error of a tensor; infinite for other shapes and where it is not finite."""
    if wanted.shape != made.shape:
        return math.inf
    mean = float((wanted.detach().double() - made.detach().double()).square().mean()) if wanted.numel() else 0.0
    return mean if math.isfinite(mean) else math.inf


def ruined(reference: Any, got: Any) -> str:
    """Names a row or a channel of two outputs that errs as no other does, which the sum over all would hide; or ""."""
    for wanted, made in zip(tensors(reference), tensors(got), strict=True):
        if not wanted.is_floating_point() or not wanted.dim() or len(wanted) < FEWEST:
            continue
        values, others = by_channel(wanted.detach().double().cpu()), by_channel(made.detach().double().cpu())
        error, varies = (values - others).square(), (values - values.mean((0, 1))).square()
        for axes, name in (((1, 2), "row"), ((0, 1), "channel")):
            noise, signal = error.mean(axes), varies.mean(axes)
            bad = (noise > RUINED * noise.median()) & (signal < noise * 10 ** (RUINED_DB / 10))
            if len(noise) >= FEWEST and bool(bad.any()):
                return f"{name} {int(bad.nonzero()[0]) + 1} of {len(noise)}"
    return ""
