"""What users' models are wrapped in, computed from, kept in or remember is no obstacle."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from model_opt.compression.adopt import adopt
from model_opt.compression.inputs import answers
from model_opt.compression.keep_state import put_back_state
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.widen import in_float32, is_widened

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)).eval()


def old_norm(function, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(layer)


def with_computed_weights(make) -> nn.Module:
    model = network()
    model[0], model[4] = make(model[0]), make(model[4])
    return model.eval()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (parametrizations.weight_norm, "weight norm"),
        (parametrizations.spectral_norm, "spectral norm"),
        (parametrizations.orthogonal, "orthogonal"),
        (lambda layer: old_norm(nn.utils.weight_norm, layer), "weight norm"),
        (lambda layer: old_norm(nn.utils.spectral_norm, layer), "spectral norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "pruning masks"),
    ],
)
def test_weights_that_are_computed_become_plain_ones(make, said):
    model = with_computed_weights(make)
    want = model(X)
    made, told = adopt(model)
    assert torch.allclose(made(X), want, atol=1e-5)
    assert any(said in one for one in told)
    assert not any(parametrize.is_parametrized(module) or module._forward_pre_hooks for module in made.modules())
    assert "weight" in dict(made[0].named_parameters())
    copy.deepcopy(made).load_state_dict(made.state_dict())
    assert torch.equal(model(X), want), "the user's own model was changed"


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda m: torch.compile(nn.DataParallel(m))])
def test_what_wraps_a_model_is_taken_off(wrap):
    made, told = adopt(wrap(network()))
    assert type(made) is nn.Sequential and told


def test_an_adapter_is_merged():
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.factor = network(), 2.0

        def merge_and_unload(self) -> nn.Module:
            self.base[4].weight.data *= self.factor
            self.base[4].bias.data *= self.factor
            return self.base

        def forward(self, x):
            return self.factor * self.base(x)

    model = Adapted().eval()
    want = model(X)
    made, told = adopt(model)
    assert type(made) is nn.Sequential and torch.allclose(made(X), want, atol=1e-5)
    assert torch.equal(model(X), want) and "adapter" in told[0]


def test_attributes_that_an_older_torch_did_not_save_are_added():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Hardswish())
    del model[1].approximate, model[2].inplace
    made, _ = adopt(model)
    assert made[1].approximate == "none" and made[2].inplace is False


def test_a_tensor_that_a_call_left_behind_does_not_hinder_a_copy():
    model = network()
    model.last = model(X)
    assert torch.equal(adopt(model)[0].last, model.last)


def test_caches_that_grow_are_switched_off():
    model = network()
    model.config = type("Config", (), {"use_cache": True})()
    made, told = adopt(model)
    assert made.config.use_cache is False and model.config.use_cache is True and "use_cache" in told[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_answered_as_it_was(dtype):
    model = network().to(dtype)
    wide = in_float32(model, X.to(dtype))
    assert is_widened(wide) and is_widened(copy.deepcopy(wide)) and wide[0].weight.dtype is torch.float32
    made = wide(X.to(dtype))
    assert made.dtype is dtype
    assert signal_to_noise_db(model(X.to(dtype)), made) > 30
    assert wide.to(torch.bfloat16)(X.to(dtype)).dtype is dtype  # in another precision again


def test_float32_and_what_names_its_type_stay_as_they_are():
    class Fixed(nn.Linear):
        def forward(self, x):
            return torch.mm(x.bfloat16(), self.weight.T)

    model = network()
    assert in_float32(model, X) is model
    fixed = Fixed(4, 4).bfloat16()
    assert in_float32(fixed, torch.randn(2, 4).bfloat16()) is fixed


class Counting(nn.Module):
    """Adds up what it has seen: in a buffer, in place or anew, or in an attribute that is None at first."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept, self.linear = kept, nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(4))
        self.state = None

    def forward(self, x):
        made = self.linear(x)
        if self.kept == "attribute":
            self.state = made.mean(0) + (0 if self.state is None else self.state)
            return made + self.state
        if self.kept == "in place":
            self.total.add_(made.mean(0))
        else:
            self.total = self.total + made.mean(0)
        return made + self.total


@pytest.mark.parametrize("kept", ["attribute", "in place", "anew"])
def test_what_a_model_keeps_from_call_to_call_is_put_back(kept):
    model, x = Counting(kept).eval(), torch.randn(3, 4)
    with torch.no_grad():
        want = copy.deepcopy(model)(x)
    assert put_back_state(model, x)
    for _ in range(2):
        assert torch.allclose(answers(model, x)[0], want)
    assert torch.allclose(answers(copy.deepcopy(model), x)[0], want)
    assert model.state is None and not model.total.any()


def test_dropout_is_no_state():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    assert not put_back_state(model.train(), torch.randn(3, 4)) and not model._forward_hooks


def test_a_cache_that_changes_no_answer_stays():
    class Cached(nn.Linear):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = torch.arange(4.0)
            return super().forward(x) + self.table

    model = Cached(4, 4)
    assert not put_back_state(model, torch.randn(3, 4)) and not model._forward_hooks
