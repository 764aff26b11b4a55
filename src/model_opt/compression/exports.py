"""Models written for others to run: as torch programs, ONNX or OpenVINO files."""

import io
import os
from pathlib import Path

import torch
from torch import nn

from model_opt.atomic import write_atomically, write_together
from model_opt.compression.inputs import Inputs
from model_opt.compression.layout import layout_of
from model_opt.compression.runtimes.export_program import export_program, onnx_bytes
from model_opt.compression.runtimes.openvino import convert, pack, unpack
from model_opt.compression.runtimes.runtime_module import RuntimeModule, WithOriginal
from model_opt.errors import TechniqueError, UnknownName

FORMATS = ("torch", "onnx", "openvino")


def export_model(model: nn.Module, path: str | os.PathLike[str], format: str, example: Inputs) -> None:
    """Writes `model` for others to run; of a compiled model that keeps the original as its fallback, the compiled one.

    Parameters
    ----------
    model
        Any module, or what a runtime runs.
    path
        The file. OpenVINO writes two, `path` with the suffixes .xml and .bin.
    format
        "torch" (torch.export; TorchScript for static int8), "onnx" or "openvino". A runtime's model has one format of
        its own.
    example
        One input; its batch may vary afterwards where the model allows it.

    Raises
    ------
    UnknownName
        For another format.
    TechniqueError
        Where this model cannot be written so.
    InvalidInput
        Where the file cannot be written; what was there before is then still there.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    target = Path(path)
    model = model.compiled if isinstance(model, WithOriginal) else model
    if isinstance(model, RuntimeModule):
        _export_runtime(model, target, format)
        return
    layout = layout_of(model, example)
    if format == "onnx":
        write_atomically(target, onnx_bytes(model, layout, example)[0])
    elif format == "torch":
        _export_program(model, target, example)
    else:
        _export_openvino(model, target, example)


def _export_runtime(model: RuntimeModule, target: Path, format: str) -> None:
    if model.format != format:
        raise TechniqueError(f"this model runs in {model.format}: it exports to {model.format!r}, not to {format!r}")
    named = {target.with_suffix(suffix).name if suffix else target.name: b for suffix, b in model.exported().items()}
    write_together(target.parent, named)


def _export_program(model: nn.Module, target: Path, example: Inputs) -> None:
    program, _ = export_program(model, layout_of(model, example), example)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(target, buffer.getvalue())


def _export_openvino(model: nn.Module, target: Path, example: Inputs) -> None:
    converted, _ = convert(model, layout_of(model, example), example)
    xml, weights = unpack(pack(converted, half_weights=False))
    write_together(target.parent, {target.with_suffix(".xml").name: xml, target.with_suffix(".bin").name: weights})
