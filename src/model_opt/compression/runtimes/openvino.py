"""OpenVINO as a runtime, in float32, bf16 or, with NNCF, int8."""

import io
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, batch_size, by_size, call
from model_opt.compression.interface import layout_for
from model_opt.compression.layout import Layout, Range
from model_opt.compression.quiet import quiet, send_no_usage_data
from model_opt.compression.runtimes.export_program import example_tensors, export_program, once
from model_opt.compression.runtimes.runtime_module import RuntimeModule
from model_opt.compression.signal_to_noise import signal_to_noise_db
from model_opt.compression.technique import Material
from model_opt.errors import MissingDependency, TechniqueError
from model_opt.search.model_signature import Family

CALIBRATION_ROWS, FEW_ROWS, MANY_PARAMETERS = 256, 64, 15_000_000
"""Rows to calibrate on, fewer for models of many parameters: vit_b_16 takes over a minute for 64. (Half of 256 saves an
eighth of the time: EfficientNet-Lite0 11.4 dB in place of 13.0, MNIST CNN 37.9 in place of 40.0.)"""
TRIAL_S = 60.0
"""Where calibrating takes longer than this the first calibration that works is kept: trying others takes too long."""
CLOSE_DB = 35.0
"""Where a calibration comes this close on held-out rows (0.03 % of the outputs' power is error) no other is tried."""
TRIAL_PART, TRIAL_BATCH = 2, 16
"""As many held-out rows as are calibrated on, divided by this, tell which calibration suits a model; in batches that
`FEW_ROWS_WRONG` spares."""
FEW_ROWS_WRONG = 8
"""OpenVINO 2026.4.1's int8 FullyConnected, compiled for a fixed batch of at most so many rows, answers garbage for some
layers (a relative error of 1e5: K ≤ 256 after a ReLU under SmoothQuant, or a factored head). A free batch is right."""
ALIKE_DB = 10.0
"""How close what is compiled for a few rows must come to what is compiled for any number: their int8 may differ."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How int8 is calibrated.

    Biases are corrected layer by layer with what the layers before, corrected, give (EfficientNet-Lite0: agreement
    0.91, and 0.85 with the means of the float model), but in transformers, where that takes minutes for nothing.
    NNCF's default averages the extremes of samples of `batch` rows each: single rows cut off what is rare (resnet50
    with random weights: 12.1 dB with eight, 8.3 with one). A `histogram` looks for the range whose rounding errs
    least instead (13.6 dB).
    `smooth` moves a layer's outlying inputs into its weights, for transformers (SmoothQuant's alpha; NNCF's own 0.95
    is for language models: a small ViT has 35.3 dB with it).
    """

    batch: int
    histogram: bool
    smooth: float = 0.5


CALIBRATIONS = (Calibration(batch=8, histogram=False), Calibration(batch=1, histogram=True))
"""The first is closer for some networks (a residual CNN: 34.3 dB and 31.9), the second for others (mobilenet_v3_small
with random weights: 3.4 dB and 5.6)."""
FOR_TRANSFORMERS = (
    Calibration(batch=1, histogram=True, smooth=0.5),
    Calibration(batch=1, histogram=True, smooth=0.15),
)
"""A small ViT: 39.3 dB and 38.7; vit_b_16 with random weights: 22.1 and 25.3. With extremes they have 37.8 and 16.3."""


