"""Saving, loading elsewhere, exporting, and files that are damaged."""

import copy
import errno
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from compression_made import cnn, material, plan, vit
from torch import nn

from model_opt.compression.exports import export_model
from model_opt.compression.runtimes import precision, runtime_decision
from model_opt.compression.runtimes.size import size_bytes
from model_opt.compression.save_model import load_model, read_recipe, save_model
from model_opt.errors import InvalidInput, TechniqueError, UnknownName

SCRIPT = """
from torch import nn

def twice(x):
    return 2 * x

class Users(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return twice(self.linear(x.flatten(1)[:, :64]))
"""

LOADER = """
import sys, torch
from model_opt.compression.save_model import load_model
for path in sys.argv[1:]:
    model = load_model(path)
    with torch.no_grad():
        torch.save(model(torch.load(path + ".input")), path + ".output")
"""


def made_models(folder: Path) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """One model of every kind that is quick to make."""
    found: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for make, options in (
        (cnn, {}),
        (cnn, {"precision": "int8_static"}),
        (vit, {"precision": "bf16"}),
        (vit, {"precision": "int8_dynamic"}),
        (vit, {"runtime": "packed"}),
        (cnn, {"precision": "int8_static", "runtime": "openvino"}),
        (cnn, {"runtime": "onnxruntime"}),
    ):
        model, x, family = make()
        chosen, given = plan(**options), material(model, x, family)
        if "runtime" in options:
            if options["runtime"] != "packed" and importlib.util.find_spec(options["runtime"]) is None:
                continue
            model = runtime_decision.apply(copy.deepcopy(model), options["runtime"], None, chosen, given)
        elif "precision" in options:
            model = precision.apply(copy.deepcopy(model), options["precision"], None, chosen, given)
        found[f"{make.__name__} {chosen}"] = model, x
    found["user's class"] = users_class(folder)().eval(), torch.randn(2, 3, 8, 8)
    return found


def users_class(folder: Path) -> type[nn.Module]:
    script = folder / "users_script.py"
    script.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("users_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["users_script"] = module
    spec.loader.exec_module(module)
    return module.Users


def test_every_kind_loads_in_a_fresh_process_with_equal_outputs(tmp_path: Path) -> None:
    models = made_models(tmp_path)
    (tmp_path / "users_script.py").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    wanted, paths = {}, []
    for number, (name, (model, x)) in enumerate(models.items()):
        path = elsewhere / f"{number}.model"
        save_model(model, path, recipe={"name": name})
        torch.save(x, f"{path}.input")
        with torch.no_grad():
            wanted[path] = model(x)
        paths.append(str(path))
        assert read_recipe(path) == {"name": name}
    quiet = {**os.environ, "PYTHONPATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", LOADER, *paths], capture_output=True, text=True, timeout=200, cwd=elsewhere, env=quiet
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    for path, output in wanted.items():
        assert torch.equal(torch.load(f"{path}.output"), output), read_recipe(path)
    del sys.modules["users_script"]


def test_damaged_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    model, _, _ = cnn()
    path = tmp_path / "a.model"
    save_model(model, path, recipe={})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for contents, message in (
        (b"", "not a model"),
        (b"PK\x03\x04 something else", "not a model"),
        (whole[:14], "damaged"),
        (whole[:60], "damaged"),
        (whole[:-1], "damaged"),
        (bytes(flipped), "damaged"),
        (whole.replace(b'"format": 3', b'"format": 9'), "newer"),
        (whole.replace(b'"format": 3', b'"format": 2'), "older"),
        (whole.replace(b'"format": 3', b'"farmot": 3'), "damaged"),
    ):
        path.write_bytes(contents)
        with pytest.raises(InvalidInput, match=message):
            load_model(path)
    with pytest.raises(InvalidInput, match="could not be read"):
        load_model(tmp_path / "none.model")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = cnn()
    path = tmp_path / "a.model"
    save_model(model, path, recipe={})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InvalidInput, match="No space left"):
            save_model(vit()[0], path, recipe={})
    assert [p.name for p in tmp_path.iterdir()] == ["a.model"]
    assert torch.equal(load_model(path)(x), model(x))


def test_a_folder_that_is_not_there_and_a_recipe_that_is_no_json(tmp_path: Path) -> None:
    model, _, _ = cnn()
    with pytest.raises(InvalidInput, match="could not be written"):
        save_model(model, tmp_path / "none" / "a.model", recipe={})
    with pytest.raises(InvalidInput, match="JSON"):
        save_model(model, tmp_path / "a.model", recipe={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_pickled_says_so(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(InvalidInput, match="cannot be pickled"):
        save_model(model, tmp_path / "a.model", recipe={})
    assert list(tmp_path.iterdir()) == []


def test_exports_are_what_they_say(tmp_path: Path) -> None:
    model, x, family = cnn()
    export_model(model, tmp_path / "m.pt2", "torch", x)
    assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(x)[0], model(x), atol=1e-5)
    with pytest.raises(UnknownName, match="openvino"):
        export_model(model, tmp_path / "m.x", "caffe", x)
    onnxruntime = pytest.importorskip("onnxruntime")
    export_model(model, tmp_path / "m.onnx", "onnx", x)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4)
    openvino = pytest.importorskip("openvino")
    export_model(model, tmp_path / "m.xml", "openvino", x)
    compiled = openvino.Core().compile_model(str(tmp_path / "m.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert torch.allclose(torch.from_numpy(compiled(x.numpy())[0]), model(x), atol=1e-4)
    made = runtime_decision.apply(
        copy.deepcopy(model), "onnxruntime", None, plan(runtime="onnxruntime"), material(model, x, family)
    )
    export_model(made, tmp_path / "r.onnx", "onnx", x)
    assert (tmp_path / "r.onnx").stat().st_size == size_bytes(made)
    with pytest.raises(TechniqueError, match="runs in onnx"):
        export_model(made, tmp_path / "r.xml", "openvino", x)
