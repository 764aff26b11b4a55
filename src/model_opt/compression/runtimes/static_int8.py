"""Static int8 in torch: FX graph mode, with the engine whose kernels are right here, then traced to TorchScript.

`torch.ao.quantization` is deprecated and stays behind this one adapter. Two repairs make it accurate: ReLU6, which it
never fuses, becomes a ReLU whose calibrated range ends at 6 (int8 saturates there by itself), and biases are corrected
layer by layer on a fake-quantised copy (Nagel et al., ICCV 2019, section 4.2, with measured means).
"""

import copy
import io
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from model_opt.compression.interface import layout_for
from model_opt.compression.layout import Flat, Layout
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.export_program import example_tensors
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.technique import Material
from model_opt.errors import TechniqueDidNothing, TechniqueError

FIRST_ENGINE = "onednn"
"""The engine of files that do not say which one packed them."""
ENGINES = ("onednn", "x86", "fbgemm", "qnnpack")
"""torch's engines, best first: fbgemm takes 181 ms for EfficientNet-Lite0 with AVX2, oneDNN 27."""
ON_ARM = ("qnnpack", "onednn")
ARM = ("aarch64", "arm64")
CALIBRATION_ROWS = 128
CORRECTION_ROWS = 64


class ScriptModule(RuntimeModule):
    """A traced int8 model. The engine is set before loading: under another one its outputs are silently wrong."""

    format: ClassVar[str] = "torch"
    engine: str = FIRST_ENGINE

    def __init__(self, file: bytes, layout: Layout, *, threads: int, engine: str) -> None:
        """`engine` is torch's that packed the weights."""
        super().__init__(file, layout, threads=threads)
        self.engine = engine

    def open(self, file: bytes) -> Any:
        """The traced model, loaded under the engine that packed it."""
        with quantised_engine(self.engine), quiet():
            return cast(Any, torch.jit).load(io.BytesIO(file), map_location="cpu")

    def run(self, session: Any, tensors: list[Tensor]) -> Sequence[Tensor]:
        """What the traced model returns, in memory of its own."""
        return [tensor.clone() for tensor in session(*[tensor.cpu() for tensor in tensors])]


@contextmanager
def quantised_engine(name: str = FIRST_ENGINE) -> Iterator[None]:
    """Inside, torch's quantised engine is `name`, if this build of torch has it; the old one afterwards."""
    backend = cast(Any, torch.backends.quantized)
    before = backend.engine
    if name in backend.supported_engines:
        backend.engine = name
    try:
        yield
    finally:
        backend.engine = before


def engine_here() -> str | None:
    """The engine for int8 that this build of torch has for this kind of processor; None where there is none."""
    there = torch.backends.quantized.supported_engines
    return next((name for name in (ON_ARM if platform.machine() in ARM else ENGINES) if name in there), None)


def required_engine() -> str:
    """The same; raises `TechniqueError` where there is none."""
    engine = engine_here()
    if engine is None:
        raise TechniqueError("this build of torch has no engine for int8")
    return engine


def to_static_int8(model: nn.Module, material: Material) -> nn.Module:
    """`model` as traced int8; raises `TechniqueError` where FX cannot trace it or nothing was quantised."""
    layout = layout_for(model, material)
    batches = [example_tensors(batch, layout) for batch in material.fit]
    engine = required_engine()
    with quantised_engine(engine), quiet(), torch.no_grad():
        mapping = qconfigs(engine, exact=material.machine.int8_dot)
        prepared = _prepare(model, batches[0], mapping)
        _calibrate(prepared, list(_first_rows(batches, CALIBRATION_ROWS)))
        correct_biases(prepared, list(_first_rows(batches, CORRECTION_ROWS)), mapping.global_qconfig.weight)
        converted = _convert(prepared)
        script = _trace(Flat(converted, layout).eval(), example_tensors(material.example, layout))
    return ScriptModule(script, layout, threads=material.threads, engine=engine)


def qconfigs(engine: str, *, exact: bool) -> Any:
    """The `QConfigMapping` for `engine`; where sums of int8 products are not `exact` weights have 7 bits.

    Sums of pairs saturate in 16 bits there. Activations of 7 bits, torch's own remedy for "x86", are less close, and no
    longer end where their range does, which ReLU6 needs. (On an AVX2 processor, saturating, torch's "x86", and so, in
    decibels: digits 35.8, 36.0, 39.7; MNIST ViT 18.6, 20.3, 27.0; mobilenet_v3_small 11.1, 14.2, 14.9; but MNIST CNN
    36.0, 33.4, 34.0.) The sums of qnnpack are exact everywhere.
    """
    from torch.ao.quantization import PerChannelMinMaxObserver, QConfig, get_default_qconfig_mapping

    if engine == "qnnpack" or (exact and engine == "onednn"):
        return get_default_qconfig_mapping(engine)
    mapping: Any = get_default_qconfig_mapping("onednn")
    narrow = cast(Any, PerChannelMinMaxObserver).with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-64, quant_max=64
    )
    usual = mapping.global_qconfig
    wanted = cast(Any, QConfig)(activation=usual.activation, weight=narrow)
    mapping.set_global(wanted)
    for kind, found in list(mapping.object_type_qconfigs.items()):
        if found == usual:
            mapping.set_object_type(kind, wanted)
    return mapping


def _prepare(model: nn.Module, tensors: Sequence[Tensor], mapping: Any) -> fx.GraphModule:
    from torch.ao.quantization.quantize_fx import prepare_fx

    try:
        repaired = repair_relu6(model)
        return prepare_fx(repaired, mapping, tuple(tensors))
    except Exception as error:
        raise TechniqueError(f"FX cannot trace this model for int8: {str(error).strip()[:300]}") from error


