"""Precisions in torch itself: they run, they come close, they shrink, and the pairs that do not go are known."""

import copy
import pickle

import pytest
import torch
from compression_made import cnn, material, plan, vit
from torch import nn

from model_opt.compression import precision, runtime
from model_opt.compression.inputs import call
from model_opt.compression.machine import inspect
from model_opt.compression.precision import PRECISIONS, forbidden, precisions
from model_opt.compression.runtime_module import signal_to_noise_db
from model_opt.compression.shipping import size_bytes
from model_opt.compression.static_int8 import quantised_engine, repair_relu6, to_static_int8
from model_opt.errors import InvalidInput, TechniqueDidNothing, UnknownName
from model_opt.search.signature import Family
from model_opt.search.space import Decision, SearchSpace


@pytest.mark.parametrize(
    ("make", "option", "floor_db", "share"),
    [
        (cnn, "bf16", 30, 0.6),
        (cnn, "int8_static", 22, 0.4),
        (cnn, "int8_dynamic", 22, 0.9),
        (vit, "bf16", 30, 0.6),
        (vit, "int8_dynamic", 22, 0.5),
    ],
)
def test_a_precision_runs_close_to_float_and_shrinks(make, option, floor_db, share) -> None:
    model, x, family = make()
    made = precision.apply(copy.deepcopy(model), option, None, plan(precision=option), material(model, x, family))
    with torch.no_grad():
        wanted, got = model(x), made(x)
        fewer = made(x[:3])
        copied = copy.deepcopy(made)(x)
        pickled = pickle.loads(pickle.dumps(made))(x)
    assert got.dtype == torch.float32
    assert signal_to_noise_db(wanted, got) > floor_db
    assert size_bytes(made) < share * size_bytes(model)
    assert fewer.shape == (3, 10)
    assert torch.equal(copied, got)
    assert torch.equal(pickled, got)


def test_int8_finds_its_engine_whatever_the_process_uses() -> None:
    model, x, family = cnn()
    made = precision.apply(copy.deepcopy(model), "int8_static", None, plan(), material(model, x, family))
    got = made(x)
    with quantised_engine("qnnpack"):
        assert torch.equal(copy.deepcopy(made)(x), got)


def test_relu6_becomes_a_relu_that_int8_caps_at_6() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Flatten()).eval()
    x = torch.randn(8, 3, 4, 4) * 60
    with torch.no_grad():
        model[2].weight *= 4
    assert not any(isinstance(m, nn.ReLU6) for m in repair_relu6(copy.deepcopy(model)).modules())
    got = to_static_int8(copy.deepcopy(model), material(model, x, Family.CNN))(x)
    assert float(model(x).max()) == 6
    assert 5.9 < float(got.max()) < 6.1
    assert signal_to_noise_db(model(x), got) > 20


def test_bias_correction_removes_the_mean_error() -> None:
    model, x, family = cnn()
    made = precision.apply(copy.deepcopy(model), "int8_static", None, plan(), material(model, x, family))
    error = (made(x) - model(x)).detach()
    assert float(error.mean(0).abs().mean()) < 0.5 * float(error.abs().mean())


def test_a_precision_that_does_nothing_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()).eval()
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TechniqueDidNothing, match="no linear layer"):
        precision.apply(model, "int8_dynamic", None, plan(), material(model, x, Family.CNN))
    with pytest.raises(UnknownName, match="int8_static"):
        precision.apply(model, "int3", None, plan(), material(model, x, Family.CNN))


def test_a_runtime_that_quantises_itself_gets_the_float_model() -> None:
    model, x, family = cnn()
    chosen = plan(precision="int8_static", runtime="openvino")
    assert precision.apply(model, "int8_static", None, chosen, material(model, x, family)) is model


def test_options_fit_the_model_and_rules_fit_the_space() -> None:
    model, x, family = vit()
    machine = inspect()
    offered = precisions(model, material(model, x, family).signature, machine)
    assert "int8_dynamic" in offered or not machine.int8_dot
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    assert "int8_dynamic" not in precisions(convolutional, material(model, x, family).signature, machine)
    space = SearchSpace(
        [
            Decision("precision", sorted({o for able in PRECISIONS.values() for o in able}, key=lambda o: o != "fp32")),
            Decision("runtime", sorted(PRECISIONS, key=lambda o: o != "torch")),
        ],
        forbidden(machine, material(model, x, Family.VIT).signature),
    )
    for illegal in (("bf16", "onnxruntime"), ("int8_static", "packed"), ("int8_dynamic", "openvino")):
        assert not space.fits(space.plan({"precision": illegal[0], "runtime": illegal[1]}))
    assert not space.fits(space.plan({"precision": "int8_static"}))
    assert space.fits(space.plan({"precision": "int8_static", "runtime": "openvino"}))
    assert set(runtime.MAKE) == set(PRECISIONS) - {"torch"}


def test_mappings_and_structures_survive() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 64)
            self.linear = nn.Linear(64, 64)

        def forward(self, ids, scale):
            y = self.linear(self.embedding(ids)) * scale
            return {"hidden": y, "pooled": (y.mean(1), None)}

    model = Named().eval()
    x = {"ids": torch.randint(0, 50, (4, 6)), "scale": torch.ones(4, 1, 1)}
    made = precision.apply(copy.deepcopy(model), "bf16", None, plan(), material(model, x, Family.OTHER))
    got = call(made, x)
    assert got["hidden"].dtype == torch.float32
    assert got["pooled"][1] is None


def test_wrong_shapes_are_refused_by_a_runtime() -> None:
    model, x, family = cnn()
    made = precision.apply(copy.deepcopy(model), "int8_static", None, plan(), material(model, x, family))
    with pytest.raises(InvalidInput, match="takes"):
        made(torch.randn(4, 3, 8, 8))
    with pytest.raises(InvalidInput, match="tensor"):
        made(x, x)
