"""The base of every model that runs outside torch's eager mode: an `nn.Module` whose whole state is a file's bytes."""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model_opt.compression.inputs import tensors
from model_opt.compression.layout import Layout
from model_opt.compression.runtimes.no_gradient import no_gradient
from model_opt.errors import InvalidInput, ModelOptError, TechniqueError, ran_out_of_memory

EXACT_DB = 40.0
BF16_DB = 12.0
INT8_DB = 1.0
"""Floors of the signal-to-noise ratio against torch's float32, in decibels: what is below is a wrong output, not a
coarse one (all zeros score 0 dB). How much accuracy int8 costs is for the measurement to say."""


class RuntimeModule(nn.Module, ABC):
    """A compiled model: `file` (uint8, `[bytes]`) is all its state; the session is made on the first call.

    Takes and returns what the original did, in tensors that share no memory with the runtime; what it was not made for
    it refuses by name. Any number of threads may call it at once. It pickles, copies and moves between processes
    without its session, and a forked process opens one of its own. `batch` is the only batch that the file can run, or
    None where any will do: other batches are then split and padded, unless the model couples its rows. Its one
    parameter is empty: it says on which device the model is to those who ask for that.
    """

    format: ClassVar[str]
    """What `export_model` calls the file's format: "openvino", "onnx", "torch"."""
    file: Tensor

    def __init__(self, file: bytes, layout: Layout, *, threads: int, batch: int | None = None) -> None:
        super().__init__()
        self.register_buffer("file", torch.frombuffer(bytearray(file), dtype=torch.uint8))
        self.register_parameter("nothing", nn.Parameter(torch.empty(0), requires_grad=False))
        self.layout = layout
        self.threads = threads
        self.batch = batch
        self._session: tuple[int, Any] | None = None
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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's output for the original's arguments; raises `InvalidInput` for others, and where a gradient is
        asked of it."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise InvalidInput(
                f"a model compiled by {self.format} cannot be traced, only its answer would be kept: export_model "
                "writes its file"
            )
        with torch.no_grad():
            given = self.layout.flatten(args, kwargs)
            outputs = self._outputs([tensor.detach().contiguous() for tensor in given])
        return no_gradient(self.format, self.layout.rebuild(outputs), given)

    def _outputs(self, tensors: list[Tensor]) -> list[Tensor]:
        for tensor in tensors:
            if not tensor.is_cpu:
                raise InvalidInput(
                    f"inputs are on {tensors[0].device}; a model compiled by {self.format} takes them on cpu"
                )
        pairs = zip(self._answered(tensors), self.layout.output_dtypes, strict=True)
        return [tensor if tensor.dtype is dtype else tensor.to(dtype) for tensor, dtype in pairs]

    def session(self) -> Any:
        """The session of this process, opened by whoever comes first."""
        here = os.getpid()
        if self._session is None or self._session[0] != here:
            with _OPENING:
                if self._session is None or self._session[0] != here:
                    self._session = (here, self.open(self.contents()))
        return self._session[1]

    def _answered(self, tensors: list[Tensor]) -> list[Tensor]:
        """The outputs; whatever a runtime raises says whose error it is."""
        try:
            return self._in_batches(self.session(), tensors)
        except ModelOptError:
            raise
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            raise InvalidInput(f"{self.format} refuses these inputs: {type(error).__name__}: {error}") from error

    def _in_batches(self, session: Any, tensors: list[Tensor]) -> list[Tensor]:
        """Runs `tensors` at once, or in parts of `batch` rows, the last one padded with its last row."""
        place = self.layout.first_batched
        rows = self.batch if place is None else len(tensors[place])
        if rows == 0 and self.layout.coupled:
            raise InvalidInput("no row was given, and the answer for a row depends on the others")
        if rows == 0:  # runtimes fail at it, each in its way
            pairs = zip(tensors, self.layout.batched, strict=True)
            one = [tensor.new_zeros(1, *tensor.shape[1:]) if batched else tensor for tensor, batched in pairs]
            return [output[:0] for output in self._in_batches(session, one)]
        if self.batch is None or rows == self.batch or rows is None:
            return list(self.run(session, tensors))
        if self.layout.coupled:
            raise InvalidInput(
                f"{rows} rows: this model was compiled for batches of {self.batch}, and the answer for a row depends "
                "on the others, so that they can be neither split nor padded"
            )
        parts = [self._one_part(session, tensors, start, self.batch) for start in range(0, rows, self.batch)]
        return [torch.cat(column)[:rows] for column in zip(*parts, strict=True)]

    def _one_part(self, session: Any, tensors: list[Tensor], start: int, batch: int) -> list[Tensor]:
        part = []
        for tensor, batched in zip(tensors, self.layout.batched, strict=True):
            piece = tensor[start : start + batch] if batched else tensor
            missing = batch - len(piece) if batched else 0
            part.append(torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])]) if missing else piece)
        outputs = list(self.run(session, [piece.contiguous() for piece in part]))
        if any(output.dim() == 0 or len(output) != batch for output in outputs):
            raise TechniqueError(f"this model was compiled for batches of {batch} and its outputs cannot be split")
        return outputs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RuntimeModule":
        """Raises `InvalidInput` for a device that its runtime does not use, and for another type of numbers."""
        made = fn(torch.empty(0))
        if made.device.type != "cpu":
            raise InvalidInput(
                f"a model compiled by {self.format} runs on the processor: it cannot be moved to {made.device}"
            )
        if made.dtype != torch.float32:
            raise InvalidInput(
                f"a model compiled by {self.format} cannot be turned into {made.dtype}: its file is fixed"
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}


class WithOriginal(nn.Module):
    """A compiled model and the original, which answers the inputs that the former refuses."""

    def __init__(self, compiled: RuntimeModule, original: nn.Module) -> None:
        super().__init__()
        self.compiled, self.original = compiled, original
        self.train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the compiled model, or else of the original, as where a gradient is asked of it."""
        with_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors((args, kwargs)))
        if not with_gradient:
            try:
                return self.compiled(*args, **kwargs)
            except InvalidInput:
                pass
        with torch.set_grad_enabled(with_gradient):
            return self.original(*args, **kwargs)


def taken_by(model: nn.Module) -> tuple[str, ...]:
    """What the calls of an optimised model may hold, for people; nothing where it takes what the original does."""
    if isinstance(model, WithOriginal):
        return (*model.compiled.layout.takes(), "anything else: the original answers")
    return model.layout.takes() if isinstance(model, RuntimeModule) else ()


_OPENING = threading.Lock()
