"""ONNX Runtime, in float32 or static int8."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_opt.compression.interface import layout_for
from model_opt.compression.layout import Layout
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.export_program import once, onnx_bytes
from model_opt.compression.runtimes.openvino import calibration_samples
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.technique import Material
from model_opt.errors import MissingDependency, TechniqueError


class OnnxModule(RuntimeModule):
    """A model as an ONNX file, run by ONNX Runtime on the processor."""

    format: ClassVar[str] = "onnx"

    def open(self, file: bytes) -> Any:
        """ONNX Runtime's session; its threads do not spin, which would slow torch beside it by a quarter."""
        runtime = onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(self, session: Any, tensors: list[Tensor]) -> Sequence[Tensor]:
        """What the session returns; it makes new arrays for every call."""
        names = [port.name for port in session.get_inputs()]
        feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]


def onnxruntime() -> Any:
    """The module onnxruntime; raises `MissingDependency`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "cpu") from error
    return onnxruntime


def to_onnxruntime(model: nn.Module, precision: str, material: Material) -> nn.Module:
    """`model` as an ONNX Runtime module in `precision` ("fp32", "int8_static")."""
    onnxruntime()
    layout = layout_for(model, material)
    file, free = once(material, model, "onnx", lambda: onnx_bytes(model, layout, material.example))
    if precision == "int8_static":
        file = quantise(file, layout, material)
    return OnnxModule(file, layout, threads=material.threads, batch=None if free else layout.batch)


class _Samples:
    """Calibration batches as ONNX Runtime's `CalibrationDataReader`."""

    def __init__(self, names: list[str], samples: list[list[Any]]) -> None:
        self.feeds = [dict(zip(names, sample, strict=True)) for sample in samples]
        self.rewind()

    def rewind(self) -> None:
        self.rest = iter(self.feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rest, None)


def quantise(file: bytes, layout: Layout, material: Material) -> bytes:
    """Static int8 as QDQ: QUInt8 activations, QInt8 weights per channel; raises `TechniqueError`.

    Where sums of int8 products saturate in 16 bits, weights have 7 bits.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready, done = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "done"))
        Path(plain).write_bytes(file)
        try:
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                done,
                _Samples(_input_names(ready), calibration_samples(layout, material, layout.batch)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=not material.machine.int8_dot,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            raise TechniqueError(f"ONNX Runtime cannot quantise this model: {str(error).strip()[:300]}") from error
        return Path(done).read_bytes()


def _input_names(path: str) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.input]
