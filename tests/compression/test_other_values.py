"""What a runtime computes otherwise than torch, for values that no example shows, is refused by name or not made."""

from collections.abc import Callable

import pytest
import torch
from compression_made import material
from torch import Tensor, nn

from model_opt.compression import space  # noqa: F401  (registers every technique)
from model_opt.compression.evaluation.apply import apply_plan
from model_opt.compression.runtimes.runtime_module import WithOriginal
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.errors import InvalidInput, MeasurementFailed, TechniqueError
from model_opt.search.model_signature import Family
from model_opt.search.plan import Choice, Plan


class Of(nn.Module):
    """A function of numbers before a linear layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.last = function, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(x).float())


def made(model: nn.Module, example: Tensor, runtime: str) -> nn.Module:
    plan = Plan((Choice(decision="runtime", option=runtime),))
    return apply_plan(plan, material(model.eval(), example, Family.OTHER))


def agrees_or_refuses(model: nn.Module, compiled: nn.Module, given: Tensor) -> None:
    try:
        got = compiled(given)
    except InvalidInput as error:
        assert "the model takes" in str(error) or "NaN" in str(error)
        return
    assert signal_to_noise_db(model(given), got) > 40


WHOLE = {
    "floor division": lambda x: x // 3,
    "remainder": lambda x: x % 1009,
    "thousandfold": lambda x: (x * 1000) % 97,
    "comparison": lambda x: x > 5_000_000_000,
}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_any_size_and_sign(name: str, runtime: str) -> None:
    model = Of(WHOLE[name])
    compiled = made(model, torch.randint(0, 20, (5, 6)), runtime)
    for low, high in ((0, 20), (-20, 20), (50_000_000, 100_000_000), (2**33, 2**34), (-(2**40), 2**40)):
        agrees_or_refuses(model, compiled, torch.randint(low, high, (7, 6)))
    assert signal_to_noise_db(model(torch.zeros(3, 6, dtype=torch.long)), compiled(torch.zeros(3, 6).long())) > 40


class Named(nn.Module):
    """Takes a table's places and numbers by names that are not given in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 4)

    def forward(self, weights: Tensor, ids: Tensor, bias: Tensor) -> Tensor:
        return (self.table(ids) * weights.unsqueeze(-1)).sum(1) + bias


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_limits_are_those_of_the_argument_whatever_the_order_of_names(runtime: str) -> None:
    model = Named().eval()

    def given(most: int) -> dict[str, Tensor]:
        return {"weights": torch.randn(5, 6), "ids": torch.randint(0, most, (5, 6)), "bias": torch.randn(5, 4)}

    plan = Plan((Choice(decision="runtime", option=runtime),))
    compiled = apply_plan(plan, material(model, given(20), Family.OTHER))
    other = given(50)
    assert signal_to_noise_db(model(**other), compiled(**other)) > 40
    with pytest.raises(InvalidInput, match=r"ids holds .* the model takes 0 to 49"):
        compiled(**{**other, "ids": other["ids"] + 50})


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_bytes_that_wrap(runtime: str) -> None:
    model = Of(lambda x: (x + 60).float() / 255)
    compiled = made(model, torch.randint(40, 180, (5, 6), dtype=torch.uint8), runtime)
    agrees_or_refuses(model, compiled, torch.randint(0, 256, (9, 6), dtype=torch.uint8))


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_mask_that_the_example_leaves_alone_may_be_turned(runtime: str) -> None:
    model = Of(lambda x: x * 2)
    compiled = made(model, torch.ones(5, 6, dtype=torch.long), runtime)
    turned = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    assert signal_to_noise_db(model(turned), compiled(turned)) > 40


FLOATS = {
    "atan2 at zero": lambda x: torch.atan2(x, x.roll(1, 1)),
    "logsigmoid far below zero": nn.functional.logsigmoid,
    "softplus": nn.functional.softplus,
    "gelu": nn.functional.gelu,
}


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", FLOATS)
def test_zeros_and_ten_times_as_much(name: str, runtime: str) -> None:
    model = Of(FLOATS[name])
    example = torch.randn(5, 6)
    try:
        compiled = made(model, example, runtime)
    except (TechniqueError, MeasurementFailed) as error:
        assert "wrong " in str(error)
        return
    halves = torch.arange(30).reshape(5, 6) % 2 == 0
    for given in (torch.zeros(5, 6), example * halves, -example * ~halves, 10 * example):
        assert signal_to_noise_db(model(given), compiled(given)) > 25


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_nan_is_never_made_a_number(runtime: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    compiled = made(model, torch.randn(5, 6), runtime)
    given = torch.randn(5, 6)
    given[2, 3] = torch.nan
    agrees_or_refuses(model, compiled, given)
    given[2, 3] = torch.inf  # which is no NaN: what sums to NaN is looked at again
    compiled(given)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_no_gradient_is_silently_gone(runtime: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    compiled = made(model, torch.randn(5, 6), runtime)
    x = torch.randn(3, 6, requires_grad=True)
    answer = compiled(x)
    with pytest.raises(InvalidInput, match="no gradient"):
        (answer.square().sum() + x.square().sum()).backward()
    with torch.no_grad():
        assert not compiled(x).requires_grad
    assert not compiled(x.detach()).requires_grad
    both = WithOriginal(compiled, model)  # type: ignore[arg-type]
    both(x).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, torch.autograd.grad(model(x).sum(), x)[0])


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_an_answer_is_not_traced_into_a_constant(runtime: str) -> None:
    compiled = made(nn.Sequential(nn.Linear(6, 4)).eval(), torch.randn(5, 6), runtime)
    with pytest.raises(InvalidInput, match="cannot be traced"):
        torch.jit.trace(compiled, torch.randn(5, 6))
