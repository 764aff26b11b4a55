"""Runtimes: every one is an `nn.Module` that agrees with torch, copies, and takes other batches."""

import copy
import dataclasses
import pickle
from collections.abc import Callable

import pytest
import torch
from compression_made import cnn, material, plan, vit
from torch import Tensor, nn

from model_opt.compression.inputs import call
from model_opt.compression.layout import Flat, layout_of
from model_opt.compression.machine import inspect
from model_opt.compression.runtimes import aot_inductor, openvino, runtime_decision
from model_opt.compression.runtimes.checks import checked
from model_opt.compression.runtimes.export_program import onnx_bytes
from model_opt.compression.runtimes.openvino import to_openvino
from model_opt.compression.runtimes.runtime_decision import runtimes
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.errors import InvalidInput, MeasurementFailed, MissingDependency, TechniqueError
from model_opt.search.model_signature import Family

COMPILERS = pytest.mark.soak
CASES = [
    (cnn, "openvino", "fp32", 90),
    (cnn, "openvino", "int8_static", 22),
    (cnn, "onnxruntime", "fp32", 90),
    (cnn, "onnxruntime", "int8_static", 22),
    (cnn, "packed", "fp32", 90),
    (vit, "openvino", "bf16", 25),
    (vit, "openvino", "int8_static", 8),
    (vit, "onnxruntime", "int8_static", 20),
    *[
        pytest.param(make, name, precision, floor, marks=COMPILERS)
        for make in (cnn, vit)
        for name, precision, floor in (
            ("aot_inductor", "fp32", 90),
            ("aot_inductor", "bf16", 25),
            ("aot_inductor", "int8_static", 20),
            ("torch_compile", "fp32", 90),
            ("torch_compile", "bf16", 25),
        )
    ],
]


@pytest.mark.parametrize(("make", "name", "precision", "floor_db"), CASES)
def test_a_runtime_agrees_copies_and_takes_other_batches(make, name, precision, floor_db, capsys) -> None:
    if name in ("openvino", "onnxruntime"):
        pytest.importorskip(name)
    model, x, family = make()
    given = copy.deepcopy(model)
    chosen = plan(precision=precision, runtime=name)
    if name == "torch_compile" and precision != "fp32":
        from model_opt.compression.runtimes import precision as precisions

        given = precisions.apply(given, precision, None, chosen, material(model, x, family))
    made = runtime_decision.apply(given, name, None, chosen, material(model, x, family))
    with torch.no_grad():
        wanted, got = model(x), made(x)
        kept = got.clone()
        odd = made(x[:3])
        again = made(x)  # torch.compile has compiled anew, for any batch, and rounds otherwise
        copied = copy.deepcopy(made)(x)
        pickled = pickle.loads(pickle.dumps(made))(x)
    assert capsys.readouterr().out == ""
    assert got.dtype == torch.float32
    assert signal_to_noise_db(wanted, got) > floor_db
    assert signal_to_noise_db(wanted[:3], odd) > floor_db - 3
    assert torch.equal(kept, got)
    assert signal_to_noise_db(wanted, again) > floor_db
    assert torch.equal(copied, again)
    assert torch.equal(pickled, again)


def test_int8_in_openvino_is_smaller() -> None:
    pytest.importorskip("openvino")
    model, x, family = cnn()
    float32 = to_openvino(copy.deepcopy(model), "fp32", material(model, x, family))
    int8 = to_openvino(copy.deepcopy(model), "int8_static", material(model, x, family))
    assert size_bytes(int8) < 0.5 * size_bytes(float32)


