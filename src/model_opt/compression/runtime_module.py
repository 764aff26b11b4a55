"""The base of every model that runs outside torch's eager mode: an `nn.Module` whose whole state is a file's bytes."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import Inputs, call, map_tensors
from model_opt.compression.inputs import tensors as tensors_of
from model_opt.compression.layout import Layout
from model_opt.errors import MeasurementFailed, TechniqueError

EXACT_DB = 40.0
BF16_DB = 12.0
INT8_DB = 1.0
"""Floors of the signal-to-noise ratio against torch's float32, in decibels: what is below is a wrong output, not a
coarse one (all zeros score 0 dB). How much accuracy int8 costs is for the measurement to say."""


class RuntimeModule(nn.Module, ABC):
    """A compiled model: `file` (uint8, `[bytes]`) is all its state; the session is made on the first call.

    Takes and returns what the original did, float tensors as float32 that share no memory with the runtime. It pickles,
    copies and moves between processes without its session. One thread at a time may call it. `batch` is the only
    batch that the file can run, or None where any will do: other batches are then split and padded.
    """

    format: ClassVar[str]
    """What `export_model` calls the file's format: "openvino", "onnx", "torch"."""
    file: Tensor

    def __init__(self, file: bytes, layout: Layout, *, threads: int, batch: int | None = None) -> None:
        super().__init__()
        self.register_buffer("file", torch.frombuffer(bytearray(file), dtype=torch.uint8))
        self.layout = layout
        self.threads = threads
        self.batch = batch
        self._session: tuple[Any, ...] = ()
        self.train(False)

    @abstractmethod
    def open(self, file: bytes) -> Any:
        """A session of the runtime over `file`; raises `MissingDependency`."""

    @abstractmethod
    def run(self, session: Any, tensors: list[Tensor]) -> Sequence[Tensor]:
        """The outputs for contiguous `tensors` of one legal batch, in memory of their own."""

    def exported(self) -> dict[str, bytes]:
        """The files of the runtime's own format, by suffix; an empty suffix leaves the user's path as it is."""
        return {"": self.contents()}

    def contents(self) -> bytes:
        """The file's bytes."""
        return self.file.cpu().numpy().tobytes()

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output for the original's arguments; raises `InvalidInput` for others."""
        tensors = [tensor.detach().contiguous() for tensor in self.layout.flatten(args, kwargs)]
        if not self._session:
            self._session = (self.open(self.contents()),)
        outputs = self._in_batches(tensors)
        pairs = zip(outputs, self.layout.output_dtypes, strict=True)
        return self.layout.rebuild([t.float() if d.is_floating_point else t for t, d in pairs])

    def _in_batches(self, tensors: list[Tensor]) -> list[Tensor]:
        """Runs `tensors` at once, or in parts of `batch` rows, the last one padded with its last row."""
        rows = next((len(t) for t, batched in zip(tensors, self.layout.batched, strict=True) if batched), self.batch)
        if self.batch is None or rows == self.batch or rows is None:
            return list(self.run(self._session[0], tensors))
        parts = [self._one_part(tensors, start, self.batch) for start in range(0, rows, self.batch)]
        return [torch.cat(column)[:rows] for column in zip(*parts, strict=True)]

    def _one_part(self, tensors: list[Tensor], start: int, batch: int) -> list[Tensor]:
        part = []
        for tensor, batched in zip(tensors, self.layout.batched, strict=True):
            piece = tensor[start : start + batch] if batched else tensor
            missing = batch - len(piece) if batched else 0
            part.append(torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing else piece)
        outputs = list(self.run(self._session[0], [piece.contiguous() for piece in part]))
        if any(output.dim() == 0 or len(output) != batch for output in outputs):
            raise TechniqueError(f"this model was compiled for batches of {batch} and its outputs cannot be split")
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": ()}


TINY = 1e-6
"""Outputs whose root mean square is below this are judged as if it were this: a network with fresh weights can return
1e-15 everywhere, which no coarser format keeps and nobody needs."""


def signal_to_noise_db(reference: Any, got: Any) -> float:
    """10·log10(‖reference‖² / ‖reference − got‖²) over all tensors of two outputs; NaN anywhere gives −∞."""
    signal = noise = 0.0
    for want, have in zip(tensors_of(reference), tensors_of(got), strict=True):
        if want.shape != have.shape:
            return -math.inf
        wanted, had = want.detach().double().cpu(), have.detach().double().cpu()
        signal += max(float(wanted.square().sum()), TINY**2 * wanted.numel())
        noise += float((wanted - had).square().sum())
    if math.isnan(noise) or math.isinf(noise):
        return -math.inf
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def checked(module: nn.Module, reference: Any, example: Inputs, floor_db: float, name: str) -> nn.Module:
    """`module`, if on `example` it comes within `floor_db` of `reference` and a second call leaves the first alone.

    Raises `MeasurementFailed` otherwise.
    """
    with torch.no_grad():
        first = call(module, example)
        before = [tensor.clone() for tensor in tensors_of(first)]
        reached = signal_to_noise_db(reference, first)
        if not reached >= floor_db:
            raise MeasurementFailed(
                f"{name}: outputs are wrong, {reached:.1f} dB against torch (at least {floor_db:g})"
            )
        other = _perturbed(example)
        call(module, other)
    if any(not torch.equal(a, b) for a, b in zip(before, tensors_of(first), strict=True)):
        raise MeasurementFailed(f"{name}: a second call changes the first one's result")
    return module


def _perturbed(example: Inputs) -> Inputs:
    return map_tensors(lambda tensor: tensor.flip(-1) if tensor.dim() else tensor, example)
