"""Finds the best way to compress a neural network, measured on the user's device.

What a user calls is offered here, and loaded when it is first used; `model_opt.search.search` searches any problem.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from model_opt.autotuner.callbacks import Callbacks
    from model_opt.autotuner.optimizer import IntelligentOptimizer, optimize
    from model_opt.autotuner.result import CompressionResult
    from model_opt.compression.exports import export_model
    from model_opt.compression.runtimes.declared import add_runtime
    from model_opt.compression.save_model import load_model, save_model
    from model_opt.compression.sign_model import sign_model
    from model_opt.compression.technique import register
    from model_opt.search.model_signature import ModelSignature
    from model_opt.search.plan import Plan
    from model_opt.search.space import Decision, Forbid, SearchSpace
    from model_opt.storage.open import open_store

_ON_FIRST_USE = {
    "Callbacks": "autotuner.callbacks",
    "CompressionResult": "autotuner.result",
    "Decision": "search.space",
    "Forbid": "search.space",
    "IntelligentOptimizer": "autotuner.optimizer",
    "ModelSignature": "search.model_signature",
    "Plan": "search.plan",
    "SearchSpace": "search.space",
    "add_runtime": "compression.runtimes.declared",
    "export_model": "compression.exports",
    "load_model": "compression.save_model",
    "open_store": "storage.open",
    "optimize": "autotuner.optimizer",
    "register": "compression.technique",
    "save_model": "compression.save_model",
    "sign_model": "compression.sign_model",
}
"""Name → module (PEP 562): importing the package loads neither torch nor Ray."""

__all__ = [
    "Callbacks",
    "CompressionResult",
    "Decision",
    "Forbid",
    "IntelligentOptimizer",
    "ModelSignature",
    "Plan",
    "SearchSpace",
    "add_runtime",
    "export_model",
    "load_model",
    "open_store",
    "optimize",
    "register",
    "save_model",
    "sign_model",
]


def __getattr__(name: str) -> object:
    """Loads what is first used now."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)


def __dir__() -> list[str]:
    """With what is not loaded yet."""
    return sorted({*globals(), *__all__})
