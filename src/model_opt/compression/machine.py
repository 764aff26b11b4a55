"""What this machine can do: processor or GPU, instruction sets, compiler, and the optional packages that are there."""

import importlib
import importlib.metadata
import platform
import shutil
import sys
from functools import cache
from pathlib import Path

import torch

from model_opt.compression.technique import Machine
from model_opt.errors import InvalidInput

EXTRAS = {
    "openvino": "cpu",
    "nncf": "cpu",
    "onnx": "cpu",
    "onnxscript": "cpu",
    "onnxruntime": "cpu",
    "torchao": "torchao",
    "timm": "timm",
    "tomesd": "diffusion",
    "torch_tensorrt": "tensorrt",
}
"""Optional package → the extra of `model_opt` that brings it."""

INSTRUCTION_SETS = (
    ("amx_int8", "amx"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_f", "avx512"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
)
"""torch's name of a capability → ours, best first."""


def inspect(device: str = "cpu") -> Machine:
    """Looks at `device` ("cpu", "cuda", "cuda:1"); raises `InvalidInput` where torch has no such device."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InvalidInput(f"no device is called {device!r}: use 'cpu', 'cuda' or 'cuda:1'") from error
    if kind == "cuda":
        return _inspect_gpu(device)
    if kind != "cpu":
        raise InvalidInput(f"device {device!r} is not supported: use 'cpu' or 'cuda'")
    able = _capabilities()
    return Machine(
        device="cpu",
        device_class=f"{_processor()} {best_instruction_set()}",
        bf16=able.get("avx512_bf16", False) or able.get("amx_bf16", False),
        vnni=any(able.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8")),
        compiler=compiler_path() is not None,
        packages=packages(),
    )


def libraries() -> dict[str, str]:
    """Versions of what a latency depends on: torch, and the runtimes that are installed."""
    timed = ("openvino", "nncf", "onnxruntime", "torchao", "torch_tensorrt")
    return {"torch": importlib.metadata.version("torch"), **{n: v for n, v in packages().items() if n in timed}}


@cache
def packages() -> dict[str, str]:
    """Versions of the optional packages that are installed; none is imported."""
    found = {}
    for name in EXTRAS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def compiler_path() -> str | None:
    """The C++ compiler that inductor would call, or None."""
    return next((path for path in map(shutil.which, ("g++", "clang++", "c++")) if path), None)


def best_instruction_set() -> str:
    """The best vector instruction set of this processor, "avx512_vnni" for example; the architecture where none is."""
    able = _capabilities()
    return next((name for flag, name in INSTRUCTION_SETS if able.get(flag)), platform.machine())


@cache
def _capabilities() -> dict[str, bool]:
    return {name: value is True for name, value in torch.cpu.get_capabilities().items()}


@cache
def _processor() -> str:
    """The processor's model as the kernel names it, with family and model numbers where the name alone is vague."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    first = info.read_text(errors="replace").split("\n\n")[0]
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}
    name = fields.get("model name") or platform.machine()
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def _inspect_gpu(device: str) -> Machine:
    if not torch.cuda.is_available():
        raise InvalidInput(f"device {device!r} is not there: torch sees no GPU")
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise InvalidInput(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} GPU(s)")
    properties = torch.cuda.get_device_properties(index)
    return Machine(
        device=device,
        device_class=_gpu_class(index, properties.name, properties.multi_processor_count),
        bf16=properties.major >= 8,
        vnni=(properties.major, properties.minor) >= (7, 5),
        compiler=compiler_path() is not None and sys.platform != "win32",
        packages=packages(),
    )


def _gpu_class(index: int, name: str, multiprocessors: int) -> str:
    """Name, driver, power limit and MIG slice; what NVML does not tell is left out."""
    parts = [name]
    try:
        pynvml = importlib.import_module("pynvml")

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        parts.append(f"driver {pynvml.nvmlSystemGetDriverVersion()}")
        parts.append(f"{pynvml.nvmlDeviceGetPowerManagementLimit(handle) // 1000} W")
    except Exception:  # NVML is absent, or hides the value from a container: the class is then coarser, not wrong
        parts.append(f"cuda {torch.version.cuda}")
    if "MIG" in name:
        parts.append(f"{multiprocessors} multiprocessors")
    return " ".join(parts)
