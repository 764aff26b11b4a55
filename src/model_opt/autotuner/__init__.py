"""The autotuner: hand in a model, get back a smaller, faster one with figures that were measured."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_opt.autotuner.callbacks import Callbacks
    from model_opt.autotuner.engine import CompressionTreeSearch, MCTSEngine
    from model_opt.autotuner.figures import Figure
    from model_opt.autotuner.optimizer import IntelligentOptimizer
    from model_opt.autotuner.result import CompressionResult
    from model_opt.compression.exports import export_model
    from model_opt.compression.save_model import load_model, save_model
    from model_opt.compression.sign_model import sign_model
    from model_opt.search.model_signature import ModelSignature as ModelSignature

_ON_FIRST_USE = {
    "Callbacks": ("autotuner.callbacks", "Callbacks"),
    "CompressionResult": ("autotuner.result", "CompressionResult"),
    "CompressionTreeSearch": ("autotuner.engine", "CompressionTreeSearch"),
    "Figure": ("autotuner.figures", "Figure"),
    "IntelligentOptimizer": ("autotuner.optimizer", "IntelligentOptimizer"),
    "MCTSEngine": ("autotuner.engine", "MCTSEngine"),
    "ModelSignature": ("search.model_signature", "ModelSignature"),
    "export_model": ("compression.exports", "export_model"),
    "load_model": ("compression.save_model", "load_model"),
    "save_model": ("compression.save_model", "save_model"),
    "sign_model": ("compression.sign_model", "sign_model"),
}
"""Name → where it is: the command line's first screens do without torch and compiled code (seconds; PEP 562)."""

__all__ = [
    "Callbacks",
    "CompressionResult",
    "CompressionTreeSearch",
    "Figure",
    "IntelligentOptimizer",
    "MCTSEngine",
    "ModelSignature",
    "export_model",
    "load_model",
    "save_model",
    "sign_model",
]


def __getattr__(name: str) -> object:
    """Loads what is first used now."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _ON_FIRST_USE[name]
    return getattr(import_module(f"model_opt.{module}"), attribute)