def _convert(prepared: fx.GraphModule) -> fx.GraphModule:
    from torch.ao.quantization.quantize_fx import convert_fx

    try:
        converted = convert_fx(prepared)
    except Exception as error:
        raise TechniqueError(f"FX cannot convert this model to int8: {str(error).strip()[:300]}") from error
    if not any("quantized" in type(module).__module__ for module in converted.modules()):
        raise TechniqueDidNothing("static int8 found no layer that it could quantise")
    return converted


def _trace(flat: nn.Module, tensors: tuple[Tensor, ...]) -> bytes:
    jit = cast(Any, torch.jit)
    try:
        traced = jit.freeze(jit.trace(flat, tensors, check_trace=False, strict=False))
        buffer = io.BytesIO()
        jit.save(traced, buffer)
    except Exception as error:
        raise TechniqueError(f"the int8 model cannot be traced: {str(error).strip()[:300]}") from error
    return buffer.getvalue()


def repair_relu6(model: nn.Module) -> nn.Module:
    """A traced copy of `model` in which every ReLU6 is a ReLU of its own that clamps at 6 while calibrating."""
    if not any(isinstance(module, nn.ReLU6 | nn.Hardtanh) for module in model.modules()):
        return model
    traced = fx.symbolic_trace(model).eval()
    for number, node in enumerate(list(traced.graph.nodes)):
        if _is_relu6(traced, node):
            name = f"relu_of_relu6_{number}"
            relu = nn.ReLU().eval()
            relu.register_forward_hook(_clamp_at_6)
            traced.add_submodule(name, relu)
            with traced.graph.inserting_after(node):
                new = traced.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _is_relu6(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is functional.relu6
    if node.op != "call_module":
        return False
    module = traced.get_submodule(str(node.target))
    return isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)


def _clamp_at_6(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.clamp(max=6.0)


def _first_rows(batches: Sequence[Sequence[Tensor]], rows: int) -> Iterator[Sequence[Tensor]]:
    """The leading batches that together have about `rows` rows."""
    seen = 0
    for tensors in batches:
        if seen >= rows:
            return
        yield tensors
        seen += len(tensors[0])


def _calibrate(prepared: nn.Module, batches: Sequence[Sequence[Tensor]]) -> None:
    for tensors in batches:
        prepared(*tensors)


def correct_biases(prepared: fx.GraphModule, batches: Sequence[Sequence[Tensor]], observer: Any) -> None:
    """Shifts each layer's bias in `prepared` (calibrated) by the mean error that quantisation gives its output.

    Layer by layer, in the order of execution, each seeing the inputs that the layers before it, already corrected,
    give: one forward pass of a fake-quantised copy, which corrects a layer as it runs. `observer` makes one of weights.
    """
    joined = [torch.cat(column) for column in zip(*batches, strict=True)]
    layers = {name: m for name, m in prepared.named_modules() if isinstance(m, nn.Conv2d | nn.Conv1d | nn.Linear)}
    wanted = _channel_means(prepared, layers, joined)
    fake = _fake_quantised(prepared, observer)
    handles = []
    for name in wanted:
        twin = fake.get_submodule(name)
        handles.append(twin.register_forward_hook(_correction(layers[name], wanted[name])))
    fake(*joined)
    for handle in handles:
        handle.remove()


def _channel_means(
    prepared: nn.Module, layers: Mapping[str, nn.Module], tensors: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Mean output per channel of each of `layers`, `[channels]`, with observers asleep."""
    from torch.ao.quantization import disable_observer, enable_observer

    means: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: means.__setitem__(name, channel_mean(module, output))

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    prepared.apply(disable_observer)
    prepared(*tensors)
    prepared.apply(enable_observer)
    for handle in handles:
        handle.remove()
    return means


def channel_mean(layer: nn.Module, output: Tensor) -> Tensor:
    """The mean of `output` over everything but the channels, which are second for convolutions, last for linears."""
    axis = output.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return output.mean(dim=[i for i in range(output.dim()) if i != axis])


def _correction(target: nn.Module, wanted: Tensor) -> Callable[..., Tensor]:
    def correct(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        shift = wanted - channel_mean(module, output)
        bias = getattr(target, "bias", None)
        target.bias = nn.Parameter(shift if bias is None else bias.detach() + shift, requires_grad=False)
        return output + (shift if isinstance(module, nn.Linear) else shift.view(-1, *[1] * (output.dim() - 2)))

    return correct


def _fake_quantised(prepared: fx.GraphModule, observer: Any) -> fx.GraphModule:
    """A copy of `prepared`: weights rounded as `observer` finds, observers that round what passes through them."""
    fake = copy.deepcopy(prepared)
    for name, module in list(fake.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Linear):
            module.weight = nn.Parameter(_rounded_weight(module.weight.detach(), observer), requires_grad=False)
        elif hasattr(module, "calculate_qparams"):
            parent, _, leaf = name.rpartition(".")
            setattr(fake.get_submodule(parent), leaf, _Rounding(module))
    return fake


def _rounded_weight(weight: Tensor, observer: Any) -> Tensor:
    seen = observer()
    seen(weight)
    return cast(Tensor, _Rounding(seen)(weight))


class _Rounding(nn.Module):
    """What passes a calibrated observer, as it becomes in int8, in float. Weights have a scale per channel."""

    def __init__(self, observer: Any) -> None:
        super().__init__()
        self.scale, zero = observer.calculate_qparams()
        self.zero = zero.to(torch.int32)
        self.low, self.high = int(observer.quant_min), int(observer.quant_max)
        self.axis = int(observer.ch_axis) if len(self.scale) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` rounded; what is no float passes."""
        if not x.is_floating_point():
            return x
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, float(self.scale), int(self.zero), self.low, self.high)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero, self.axis, self.low, self.high)
