"""What the tests of the structural techniques share: material, a trained digits network, the way a plan is applied."""

import copy
import functools

import torch
from architectures import ResidualCNN
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs
from model_opt.compression.machine import inspect
from model_opt.compression.sign_model import sign_model
from model_opt.compression.technique import Material, handler_of
from model_opt.search.plan import Choice, Plan


def material(teacher: nn.Module, example: Inputs, fit: list[Inputs], held_out: list[Inputs] | None = None) -> Material:
    return Material(
        teacher=teacher,
        example=example,
        fit=fit,
        held_out=fit[-1:] if held_out is None else held_out,
        signature=sign_model(teacher),
        machine=inspect(),
        threads=1,
        seed=0,
        phase=lambda name: None,
    )


def applied(recipe: Material, *, to_the_last: bool = True, **choices: str) -> nn.Module:
    """The teacher's copy after `choices`, in the order in which they are named; without what follows their last stages
    unless `to_the_last`."""
    plan = Plan(tuple(Choice(decision=d, option=o) for d, o in choices.items()))
    model = copy.deepcopy(recipe.teacher)
    for decision, option in choices.items():
        handler, stage = handler_of(decision)
        model = handler.apply(model, option, stage, plan, recipe)
        last = [d for d in choices if handler_of(d)[0] is handler][-1] == decision
        if to_the_last and last and handler.after_last is not None:
            handler.after_last(model, recipe)
    return model


def noisy_norms(model: nn.Module) -> nn.Module:
    """`model` in eval mode, its batch norms with statistics that are not those of a fresh one."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 8 - 1
    return images, torch.tensor(found.target)[order]


@functools.cache
def trained() -> Material:
    """A residual CNN that knows the first 1,200 digits; calibrated on 384 of them without labels."""
    torch.manual_seed(0)
    images, labels = digits()
    model = ResidualCNN(16)
    steps = 6 * 19
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    make = torch.Generator().manual_seed(1)
    for _ in range(6):
        for rows in torch.randperm(1200, generator=make)[:1197].split(63):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    fit = list(images[:384].split(64))
    return material(model.eval(), images[:8], fit, list(images[384:640].split(64)))


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, labels = digits()
    return float((model(images[1200:]).argmax(1) == labels[1200:]).float().mean())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], value) for name, value in before.items())


def hooks_left(model: nn.Module) -> list[str]:
    return [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def survives(model: nn.Module, example: Tensor) -> None:
    """Copies, pickles and exports of `model` compute what it does, and no hook is left."""
    import cloudpickle

    assert not hooks_left(model)
    with torch.no_grad():
        expected = model(example)
        assert torch.equal(copy.deepcopy(model)(example), expected)
        assert torch.equal(cloudpickle.loads(cloudpickle.dumps(model))(example), expected)
        exported = torch.export.export(model, (example,), strict=False).module()
        assert torch.allclose(exported(example), expected, atol=1e-5)
