"""Recovery by gradient steps: distillation from the original without labels, or fine-tuning where labels are given.

Distillation takes Adam steps at a tenth of a usual training rate towards the original's logits on calibration inputs,
half of them lightly mixed up (Zhang et al., ICLR 2018; Beyer et al., CVPR 2022), and is kept only if the divergence
falls on inputs that nothing was fitted on. The loss is the squared error of the logits (Kim et al., IJCAI 2021): a
network that was refitted already lost by the divergence of the mixed inputs, which outweighs that of the others. The
model stays in eval mode throughout: no dropout, no change of statistics.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_opt.compression.inputs import Inputs, batch_size, call, map_tensors, output, tensors
from model_opt.compression.samples import sample
from model_opt.compression.technique import Handler, Machine, Material, Technique, register
from model_opt.compression.techniques.clean import ensure, reference
from model_opt.errors import TechniqueDidNothing, TechniqueError
from model_opt.search.model_signature import ModelSignature
from model_opt.search.plan import Plan

FINETUNE = "finetune"
"""The option that needs `Material.train_data`; not among `Handler.options`, which know no data."""
RATE = 5e-4
BATCH, LEAST_BATCH, BATCH_NUMBERS = 64, 16, 2**21
"""Rows of a step: fewer where a row has many numbers, for a step on images of 224 pixels takes seconds."""
POOL_NUMBERS = 50_000_000
"""How much calibration data is trained on: 200 MB."""
SAME = 1e-6
"""A divergence below which there is nothing to recover."""
LONGEST_S = 150.0
"""How long gradient steps may take: what would take longer is refused after the first few of them."""
SHARES = (0.5, 0.25, 0.1)
"""How far from the start, of the way to the end."""
_TIMED_STEPS = 3
_SHARE_LEFT = 0.3
"""Of the original's time, what a compressed model's step takes at the least."""
_MOST_PARAMETERS = 15_000_000

Loss = Callable[[Tensor, Tensor], Tensor]


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) a row, of logits `[rows, classes]`; of other outputs the relative squared error."""
    if teacher.dim() == 2 and teacher.shape[1] > 1:
        return functional.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")
    return squared_error(student, teacher)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """‖student − teacher‖² ÷ ‖teacher‖²."""
    return (student - teacher).square().sum() / teacher.square().sum().clamp(min=1e-12)


def distil(model: nn.Module, material: Material, steps: int) -> tuple[float, float]:
    """Trains `model`, in place, for `steps` steps; returns the held-out divergence before and after.

    Raises `TechniqueDidNothing` where there is nothing to recover, `TechniqueError` where it would take too long.
    """
    teacher = material.teacher
    before = _held_out(model, material)
    if before < SAME:
        raise TechniqueDidNothing(f"{steps}: the model still answers as the original does")
    pool = _pool(material)
    batches = ((x, _logits(teacher, x)) for x in _mixed(pool, steps, material.seed))
    start = [parameter.detach().clone() for parameter in model.parameters()]
    _train(model, batches, squared_error, steps)
    return before, _best_on_the_way(model, start, before, lambda: _held_out(model, material))


@torch.no_grad()
def _best_on_the_way(model: nn.Module, start: Sequence[Tensor], before: float, loss: Callable[[], float]) -> float:
    """The loss after training; where that is not below the one `before`, of few rows perhaps, goes back from the end
    towards the `start`, in place, as far as it takes (Wortsman et al., "Robust fine-tuning", CVPR 2022)."""
    after = loss()
    if after < before:
        return after
    end = [parameter.detach().clone() for parameter in model.parameters()]
    for share in SHARES:
        for parameter, first, last in zip(model.parameters(), start, end, strict=True):
            parameter.copy_(first.lerp(last, share) if first.is_floating_point() else first)
        after = loss()
        if after < before:
            break
    return after


def _pool(material: Material) -> Inputs:
    """The rows that gradient steps draw from."""
    return sample(material.fit, most=4096, elements=POOL_NUMBERS)


def _train(model: nn.Module, batches: Iterable[tuple[Inputs, Tensor]], loss: Loss, steps: int) -> None:
    """Not channels last, though that takes a third less time: torch 2.14's backward pass then writes outside its memory
    on a processor with AVX2 only (the process aborts soon after: tests/compression/test_distil.py beside another one).
    """
    wanted = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    try:
        with torch.enable_grad():
            taken, began = [], time.monotonic()
            for inputs, target in batches:
                optimiser.zero_grad()
                loss(output(call(model, inputs)), target).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                taken.append(time.monotonic() - began)
                _check_pace(taken, steps)
                began = time.monotonic()
    finally:
        for parameter, flag in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag).grad = None


def _check_pace(taken_s: Sequence[float], steps: int) -> None:
    """The quickest of the first steps tells: others' timing lengthens some of them by seconds."""
    if len(taken_s) == _TIMED_STEPS and min(taken_s) * steps > LONGEST_S:
        raise TechniqueError(f"{steps} gradient steps of {min(taken_s):.1f} s take longer than {LONGEST_S:g} s here")


