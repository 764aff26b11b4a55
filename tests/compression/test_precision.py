"""Precisions in torch itself: they run, they come close, they shrink, and the pairs that do not go are known."""

import copy
import dataclasses
import pickle

import pytest
import torch
from compression_made import cnn, material, plan, vit
from torch import Tensor, nn

from model_opt.compression.inputs import call
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes import precision, runtime_decision, static_int8
from model_opt.compression.runtimes.declared import RUNTIMES
from model_opt.compression.runtimes.precision import forbidden, precisions
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.runtimes.static_int8 import quantised_engine, repair_relu6, to_static_int8
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.techniques.packed_linear import available
from model_opt.errors import InvalidInput, TechniqueDidNothing, UnknownName
from model_opt.search.model_signature import Family
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
    assert "int8_dynamic" in precisions(model, material(model, x, family).signature, machine)
    convolutional = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    small = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 10)).eval()
    for without in (convolutional, small):  # dynamic int8 of so small a layer saves nothing
        assert "int8_dynamic" not in precisions(without, material(model, x, family).signature, machine)
    space = SearchSpace(
        [
            Decision(
                "precision", sorted({o for one in RUNTIMES.values() for o in one.precisions}, key=lambda o: o != "fp32")
            ),
            Decision("runtime", sorted(RUNTIMES, key=lambda o: o != "torch")),
        ],
        forbidden(machine),
    )
    for illegal in (("bf16", "onnxruntime"), ("int8_static", "packed"), ("int8_dynamic", "openvino")):
        assert not space.fits(space.plan({"precision": illegal[0], "runtime": illegal[1]}))
    for runtime_name in ("torch", "openvino", "onnxruntime"):
        assert space.fits(space.plan({"precision": "int8_static", "runtime": runtime_name}))


@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_no_instruction_set_is_a_condition(dot: bool, bf16: bool) -> None:
    machine = dataclasses.replace(inspect(), int8_dot=dot, bf16=bf16)
    for make in (cnn, vit):
        model, x, family = make()
        offered = precisions(model, material(model, x, family).signature, machine)
        assert offered == ["bf16", "int8_static", "int8_dynamic"]
    assert forbidden(machine) == forbidden(inspect())


def test_what_a_package_would_do_is_not_offered_without_it() -> None:
    bare = dataclasses.replace(inspect(), packages={"openvino": "1", "onnxruntime": "1"})
    for name in ("openvino", "onnxruntime", "aot_inductor"):
        assert "int8_static" not in RUNTIMES[name].runs(bare)
    whole = dataclasses.replace(bare, packages={"openvino": "1", "nncf": "1"})
    assert "int8_static" in RUNTIMES["openvino"].runs(whole)


@pytest.mark.parametrize("engine", torch.backends.quantized.supported_engines)
@pytest.mark.parametrize("option", ["int8_static", "int8_dynamic"])
def test_int8_is_right_in_every_engine_and_comes_back_in_it(
    engine: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "none":
        pytest.skip("that is none")
    monkeypatch.setattr(static_int8, "ENGINES", (engine,))
    monkeypatch.setattr(static_int8, "ON_ARM", (engine,))
    model, x, family = cnn()
    made = precision.apply(copy.deepcopy(model), option, None, plan(), material(model, x, family))
    assert made.engine == engine
    got = made(x)
    assert signal_to_noise_db(model(x), got) > 22
    monkeypatch.undo()
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), got)


class Loud(nn.Module):
    """All inputs and weights are as large as can be: sums of two products do not fit in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 32, 1, bias=False)
        self.second = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        nn.init.constant_(self.first.weight, 1.0)
        nn.init.constant_(self.second.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).flatten(1)


@pytest.mark.parametrize("runtime_name", ["torch", "openvino", "onnxruntime"])
def test_sums_of_the_largest_products_do_not_saturate(runtime_name: str) -> None:
    if runtime_name != "torch":
        pytest.importorskip(runtime_name)
    torch.manual_seed(0)
    model, x = Loud().eval(), torch.rand(8, 1, 12, 12) * 0.2 + 0.8
    given = material(model, x, Family.CNN)
    chosen = plan(precision="int8_static", runtime=runtime_name)
    if runtime_name == "torch":
        made = precision.apply(copy.deepcopy(model), "int8_static", None, chosen, given)
    else:
        made = runtime_decision.apply(copy.deepcopy(model), runtime_name, None, chosen, given)
    with torch.no_grad():
        assert signal_to_noise_db(model(x), made(x)) > 35


def test_older_files_were_packed_by_onednn() -> None:
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no oneDNN")
    model, x, family = cnn()
    for option in ("int8_static", "int8_dynamic"):
        made = precision.apply(copy.deepcopy(model), option, None, plan(), material(model, x, family))
        del made.engine
        assert made.engine == pickle.loads(pickle.dumps(made)).engine == "onednn"


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


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.head = nn.Linear(16, 64), nn.Linear(64, 10)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.inp(x)).mean(1))


@pytest.mark.parametrize("option", ["int8_dynamic", "packed"])
def test_an_encoders_fast_path_is_left_where_its_linears_are_no_longer_torchs(option: str) -> None:
    model, x = Encoder().eval(), torch.randn(8, 12, 16)
    given = material(model, x, Family.OTHER)
    if option == "packed":
        if not available():
            pytest.skip("this build of torch has no packed linears")
        made = runtime_decision.apply(copy.deepcopy(model), "packed", None, plan(runtime="packed"), given)
    else:
        made = precision.apply(copy.deepcopy(model), option, None, plan(precision=option), given)
    with torch.no_grad():
        assert signal_to_noise_db(model(x), made(x)) > 15
