"""Every runtime, a file each. A new one is a new file here that makes a `Runtime` named `RUNTIME`."""

import importlib.metadata
import pkgutil
from importlib import import_module

from model_opt.compression.machine import packages
from model_opt.compression.runtimes.runtime import Runtime


def _declared() -> dict[str, Runtime]:
    modules = (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    found: list[Runtime] = [module.RUNTIME for module in modules]
    return {runtime.name: runtime for runtime in sorted(found, key=lambda one: (one.compiles, -one.weight, one.name))}


RUNTIMES = _declared()
"""Name → runtime, those that are quick to prepare and gain most first; "torch" is one of them."""


def libraries() -> dict[str, str]:
    """Versions of what a latency depends on: torch, and what the runtimes that are installed say."""
    timed = {name for runtime in RUNTIMES.values() for name in runtime.timed}
    known = {name: version for name, version in packages().items() if name in timed}
    return {"torch": importlib.metadata.version("torch"), **known}
