"""torch's own compilers: AOTInductor packages (float32, bf16, int8 by PT2E) and `torch.compile`."""

import copy
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from model_opt.compression.interface import layout_for
from model_opt.compression.layout import Flat, Layout
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.export_program import example_tensors, export
from model_opt.compression.runtimes.no_gradient import no_gradient
from model_opt.compression.runtimes.openvino import calibration_samples
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.stages import weighted_layers
from model_opt.compression.technique import Machine, Material
from model_opt.errors import InvalidInput, MissingDependency, TechniqueError

SHIFT_SAMPLES = 64
"""How many samples the mean error of the logits is taken from."""


class AotModule(RuntimeModule):
    """An AOTInductor package: machine code for this kind of processor, for one batch size."""

    format: ClassVar[str] = "aot_inductor"

    def open(self, file: bytes) -> Any:
        """The package's machine code, loaded."""
        from torch._inductor import aoti_load_package

        with quiet():
            return aoti_load_package(io.BytesIO(file))

    def run(self, session: Any, tensors: list[Tensor]) -> Sequence[Tensor]:
        """What the package returns, copied out of its buffers."""
        return [tensor.clone() for tensor in session(*tensors)]


class CompiledModule(nn.Module):
    """`torch.compile` of a model by `backend`, compiled anew in every process; what is saved is the model."""

    def __init__(self, model: nn.Module, *, backend: str = "inductor", mode: str | None = None) -> None:
        """`mode` is torch.compile's: "max-autotune" uses CUDA graphs, whose outputs are then copied."""
        super().__init__()
        self.model = model
        self.backend = backend
        self.mode = mode
        self._compiled: tuple[Any, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The compiled model's output."""
        if not self._compiled:
            self._compiled = (torch.compile(self.model, backend=self.backend, mode=self.mode),)
        with torch.no_grad(), _frozen():
            output = self._compiled[0](*args, **kwargs)
        output = output if self.mode is None else pytree.tree_map_only(Tensor, torch.clone, output)
        return no_gradient("torch.compile", output, (args, kwargs))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": ()}


def _frozen() -> Any:
    from torch._inductor import config

    return config.patch(freezing=True)


def to_compiled(model: nn.Module, machine: Machine) -> nn.Module:
    """`model` under `torch.compile`, with CUDA graphs on a GPU."""
    return CompiledModule(model, mode="max-autotune" if machine.device.startswith("cuda") else None)


def to_aot(model: nn.Module, precision: str, material: Material) -> nn.Module:
    """`model` as an AOTInductor package in `precision` ("fp32", "bf16", "int8_static"); raises `TechniqueError`."""
    layout = layout_for(model, material)
    flat: nn.Module = Flat(model, layout).eval()
    tensors = example_tensors(material.example, layout)
    if precision == "bf16":
        flat = Bf16Flat(flat)
    with quiet(), torch.no_grad():
        try:
            program = export(flat, tensors, layout, strict=precision == "int8_static")
            if precision == "int8_static":
                program = export(quantise(program, _edges(flat), layout, material), tensors, layout)
            return AotModule(_package(program), layout, threads=material.threads, batch=layout.batch)
        except (TechniqueError, MissingDependency, InvalidInput):
            raise
        except Exception as error:
            raise TechniqueError(f"AOTInductor cannot compile this model: {str(error).strip()[:300]}") from error


class Bf16Flat(nn.Module):
    """A flat model in bf16, from float32 tensors to float32 tensors."""

    def __init__(self, flat: nn.Module) -> None:
        super().__init__()
        self.flat = copy.deepcopy(flat).bfloat16()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Float32 outputs of the bf16 model."""
        outputs = self.flat(*[t.bfloat16() if t.is_floating_point() else t for t in tensors])
        return tuple(t.float() if t.is_floating_point() else t for t in outputs)


def _package(program: Any) -> bytes:
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, _frozen():
        path = Path(aoti_compile_and_package(program, package_path=str(Path(folder) / "model.pt2")))
        return path.read_bytes()


def quantise(program: Any, kept: Sequence[str], layout: Layout, material: Material) -> nn.Module:
    """The exported program in static int8 by PT2E, calibrated on rows of the fit batches; raises `MissingDependency`.

    The layers named in `kept` stay in float, and logits are shifted by the mean of their error (convnext_tiny with
    random weights: 30.9 dB; with its first and last layer in float 33.4, and shifted besides 34.4). Where sums of int8
    products saturate in 16 bits, activations have 7 bits.
    """
    try:
        from torchao.quantization.pt2e import quantize_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    except ImportError as error:
        raise MissingDependency("torchao", "torchao") from error
    config = x86.get_default_x86_inductor_quantization_config(reduce_range=not material.machine.int8_dot)
    quantizer = x86.X86InductorQuantizer().set_global(config)
    original = program.module()
    for name in kept:
        quantizer.set_module_name_qconfig(name, None)
    prepared = quantize_pt2e.prepare_pt2e(program.module(), quantizer)
    samples = [[torch.from_numpy(one) for one in s] for s in calibration_samples(layout, material, layout.batch)]
    for sample in samples:
        prepared(*sample)
    converted: nn.Module = quantize_pt2e.convert_pt2e(prepared)
    return Shifted(converted, _mean_errors(original, converted, samples[:SHIFT_SAMPLES]))


def _edges(model: nn.Module) -> list[str]:
    """The names of the first layer, if it convolves, and of the last, if it is linear."""
    layers = weighted_layers(model)
    first = [name for name, module in layers[:1] if isinstance(module, nn.Conv2d)]
    return first + [name for name, module in layers[1:][-1:] if isinstance(module, nn.Linear)]


def _mean_errors(original: nn.Module, made: nn.Module, samples: Sequence[list[Tensor]]) -> list[Tensor | None]:
    """What is to be added to each float output `[batch, features]` of `made`, `[features]`; None for others."""
    pairs = [list(zip(original(*sample), made(*sample), strict=True)) for sample in samples]
    return [
        torch.cat([a - b for a, b in column]).mean(0) if _is_matrix(column[0][0]) else None
        for column in zip(*pairs, strict=True)
    ]


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.is_floating_point()


class Shifted(nn.Module):
    """A flat model with a constant added to each output that has one."""

    def __init__(self, flat: nn.Module, shifts: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.flat = flat
        for place, shift in enumerate(shifts):
            self.register_buffer(f"shift{place}", shift)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The shifted outputs."""
        outputs = self.flat(*tensors)
        shifts = [getattr(self, f"shift{place}") for place in range(len(outputs))]
        return tuple(o if shift is None else o + shift for o, shift in zip(outputs, shifts, strict=True))
