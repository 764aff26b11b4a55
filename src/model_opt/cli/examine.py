"""What `model-opt doctor` looks at."""

from collections.abc import Iterator
from dataclasses import dataclass

from model_opt.compression.machine import inspect


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a machine may have. `advice` says how to get it, empty where it is there."""

    what: str
    there: bool
    found: str
    advice: str = ""


PACKAGES = (
    ("openvino", "cpu", "the OpenVINO runtime, often the fastest on a CPU"),
    ("nncf", "cpu", "int8 for OpenVINO"),
    ("onnxruntime", "cpu", "the ONNX Runtime"),
    ("torchao", "torchao", "int8 and int4 of torchao, PT2E int8 for AOTInductor"),
    ("timm", "timm", "timm's models"),
    ("tomesd", "diffusion", "token merging for diffusion U-Nets"),
    ("redis", "redis", "knowledge in Redis"),
    ("pymongo", "mongodb", "knowledge in MongoDB"),
    ("matplotlib", "report", "pictures"),
    ("plotly", "report", "model-opt report"),
    ("fastapi", "ui", "model-opt ui"),
)
"""Optional packages: name, the extra that brings it, what it is good for."""


def checks(device: str) -> list[Check]:
    """Everything that makes a difference to a search on `device` here. Raises `InvalidInput` for no such device."""
    machine = inspect(device)
    advice_compiler = "install a C++ compiler (g++ or clang++)"
    return [
        Check(what="device", there=True, found=machine.device_class),
        Check(what="bf16 in hardware", there=machine.bf16, found="" if machine.bf16 else "bf16 will be slow"),
        Check(
            what="int8 dot products (VNNI)", there=machine.int8_dot, found="" if machine.int8_dot else "int8 gains less"
        ),
        _compiler(machine.compiler, advice_compiler),
        *_packages(),
    ]


def _compiler(there: bool, advice: str) -> Check:
    good_for = "AOTInductor and torch.compile"
    return Check(what="C++ compiler", there=there, found=good_for, advice="" if there else advice)


def _packages() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    for name, extra, good_for in PACKAGES:
        try:
            yield Check(what=name, there=True, found=f"{version(name)}: {good_for}")
        except PackageNotFoundError:
            yield Check(what=name, there=False, found=good_for, advice=f"pip install 'model_opt[{extra}]'")
