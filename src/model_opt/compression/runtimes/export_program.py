"""Models as programs: `torch.export` with a free batch where the model allows it, and ONNX files of them."""

import functools
import importlib
import importlib.util
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, positional
from model_opt.compression.layout import Flat, Layout, Range
from model_opt.compression.quiet import quiet
from model_opt.compression.technique import Material
from model_opt.errors import CannotExport, MissingDependency, TechniqueError

T = TypeVar("T")

LARGEST_BATCH = 4096

log = logging.getLogger(__name__)


def example_tensors(example: Inputs, layout: Layout, batch: int | None = None) -> tuple[Tensor, ...]:
    """The tensors of `example` as the exporters take them: contiguous, with `batch` rows where that is given."""
    args, kwargs = positional(example)
    found = layout.flatten(args, kwargs)
    if batch is None:
        return tuple(tensor.detach().contiguous() for tensor in found)
    rows = torch.arange(batch) % layout.batch
    return tuple(
        tensor.detach()[rows.to(tensor.device)].contiguous() if batched else tensor.detach().contiguous()
        for tensor, batched in zip(found, layout.batched, strict=True)
    )


def export_program(
    model: nn.Module, layout: Layout, example: Inputs, *, dynamic: bool = True
) -> tuple[torch.export.ExportedProgram, bool]:
    """`Flat(model)` as an exported program, and whether its batch is free; lengths that vary are.

    A model that fixes the batch somewhere, or all models where it shall not be `dynamic`, are exported for the
    example's batch. Raises `TechniqueError` where `torch.export` cannot follow the model at all.
    """
    flat = Flat(model, layout).eval()
    if dynamic and any(layout.batched):
        try:
            return export(flat, example_tensors(example, layout, max(layout.batch, 2)), layout, batch=True), True
        except Exception as error:  # whatever it is, the batch is not free here, and the static export decides
            log.debug("the batch is not free: %s", _first_line(error))
    try:
        return export(flat, example_tensors(example, layout), layout), False
    except Exception as error:
        vary = " with lengths that vary" if layout.lengths else ""
        raise CannotExport(f"torch.export cannot follow this model{vary}: {_first_line(error)}") from error


def export(
    flat: nn.Module, tensors: tuple[Tensor, ...], layout: Layout, *, batch: bool = False, strict: bool = False
) -> torch.export.ExportedProgram:
    """A flat model as an exported program, with lengths that vary left open, and the `batch` if that is wanted.

    Lengths that have one range in the data are taken to be one; where they are not, torch finds out how they belong
    together. Raises `CannotExport` where it fixes one of them, and what `torch.export` raises.
    """
    with quiet(), torch.no_grad():
        try:
            shapes = _dynamic_shapes(layout, batch=batch, lengths=_dims(layout))
            return torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=strict)
        except Exception:
            if not layout.lengths:
                raise
        found_out = defaultdict[Range, Any](lambda: torch.export.Dim.AUTO)
        shapes = _dynamic_shapes(layout, batch=batch, lengths=found_out)
        program = torch.export.export(flat, tensors, dynamic_shapes=shapes, strict=strict)
        _check_free(program, layout)
        return program


def _dims(layout: Layout) -> dict[Range, Any]:
    """A name for every range that lengths have."""
    ranges = dict.fromkeys(range_ for lengths in layout.lengths for range_ in lengths.values())
    return {(low, high): torch.export.Dim(f"length{n}", min=low, max=high) for n, (low, high) in enumerate(ranges)}


def _dynamic_shapes(layout: Layout, *, batch: bool, lengths: Mapping[Range, Any]) -> Any:
    """What `torch.export` is to leave open, None for nothing."""
    if not batch and not layout.lengths:
        return None
    rows = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    found = []
    for batched, varying in zip(layout.batched, layout.varying, strict=True):
        axes = {axis: lengths[range_] for axis, range_ in varying.items()}
        found.append(axes | ({0: rows} if batch and batched else {}) or None)
    return (tuple(found),)


def _check_free(program: torch.export.ExportedProgram, layout: Layout) -> None:
    """Raises `CannotExport` where a length that varies was fixed on the way."""
    given = [node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    for shape, lengths, name in zip(given, layout.varying, layout.tensor_names, strict=True):
        if any(isinstance(shape[axis], int) for axis in lengths):
            raise CannotExport(f"this model takes one length of {name} only, once it is exported")


def onnx_bytes(model: nn.Module, layout: Layout, example: Inputs) -> tuple[bytes, bool]:
    """`model` as one ONNX file with positional inputs, and whether its batch is free; raises `TechniqueError`."""
    for package in ("onnx", "onnxscript"):
        _require(package)
    program, free = export_program(model, layout, example)
    _read_torchlib_once()
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
        except Exception as error:
            raise TechniqueError(f"no ONNX file can be made of this model: {_first_line(error)}") from error
        return _without_traces(path.read_bytes()), free


def _without_traces(file: bytes) -> bytes:
    """The file without what torch writes beside every node: the stack it was traced under, with the paths of whoever
    exported it, which may be half of a small model's bytes."""
    import onnx

    model = onnx.load_from_string(file)
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.ClearField("metadata_props")
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.ClearField("metadata_props")
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
            for attribute in node.attribute:
                graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
    return bytes(model.SerializeToString())


def _read_torchlib_once() -> None:
    """At every export torch lets onnxscript parse the sources of 500 functions: 1.5 s, as long as all the rest takes a
    small model. What it finds is the same each time; kept where this version of torch asks for it in the known place.
    """
    exporter = importlib.import_module("torch.onnx._internal.exporter._registration")
    source = getattr(exporter, "onnxscript_apis", None)
    reads = getattr(source, "get_torchlib_ops", None)
    if reads is not None and not hasattr(reads, "cache_info"):
        source.get_torchlib_ops = functools.cache(reads)  # type: ignore[union-attr]


def once(material: Material, model: nn.Module, kind: str, make: Callable[[], T]) -> T:
    """What `make` makes of `model`, kept for the next plan that only differs in precision from the one before.

    Exporting takes longer than all else in small models. Only structures that `apply_plan` has made are known again.
    """
    known = material.findings.structure
    if known is None or known[0] is not model:
        return make()
    kept = material.findings.exported.get(kind)
    if kept is None or kept[0] != known[1]:
        kept = material.findings.exported[kind] = (known[1], make())
    made: T = kept[1]
    return made


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingDependency(package, "cpu")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