def test_int8_does_not_heed_a_short_last_batch() -> None:
    pytest.importorskip("openvino")
    model, x, family = cnn()
    whole = material(model, x, family)
    longer = dataclasses.replace(whole, fit=[*whole.fit, whole.fit[0][:1]])
    one, other = (to_openvino(copy.deepcopy(model), "int8_static", each) for each in (whole, longer))
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(("make", "calibrations"), [(cnn, openvino.CALIBRATIONS), (vit, openvino.FOR_TRANSFORMERS)])
def test_int8_takes_the_calibration_that_comes_closest_on_held_out_rows(
    make: Callable[[], tuple[nn.Module, Tensor, Family]], calibrations: tuple[openvino.Calibration, ...]
) -> None:
    pytest.importorskip("openvino")
    model, x, family = make()
    chosen = material(model, x, family)
    to_openvino(copy.deepcopy(model), "int8_static", chosen)
    closeness = {}
    for calibration in calibrations:
        given = material(model, x, family)
        given.findings.calibration = calibration
        int8 = to_openvino(copy.deepcopy(model), "int8_static", given)
        rows = torch.cat(list(given.held_out))[: openvino.CALIBRATION_ROWS // openvino.TRIAL_PART]
        with torch.no_grad():
            closeness[calibration] = signal_to_noise_db(model(rows), int8(rows))
    assert len(set(closeness.values())) == 2
    assert chosen.findings.calibration == max(closeness, key=lambda one: closeness[one])


def test_int8_of_aot_inductor_is_calibrated_on_fit_batches_of_any_size() -> None:
    pytest.importorskip("torchao")
    model, x, family = cnn()
    example = x[:1] / 100  # says nothing of the ranges
    given = dataclasses.replace(material(model, x, family), example=example, fit=[x, x.flip(0)])
    layout = layout_of(model, example)
    with torch.no_grad():
        program = torch.export.export(Flat(model, layout).eval(), (example,), strict=True)
        made = aot_inductor.quantise(program, (), layout, given)
        got, wanted = (torch.cat([f(row) for row in x.split(1)]) for f in (lambda row: made(row)[0], model))
    assert signal_to_noise_db(wanted, got) > 20


class Fixed(nn.Module):
    """Counts on a batch of four."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(4, 2, 3).flatten(1))


def test_a_fixed_batch_is_split_and_padded() -> None:
    pytest.importorskip("openvino")
    model, x = Fixed().eval(), torch.randn(4, 2, 3)
    made = to_openvino(model, "fp32", material(model, x, Family.OTHER))
    assert made.batch == 4
    rows = torch.randn(7, 2, 3)
    wanted = torch.cat([model(rows[:4]), model(torch.cat([rows[4:], rows[:1]]))[:3]])
    assert torch.allclose(made(rows), wanted, atol=1e-4)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(50, 64), nn.Linear(64, 64)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, object]:
        y = self.linear(self.embedding(ids)) * mask.unsqueeze(-1)
        return {"hidden": y, "pooled": (y.mean(1), None)}


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_mappings_go_in_and_structures_come_out(name: str) -> None:
    pytest.importorskip(name)
    model = Pair().eval()
    x = {"mask": torch.ones(4, 6), "ids": torch.randint(0, 50, (4, 6))}
    made = runtime_decision.apply(
        copy.deepcopy(model), name, None, plan(runtime=name), material(model, x, Family.OTHER)
    )
    got, wanted = call(made, x), call(model, x)
    assert torch.allclose(got["hidden"], wanted["hidden"], atol=1e-4)
    assert got["pooled"][1] is None
    with pytest.raises(InvalidInput, match="takes"):
        made(**{**x, "ids": torch.zeros(4, 7, dtype=torch.long)})


class Shared(RuntimeModule):
    """Hands out one buffer for every call, as some runtimes do."""

    format = "shared"

    def open(self, file: bytes) -> Tensor:
        return torch.zeros(4, 3)

    def run(self, session: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        return [session.copy_(tensors[0])]


def test_wrong_outputs_and_shared_buffers_are_found() -> None:
    x = torch.randn(4, 3)
    given = material(nn.Identity(), x, Family.OTHER)
    module = Shared(b"buffer", layout_of(nn.Identity(), x), threads=1)
    with pytest.raises(MeasurementFailed, match="second call"):
        checked(module, nn.Identity(), given, 20, "shared")
    with pytest.raises(MeasurementFailed, match="wrong"):
        checked(nn.LayerNorm(3), nn.Identity(), given, 20, "other")
    with pytest.raises(MeasurementFailed, match="wrong"):
        checked(nn.Threshold(9.0, float("nan")), nn.Identity(), given, 20, "nan")


def test_what_a_runtime_cannot_run_is_an_error() -> None:
    model, x, family = cnn()
    chosen = plan(precision="bf16", runtime="onnxruntime")
    with pytest.raises(TechniqueError, match="does not run bf16"):
        runtime_decision.apply(model, "onnxruntime", None, chosen, material(model, x, family))


def test_a_package_that_is_not_there_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses
    import sys

    model, x, family = cnn()
    machine = inspect()
    given = material(model, x, family)
    bare = dataclasses.replace(machine, packages={}, compiler=False)
    assert not {"openvino", "onnxruntime", "aot_inductor"} & set(runtimes(model, given.signature, bare))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"model_opt\[cpu\]"):
        runtime_decision.apply(model, "onnxruntime", None, plan(runtime="onnxruntime"), given)


def test_an_onnx_file_says_nothing_of_where_it_was_made() -> None:
    pytest.importorskip("onnx")
    model, x, _ = cnn()
    file, _ = onnx_bytes(model, layout_of(model, x), x)
    assert b".py" not in file and b"site-packages" not in file