class OpenVinoModule(RuntimeModule):
    """A model in OpenVINO's format, compiled for the batch that it was measured at, a third faster than for any, and
    where another comes once more for any: batches that vary are compiled no further."""

    format: ClassVar[str] = "openvino"
    tuned: bool = True
    """Whether the example's batch has a program of its own; it has none where that is wrong (`FEW_ROWS_WRONG`)."""

    def __init__(
        self, file: bytes, layout: Layout, *, threads: int, batch: int | None = None, precision: str | None = None
    ) -> None:
        """`precision` is the hint "f32" or "bf16"; None leaves it to OpenVINO."""
        super().__init__(file, layout, threads=threads, batch=batch)
        self.precision = precision

    def open(self, file: bytes) -> Any:
        """Programs for this processor, each compiled once it is asked for."""
        return _Programs(self._read(file), self._settings())

    def _read(self, file: bytes) -> Any:
        xml, weights = unpack(file)
        return core().read_model(model=io.BytesIO(xml), weights=io.BytesIO(weights))

    def run(self, session: Any, tensors: list[Tensor]) -> Sequence[Tensor]:
        """What the processor's program for these shapes returns, compiled first where it is new."""
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        own = self.tuned and shapes == self.layout.shapes
        described = zip(shapes, self.layout.batched, self.layout.varying, strict=True)
        wanted = shapes if own else tuple(self._opened(*one) for one in described)
        return session.program(wanted).run(tensors)  # type: ignore[no-any-return]

    def _opened(self, shape: tuple[int, ...], batched: bool, lengths: Mapping[int, Range]) -> tuple[int, ...]:
        """`shape` with -1 for each length that is free."""
        rows = batched and self.batch is None
        return tuple(-1 if axis in lengths or (rows and not axis) else length for axis, length in enumerate(shape))

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        if self.precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = self.precision
        return settings

    def exported(self) -> dict[str, bytes]:
        """The XML and the weights."""
        return dict(zip((".xml", ".bin"), unpack(self.contents()), strict=True))


class _Programs:
    """What has been compiled of one model, by input shapes; -1 is an axis that is free."""

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        self._model, self._settings, self._lock = model, settings, threading.Lock()
        self._compiled: dict[tuple[tuple[int, ...], ...], _Program] = {}

    def program(self, shapes: tuple[tuple[int, ...], ...]) -> "_Program":
        found = self._compiled.get(shapes)
        if found is None:
            with self._lock:
                if shapes not in self._compiled:
                    self._compiled[shapes] = _Program(compiled_for(self._model, shapes, self._settings))
                found = self._compiled[shapes]
        return found


class _Program:
    """A compiled model with requests that wait for work: one is for one call at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Its outputs. Calling a compiled model with a list of arrays takes 0.1 ms more than this, an eighth of a small
        network's time."""
        import openvino

        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        for position, tensor in enumerate(tensors):
            request.set_input_tensor(position, openvino.Tensor(tensor.cpu().numpy(), shared_memory=True))
        outputs = [torch.from_numpy(output) for output in request.infer(share_outputs=False).to_tuple()]
        self._idle.append(request)
        return outputs


def core() -> Any:
    """OpenVINO in this process; raises `MissingDependency`."""
    if not _CORE:
        try:
            send_no_usage_data()
            import openvino
        except ImportError as error:
            raise MissingDependency("openvino", "cpu") from error
        _CORE.append(openvino.Core())
    return _CORE[0]


_CORE: list[Any] = []


def compiled_for(model: Any, shapes: Sequence[tuple[int, ...]], settings: dict[str, Any]) -> Any:
    """An `openvino.Model` compiled for the processor and for inputs of `shapes`, -1 being any length; the model itself
    stays as it is."""
    import openvino

    fixed = model.clone()
    with quiet():
        fixed.reshape({port: openvino.PartialShape(list(s)) for port, s in zip(fixed.inputs, shapes, strict=True)})
        return core().compile_model(fixed, "CPU", settings)


def convert(model: nn.Module, layout: Layout, example: Inputs) -> tuple[Any, bool]:
    """`model` as an `openvino.Model`, and whether its batch is free; raises `TechniqueError`."""
    core()
    import openvino

    program, free = export_program(model, layout, example)
    with quiet():
        try:
            return openvino.convert_model(program), free
        except Exception as error:
            raise TechniqueError(f"OpenVINO cannot convert this model: {str(error).strip()[:300]}") from error


def to_openvino(model: nn.Module, precision: str, material: Material) -> nn.Module:
    """`model` as an OpenVINO module in `precision` ("fp32", "bf16", "int8_static")."""
    layout = layout_for(model, material)
    kept, free = once(material, model, "openvino", lambda: convert(model, layout, material.example))
    converted = kept.clone()
    if precision == "int8_static":
        converted = quantise(converted, free, layout, material)
    hints = {"fp32": "f32", "bf16": "bf16"}
    made = OpenVinoModule(
        pack(converted, half_weights=precision == "bf16"),
        layout,
        threads=material.threads,
        batch=None if free else layout.batch,
        precision=hints.get(precision),
    )
    if free and precision == "int8_static" and layout.batch <= FEW_ROWS_WRONG:
        made.tuned = _right_for_few_rows(made, material.example)
    return made


