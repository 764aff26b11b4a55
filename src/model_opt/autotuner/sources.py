"""Where the command line's models come from: `torchvision:NAME`, `timm:NAME`, `path/to/file.py:factory`."""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from model_opt.errors import InvalidInput, MissingDependency, UnknownName

FACTORY_KEYS = frozenset({"model", "example_input", "calibration_data", "eval_fn", "train_data"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model, and what came with it: arguments of `optimize_auto`."""

    model: nn.Module
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load_source(text: str, *, weights: str | None = None, batch: int = 8) -> Source:
    """The model that `text` names.

    Models of torchvision and timm get random weights (seed 0) unless `weights` names some, which may download them.
    A file's factory takes nothing and returns a module, or a mapping with `model` and any of the other `FACTORY_KEYS`.
    Raises `InvalidInput`, `UnknownName` or `MissingDependency`.
    """
    kind, _, name = text.rpartition(":")
    if not kind or not name:
        raise InvalidInput(
            f"{text!r} names no model: torchvision:resnet18, timm:vit_tiny_patch16_224 or file.py:factory"
        )
    torch.manual_seed(0)
    if kind == "torchvision":
        return _torchvision(name, weights, batch)
    if kind == "timm":
        return _timm(name, weights, batch)
    if kind.endswith(".py"):
        return _file(Path(kind), name)
    raise UnknownName("source of models", kind, ["torchvision", "timm", "a path ending in .py"])


def _torchvision(name: str, weights: str | None, batch: int) -> Source:
    from torchvision import models

    if name not in models.list_models():
        raise UnknownName("torchvision model", name, models.list_models())
    pixels = {"inception_v3": 299}.get(name, 224)
    return Source(
        model=models.get_model(name, weights=weights),
        arguments={"example_input": torch.randn(batch, 3, pixels, pixels)},
    )


def _timm(name: str, weights: str | None, batch: int) -> Source:
    try:
        import timm
    except ImportError as error:
        raise MissingDependency("timm", "timm") from error
    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models(f"*{name.split('_')[0]}*") or timm.list_models()[:50])
    model: Any = timm.create_model(name, pretrained=weights is not None)
    size = model.pretrained_cfg.get("input_size", (3, 224, 224))
    return Source(model=model, arguments={"example_input": torch.randn(batch, *size)})


def _file(path: Path, factory: str) -> Source:
    module = _import(path)
    if not hasattr(module, factory):
        known = [name for name in vars(module) if callable(getattr(module, name)) and not name.startswith("_")]
        raise UnknownName(f"function of {path}:", factory, known)
    made = getattr(module, factory)()
    if isinstance(made, nn.Module):
        return Source(model=made)
    if isinstance(made, Mapping) and isinstance(made.get("model"), nn.Module):
        for key in made:
            if key not in FACTORY_KEYS:
                raise UnknownName(f"key returned by {factory}:", key, FACTORY_KEYS)
        return Source(model=made["model"], arguments={key: value for key, value in made.items() if key != "model"})
    raise InvalidInput(
        f"{path}:{factory} returned {type(made).__name__}, not a torch.nn.Module or a mapping with 'model'"
    )


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInput(f"{path} raised {type(error).__name__} while it was imported: {error}") from error
    return module