def _mixed(pool: Inputs, steps: int, seed: int) -> Iterator[Inputs]:
    """Batches of rows of `pool`, every other one with up to half of another row in it; whole numbers are not mixed."""
    generator = torch.Generator().manual_seed(seed)
    count = batch_size(pool)
    each = sum(leaf.numel() for leaf in tensors(pool)) // count
    rows = min(count, max(LEAST_BATCH, min(BATCH, BATCH_NUMBERS // max(each, 1))))
    for _ in range(steps):
        first = torch.randint(count, (rows,), generator=generator)
        second = torch.randint(count, first.shape, generator=generator)
        share = 1 - 0.5 * torch.rand(len(first), generator=generator) ** 3
        share[::2] = 1
        yield map_tensors(_mixer(first, second, share), pool)


def _mixer(first: Tensor, second: Tensor, share: Tensor) -> Callable[[Tensor], Tensor]:
    def mix(rows: Tensor) -> Tensor:
        if not rows.is_floating_point():
            return rows[first]
        weight = share.to(rows).view(-1, *(1,) * (rows.dim() - 1))
        return weight * rows[first] + (1 - weight) * rows[second]

    return mix


@torch.no_grad()
def _logits(model: nn.Module, inputs: Inputs) -> Tensor:
    return output(call(model, inputs)).clone()


@torch.no_grad()
def _held_out(model: nn.Module, material: Material) -> float:
    losses = [divergence(_logits(model, x), _logits(material.teacher, x)) for x in material.held_out]
    return float(sum(losses)) / max(len(losses), 1)


def finetune(model: nn.Module, train_data: Iterable[Any], steps: int) -> tuple[float, float]:
    """Trains `model`, in place, on pairs of inputs and targets; returns the loss before and after on two batches that
    are set aside. Whole-number targets mean classes, others are regressed."""
    source = iter(train_data)
    aside = list(itertools.islice(source, 2))
    if not aside:
        raise TechniqueError("train_data is empty")
    before = _labelled(model, aside)
    pairs = list(itertools.islice(source, steps)) or aside
    _train(model, itertools.islice(itertools.cycle(pairs), steps), _supervised, steps)
    return before, _labelled(model, aside)


@torch.no_grad()
def _labelled(model: nn.Module, pairs: Sequence[Any]) -> float:
    return float(sum(_supervised(_logits(model, x), y) for x, y in pairs)) / len(pairs)


def _supervised(made: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point():
        return functional.mse_loss(made, target)
    return functional.cross_entropy(made, target)


def _check_time(option: str, material: Material) -> None:
    """Refuses at once what would take too long, told from steps of the original: before it is pruned and refitted."""
    if option == FINETUNE:
        return
    step_s = material.findings.distil_step_s
    if step_s is None:
        step_s = material.findings.distil_step_s = _step_s(material)
    if _SHARE_LEFT * step_s * int(option) > LONGEST_S:
        raise TechniqueError(f"{option} gradient steps, of {step_s:.1f} s for the original, take too long here")


def _step_s(material: Material) -> float:
    """Seconds of the quicker of two gradient steps of a copy of the original; 0 where it cannot make one."""
    model = copy.deepcopy(reference(material))
    pool = _pool(material)
    taken, began = [], time.monotonic()
    try:
        for inputs in _mixed(pool, 2, material.seed):
            _train(model, [(inputs, _logits(material.teacher, inputs))], squared_error, 1)
            taken.append(time.monotonic() - began)
            began = time.monotonic()
    except (RuntimeError, TypeError, ValueError):
        return 0.0  # applying it says what is wrong
    return min(taken)


def _apply(model: nn.Module, option: str, stage: str | None, plan: Plan, material: Material) -> nn.Module:
    if option == FINETUNE and material.train_data is None:
        raise TechniqueError("fine-tuning needs train_data: batches of (inputs, target)")
    model = ensure(model, material)
    material.phase("prepare")
    try:
        if option == FINETUNE:
            before, after = finetune(model, material.train_data, 200)
        else:
            before, after = distil(model, material, int(option))
    except (RuntimeError, TypeError, ValueError) as error:
        raise TechniqueError(f"{option} gradient steps fail on this model: {error}") from error
    if not after < before:
        raise TechniqueDidNothing(f"{option}: the loss on inputs set aside went from {before:.4g} to {after:.4g}")
    return model


def _options(model: nn.Module, signature: ModelSignature, machine: Machine) -> Sequence[str]:
    """Offered where the steps may end within minutes: on a GPU, or for models of up to 15 million parameters."""
    small = sum(p.numel() for p in model.parameters()) <= _MOST_PARAMETERS
    trainable = any(p.is_floating_point() for p in model.parameters())
    return ("100", "400") if trainable and (small or machine.device != "cpu") else ()


register(
    Handler(
        decision="distil",
        leave_alone="none",
        technique=lambda option: Technique.FINE_TUNING if option == FINETUNE else Technique.DISTILLATION,
        options=_options,
        apply=_apply,
        check=_check_time,
        version=2,
    )
)
