"""The autotuner: hand in a model, get back a smaller, faster one with figures that were measured."""

from model_opt.autotuner.callbacks import Callbacks
from model_opt.autotuner.engine import CompressionTreeSearch, MCTSEngine
from model_opt.autotuner.optimizer import IntelligentOptimizer
from model_opt.autotuner.result import CompressionResult, Figure
from model_opt.compression.shipping import export_model, load_model, save_model
from model_opt.compression.signature import sign_model
from model_opt.search.signature import Signature as ModelSignature

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