def _right_for_few_rows(made: OpenVinoModule, example: Inputs) -> bool:
    """Whether the program for the example's batch answers as the one for any batch does."""
    outputs = []
    for made.tuned in (False, True):
        with torch.no_grad():
            outputs.append(call(made, example))
    return signal_to_noise_db(*outputs) >= ALIKE_DB


def quantise(converted: Any, free: bool, layout: Layout, material: Material) -> Any:
    """Static int8 with NNCF, calibrated on rows of the fit batches; raises `MissingDependency`.

    A model's first plan tries each calibration of its kind, until one is close; what comes closest on held-out rows
    stays for the others.
    """
    if material.findings.calibration is not None:
        return _quantised(converted, material.findings.calibration, free, layout, material)
    calibrations = FOR_TRANSFORMERS if _transformer(material) else CALIBRATIONS
    rows = _samples(material.held_out, layout, TRIAL_BATCH if free else layout.batch, _most(material) // TRIAL_PART)
    if not rows:
        return _quantised(converted, calibrations[0], free, layout, material)
    expected = _outputs(converted, rows, {"INFERENCE_PRECISION_HINT": "f32"}, material)
    tried: dict[Calibration, tuple[float, Any]] = {}
    for one in calibrations:
        began = time.monotonic()
        try:
            made = _quantised(converted, one, free, layout, material)
            tried[one] = signal_to_noise_db(expected, _outputs(made, rows, {}, material)), made
        except (TechniqueError, RuntimeError) as error:
            if one is calibrations[-1] and not tried:
                raise TechniqueError(str(error).strip()[:300]) from error
        if one in tried and (tried[one][0] > CLOSE_DB or time.monotonic() - began > TRIAL_S):
            break
    closest = material.findings.calibration = max(tried, key=lambda one: tried[one][0])
    return tried[closest][1]


def _transformer(material: Material) -> bool:
    signature = material.signature
    return signature.family in {Family.VIT, Family.DIFFUSION} or (
        signature.family is Family.OTHER and "attention" in signature.operators
    )


def _outputs(model: Any, rows: Sequence[Sequence[Any]], settings: dict[str, Any], material: Material) -> list[Tensor]:
    """What an `openvino.Model`, compiled with `settings` for their shapes, makes of `rows`, which are alike: each
    output of all of them, flat.

    (OpenVINO 2026.4 has no int8 for a first convolution of one channel where the batch is free.)
    """
    columns = zip(*([value.shape for value in row] for row in rows), strict=True)
    axes = [list(zip(*shapes, strict=True)) for shapes in columns]
    shapes = [tuple(axis[0] if len(set(axis)) == 1 else -1 for axis in port) for port in axes]
    compiled = compiled_for(model, shapes, {"INFERENCE_NUM_THREADS": material.threads, **settings})
    made = [[torch.from_numpy(value) for value in compiled(row).to_tuple()] for row in rows]
    return [torch.cat([value.reshape(-1) for value in port]) for port in zip(*made, strict=True)]


def _quantised(converted: Any, how: Calibration, free: bool, layout: Layout, material: Material) -> Any:
    try:
        send_no_usage_data()
        with quiet():
            import nncf
    except ImportError as error:
        raise MissingDependency("nncf", "cpu") from error
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

    samples = calibration_samples(layout, material, how.batch if free else layout.batch)
    exact, transformer = material.machine.int8_dot, _transformer(material)
    ranges = RangeEstimatorParametersSet.HISTOGRAM if how.histogram else RangeEstimatorParameters()
    with quiet():
        try:
            return nncf.quantize(
                converted.clone(),
                nncf.Dataset(samples),
                subset_size=len(samples),
                fast_bias_correction=transformer,
                model_type=nncf.ModelType.TRANSFORMER if transformer else None,
                ignored_scope=nncf.IgnoredScope(names=first_convolution(converted) if transformer or not exact else []),
                advanced_parameters=AdvancedQuantizationParameters(
                    overflow_fix=OverflowFix.DISABLE if exact else OverflowFix.ENABLE,
                    activations_range_estimator_params=ranges,
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=how.smooth),
                ),
            )
        except Exception as error:
            raise TechniqueError(f"NNCF cannot quantise this model: {str(error).strip()[:300]}") from error


