"""What measuring processes have in their environment, and the fork server for those of a cluster on this machine."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from model_opt.folders import home_variables
from model_opt.measuring.fork_server import fork_server
from model_opt.processors import usable_processors

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""Keeps freed memory in the process: without it page faults take up to half of an eager model's time, of the baseline's
and the plans' alike."""

NEEDED = (
    "torch",
    "model_opt.compression.evaluation.evaluator",
    "torch._dynamo",
    "onnx",
    "torch_pruning",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
    "torchao",
)
"""What measuring processes import sooner or later, seconds each, and what starts no threads: a fork loses those."""


def measuring_variables(more: Mapping[str, str], *, allocator: bool = True) -> dict[str, str]:
    """What a measuring process has beyond its parent's variables: `more`, a home, and unless told otherwise the
    allocator's settings."""
    return home_variables() | (ALLOCATOR if allocator else {}) | dict(more)


def worker_variables(more: Mapping[str, str]) -> dict[str, str]:
    """What a worker's measuring process has of its own. Ray sets `OMP_NUM_THREADS=1` for small actors; a measuring
    process has all processors unless told otherwise."""
    return {"OMP_NUM_THREADS": str(usable_processors()), **more}


@contextmanager
def forking_workers() -> Iterator[None]:
    """Inside the block the measuring processes of a cluster on this machine are forked from one that has imported what
    they need, unless the search gives them other variables."""
    with fork_server(NEEDED, {**os.environ, **measuring_variables(worker_variables({}))}):
        yield
