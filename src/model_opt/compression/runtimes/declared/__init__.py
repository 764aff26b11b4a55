"""Every runtime, a file each. A new one is a new file here that makes a `Runtime`."""

import importlib.metadata
import pkgutil
from importlib import import_module

from model_opt.compression.machine import packages
from model_opt.compression.runtimes.runtime import Runtime
from model_opt.errors import UnknownName


def _declared() -> dict[str, Runtime]:
    modules = (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    found = (value for module in modules for value in vars(module).values() if isinstance(value, Runtime))
    return {runtime.name: runtime for runtime in sorted(found, key=lambda one: (one.compiles, -one.weight, one.name))}


RUNTIMES = _declared()
"""Name → runtime, those that are quick to prepare and gain most first; "torch" is one of them."""


OWN: dict[str, Runtime] = {}
"""Users' runtimes."""


def add_runtime(runtime: Runtime) -> Runtime:
    """Makes a runtime of your own known; it is taken along to measuring processes. Raises `UnknownName` for a name that
    there is already."""
    if runtime.name in RUNTIMES:
        raise UnknownName("runtime with a name of its own:", runtime.name, ())
    RUNTIMES[runtime.name] = OWN[runtime.name] = runtime
    return runtime


def libraries() -> dict[str, str]:
    """Versions of what a latency depends on: torch, and what the runtimes that are installed say."""
    timed = {name for runtime in RUNTIMES.values() for name in runtime.timed}
    known = {name: version for name, version in packages().items() if name in timed}
    return {"torch": importlib.metadata.version("torch"), **known}
