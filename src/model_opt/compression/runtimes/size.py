"""What a model weighs."""

import io

import torch
from torch import nn

from model_opt.compression.runtimes.runtime_module import RuntimeModule


def size_bytes(model: nn.Module) -> int:
    """Bytes of `model`'s serialised state dict, packed weights included; of its file where a runtime runs it."""
    if isinstance(model, RuntimeModule):
        return int(model.file.numel())
    counter = _Counter()
    torch.save(model.state_dict(), counter)  # type: ignore[arg-type]
    return counter.total


class _Counter(io.RawIOBase):
    """A file that keeps nothing but the number of bytes written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        length = memoryview(data).nbytes  # type: ignore[arg-type]
        self.total += length
        return length
