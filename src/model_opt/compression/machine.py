"""What this machine can do: processor or GPU, instruction sets, compiler, and the optional packages that are there.

What is known here weighs techniques and chooses recipes; it forbids none, measuring decides. torch is imported for a
GPU only: the processor is asked by what the system says of it, so that a first screen does not wait.
"""

import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from model_opt.errors import InvalidInput
from model_opt.processors import ROOT
from model_opt.processors import usable_processors as usable_processors

NOT_FOR_USERS = frozenset({"all", "dev", "docs", "bench"})
"""Extras that bring what others bring too, or what a model needs nothing of."""

INSTRUCTION_SETS = (
    ("amx_int8", "amx"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512f", "avx512"),
    ("avx_vnni", "avx_vnni"),
    ("avx2", "avx2"),
)
"""Linux's name of a capability → ours, best first."""

BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Capabilities that multiply bf16 in hardware: of x86, and of ARM."""

INT8_DOT = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
"""Capabilities that add int8 products up in 32 bits at once: of x86, and of ARM."""

DARWIN = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
"""macOS's name of a capability → Linux's."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this device can do; see `inspect`."""

    device: str
    device_class: str
    bf16: bool
    """Whether the hardware multiplies bf16. Where it does not bf16 is emulated: half the bytes, no gain in time."""
    int8_dot: bool
    """Whether the hardware adds int8 products up in 32 bits. Where it does not, sums of u8·s8 saturate in 16 bits, and
    recipes leave a bit of the weights' range unused."""
    compiler: bool
    packages: Mapping[str, str]
    """Versions of the optional packages that are installed: openvino, nncf, onnxruntime, torchao, tomesd, …"""


def inspect(device: str = "cpu") -> Machine:
    """Looks at `device` ("cpu", "cuda", "cuda:1"); raises `InvalidInput` where there is no such device."""
    kind = re.fullmatch(r"(cpu|cuda)(:\d+)?", device)
    if kind is None:
        raise InvalidInput(f"no device is called {device!r}, or it is not supported: use 'cpu', 'cuda' or 'cuda:1'")
    if kind[1] == "cuda":
        return _inspect_gpu(device)
    able = capabilities()
    return Machine(
        device="cpu",
        device_class=f"{_processor()} {best_instruction_set()}",
        bf16=bool(able & BF16),
        int8_dot=bool(able & INT8_DOT),
        compiler=compiler_path() is not None,
        packages=packages(),
    )


@cache
def extras() -> dict[str, str]:
    """Optional package → the extra of `model_opt` that brings it, by its own metadata."""
    found: dict[str, str] = {}
    for required in importlib.metadata.requires("model_opt") or ():
        parts = re.fullmatch(r"([\w.-]+).*extra == '(\w+)'", required)
        if parts and parts[2] not in NOT_FOR_USERS:
            found.setdefault(parts[1].replace("-", "_"), parts[2])
    return found


@cache
def packages() -> dict[str, str]:
    """Versions of the optional packages that are installed; none is imported."""
    found = {}
    for name in extras():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def compiler_path() -> str | None:
    """The C++ compiler that inductor would call, or None."""
    return next((path for path in map(shutil.which, ("g++", "clang++", "c++")) if path), None)


def best_instruction_set(root: Path = ROOT) -> str:
    """The best vector instruction set of this processor, "avx512_vnni" for example; the architecture where none is."""
    able = capabilities(root)
    return next((name for flag, name in INSTRUCTION_SETS if flag in able), platform.machine())


@cache
def capabilities(root: Path = ROOT) -> frozenset[str]:
    """What the processor is able to do, by Linux's names ("avx2", "asimddp"); empty where the system does not say.

    What a library was told not to use (`ONEDNN_MAX_CPU_ISA`, `ATEN_CPU_CAPABILITY`) is not seen here.
    """
    if sys.platform == "darwin" and root == ROOT:
        return _able_on_darwin()
    fields = _cpuinfo(root)
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _able_on_darwin() -> frozenset[str]:
    command = ["sysctl", *DARWIN]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    pairs = (line.partition(":") for line in said.splitlines())
    return frozenset(DARWIN[name] for name, _, value in pairs if name in DARWIN and value.strip() == "1")


def _cpuinfo(root: Path) -> dict[str, str]:
    """What Linux says of the first processor, by its names of fields; empty on other systems."""
    try:
        first = (root / "proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}


@cache
def _processor() -> str:
    """The processor's model as the kernel names it, with family and model numbers where the name alone is vague."""
    fields = _cpuinfo(ROOT)
    if not fields:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def _inspect_gpu(device: str) -> Machine:
    import torch

    if not torch.cuda.is_available():
        raise InvalidInput(f"device {device!r} is not there: torch sees no GPU")
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        raise InvalidInput(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} GPU(s)")
    properties = torch.cuda.get_device_properties(index)
    return Machine(
        device=device,
        device_class=_gpu_class(index, properties.name, properties.multi_processor_count, torch.version.cuda),
        bf16=properties.major >= 8,
        int8_dot=(properties.major, properties.minor) >= (7, 5),
        compiler=compiler_path() is not None and sys.platform != "win32",
        packages=packages(),
    )


def _gpu_class(index: int, name: str, multiprocessors: int, cuda: str | None) -> str:
    """Name, driver, power limit and MIG slice; what NVML does not tell is left out."""
    parts = [name]
    try:
        pynvml = importlib.import_module("pynvml")

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        parts.append(f"driver {pynvml.nvmlSystemGetDriverVersion()}")
        parts.append(f"{pynvml.nvmlDeviceGetPowerManagementLimit(handle) // 1000} W")
    except Exception:  # NVML is absent, or hides the value from a container: the class is then coarser, not wrong
        parts.append(f"cuda {cuda}")
    if "MIG" in name:
        parts.append(f"{multiprocessors} multiprocessors")
    return " ".join(parts)