def first_convolution(converted: Any) -> list[str]:
    """The name of the convolution that sees the input. Empty where there is none.

    It stays in float where sums of int8 products saturate in 16 bits, which is without dot products of int8 (AVX2). All
    other weights have 7 bits there: as fast, and nearly always closer than sums that saturate. Decibels on an AVX2
    processor, saturating, with NNCF's fix of the first layer only, and so: digits 30.6, 30.2, 35.9; MNIST ViT 18.5,
    24.5, 28.9; EfficientNet-Lite0 4.7, 6.3, 10.8; mobilenet_v3_small 11.4, 13.0, 14.5; but MNIST CNN 34.9, 33.0, 30.6.
    With dot products it needs neither, and is as close in int8 and 3 % faster; but for transformers, whose patches are
    as fast in float and closer (a small ViT: 40.4 dB in place of 39.3).
    """
    found = (node for node in converted.get_ordered_ops() if node.get_type_name() in ("Convolution", "MatMul"))
    first = next(found, None)
    return [first.get_friendly_name()] if first is not None and first.get_type_name() == "Convolution" else []


def calibration_samples(layout: Layout, material: Material, batch: int) -> list[list[Any]]:
    """The first rows of the fit batches, as lists of numpy arrays with `batch` rows each."""
    return _samples(material.fit, layout, batch, _most(material))


def _most(material: Material) -> int:
    """How many rows to calibrate on."""
    large = sum(p.numel() for p in material.teacher.parameters()) > MANY_PARAMETERS
    return FEW_ROWS if large else CALIBRATION_ROWS


def _samples(batches: Sequence[Inputs], layout: Layout, batch: int, most: int) -> list[list[Any]]:
    """The first `most` rows in samples of `batch` rows of one size, as numpy arrays; a remainder is left where others
    are whole, too few are repeated."""
    taken: list[Inputs] = []
    for inputs in batches:
        taken.append(inputs)
        if sum(map(batch_size, taken)) >= max(most, batch):
            break
    alike = [[example_tensors(taken[place], layout) for place in group] for group in by_size(taken)]
    parts = [part for group in alike for part in _parts_of(group, layout, batch, most)]
    whole = [part for part, is_whole in parts if is_whole]
    return whole or [part for part, _ in parts[:1]]


def _parts_of(
    alike: Sequence[tuple[Tensor, ...]], layout: Layout, batch: int, most: int
) -> Iterator[tuple[list[Any], bool]]:
    """Samples of `batch` rows of batches of one size, and whether it is full of rows of its own."""
    columns = zip(*alike, strict=True)
    together = [torch.cat(c) if batched else c[0] for c, batched in zip(columns, layout.batched, strict=True)]
    total = sum(_rows(taken, layout) for taken in alike)
    for first in range(0, max(1, min(total, most) // batch) * batch, batch):
        rows = torch.arange(first, first + batch, device=together[0].device) % total
        pairs = zip(together, layout.batched, strict=True)
        yield [(tensor[rows] if batched else tensor).cpu().numpy() for tensor, batched in pairs], total >= batch


def _rows(tensors: Sequence[Tensor], layout: Layout) -> int:
    """How many rows there are; 1 where nothing has any."""
    return next((len(t) for t, batched in zip(tensors, layout.batched, strict=True) if batched), 1)


def pack(model: Any, *, half_weights: bool) -> bytes:
    """An `openvino.Model` as one string of bytes: the length of the XML (8 bytes, big endian), XML, weights."""
    import openvino

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.xml"
        openvino.save_model(model, str(path), compress_to_fp16=half_weights)
        xml, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    return len(xml).to_bytes(8, "big") + xml + weights


def unpack(file: bytes) -> tuple[bytes, bytes]:
    """(XML, weights) of what `pack` made."""
    length = int.from_bytes(file[:8], "big")
    return file[8 : 8 + length], file[8 + length :]
