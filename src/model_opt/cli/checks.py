"""What `model-opt doctor` looks at."""

from collections.abc import Iterator
from dataclasses import dataclass

from model_opt.compression.machine import extras, inspect, packages


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that a machine may have. `advice` says how to get it, empty where it is there."""

    what: str
    there: bool
    found: str
    advice: str = ""


GOOD_FOR = {
    "timm": "timm's models",
    "tomesd": "token merging for diffusion U-Nets",
    "redis": "knowledge in Redis",
    "pymongo": "knowledge in MongoDB",
    "matplotlib": "pictures",
    "plotly": "model-opt report",
    "fastapi": "model-opt ui, and a hub",
}
"""What optional packages are good for, beside those of runtimes."""

BF16 = ("half the bytes, and faster", "half the bytes all the same, not faster")
INT8_DOT = ("int8 gains most", "int8 is tried all the same, with ranges that are right without them")
"""What it means that the hardware does this, and that it does not; nothing is refused."""


def checks(device: str) -> list[Check]:
    """Everything that makes a difference to a search on `device` here. Raises `InvalidInput` for no such device."""
    machine = inspect(device)
    advice_compiler = "install a C++ compiler (g++ or clang++)"
    return [
        Check(what="device", there=True, found=machine.device_class),
        Check(what="bf16 in hardware", there=machine.bf16, found=_meaning(machine.bf16, BF16)),
        Check(what="int8 dot products in hardware", there=machine.int8_dot, found=_meaning(machine.int8_dot, INT8_DOT)),
        _compiler(machine.compiler, advice_compiler),
        *_packages(),
    ]


def _meaning(there: bool, meanings: tuple[str, str]) -> str:
    return meanings[0] if there else meanings[1]


def _compiler(there: bool, advice: str) -> Check:
    good_for = "AOTInductor and torch.compile"
    return Check(what="C++ compiler", there=there, found=good_for, advice="" if there else advice)


def _packages() -> Iterator[Check]:
    from model_opt.compression.runtimes.declared import RUNTIMES

    declared = [{**runtime.packages, **runtime.more} for runtime in RUNTIMES.values()]
    good_for = {name: what for each in declared for name, what in each.items() if what} | GOOD_FOR
    versions, brought_by = packages(), extras()
    for name, what in good_for.items():
        if name in versions:
            yield Check(what=name, there=True, found=f"{versions[name]}: {what}")
        else:
            advice = f"pip install 'model_opt[{brought_by[name]}]'" if name in brought_by else f"pip install {name}"
            yield Check(what=name, there=False, found=what, advice=advice)
