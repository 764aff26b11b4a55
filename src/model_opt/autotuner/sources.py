"""Where the command line's models come from: `torchvision:NAME`, `timm:NAME`, `path/to/file.py:factory`."""

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from model_opt.errors import InvalidInput, MissingDependency, UnknownName

FACTORY_KEYS = frozenset(
    {"model", "example_input", "calibration_data", "eval_fn", "judge_as", "train_data", "fallback"}
)
SAVED = frozenset({".pt", ".pt2", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx"})


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model, and what came with it: arguments of `optimize_auto`."""

    model: nn.Module
    arguments: Mapping[str, Any] = field(default_factory=dict)


def load_source(text: str, *, weights: str | None = None, batch: int = 8) -> ModelSource:
    """The model that `text` names.

    Models of torchvision and timm get random weights (seed 0) unless `weights` names some, which may download them.
    A file's factory takes nothing and returns a module, or a mapping with `model` and any of the other `FACTORY_KEYS`.
    Raises `InvalidInput`, `UnknownName` or `MissingDependency`.
    """
    kind, name = source_of(text)
    torch.manual_seed(0)
    if kind == "torchvision":
        return _torchvision(name, weights, batch)
    if kind == "timm":
        return _timm(name, weights, batch)
    return _file(Path(kind), name)


def source_of(text: str) -> tuple[str, str]:
    """Where the model comes from that `text` names ("torchvision", "timm" or a file), and its name there.

    Raises `InvalidInput` for what can name none, `UnknownName` for another source.
    """
    kind, _, name = text.rpartition(":")
    if text.endswith(".py"):
        raise InvalidInput(f"{text!r} names a file: add the function in it that makes the model, {_advice(Path(text))}")
    if Path(text).suffix in SAVED:
        raise InvalidInput(
            f"{text!r} is a saved model, which needs your classes to be loaded: write a file with a function that "
            "loads and returns it, and name that: my_model.py:make"
        )
    if not kind or not name:
        raise InvalidInput(
            f"{text!r} names no model: torchvision:resnet18, timm:vit_tiny_patch16_224 or file.py:factory"
        )
    if kind not in ("torchvision", "timm") and not kind.endswith(".py"):
        raise UnknownName("source of models", kind, ["torchvision", "timm", "a path ending in .py"])
    return kind, name


def _torchvision(name: str, weights: str | None, batch: int) -> ModelSource:
    from torchvision import models

    if name not in models.list_models():
        raise UnknownName("torchvision model", name, models.list_models())
    pixels = {"inception_v3": 299}.get(name, 224)
    return ModelSource(
        model=models.get_model(name, weights=weights),
        arguments={"example_input": torch.randn(batch, 3, pixels, pixels)},
    )


def _timm(name: str, weights: str | None, batch: int) -> ModelSource:
    try:
        import timm
    except ImportError as error:
        raise MissingDependency("timm", "timm") from error
    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models(f"*{name.split('_')[0]}*") or timm.list_models()[:50])
    model: Any = timm.create_model(name, pretrained=weights is not None)
    size = model.pretrained_cfg.get("input_size", (3, 224, 224))
    return ModelSource(model=model, arguments={"example_input": torch.randn(batch, *size)})


def _file(path: Path, factory: str) -> ModelSource:
    module = _import(path)
    if not callable(getattr(module, factory, None)):
        raise UnknownName(f"function of {path}:", factory, _functions(module))
    try:
        made = getattr(module, factory)()
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}, line {line.lineno}"
        raise InvalidInput(
            f"{path}:{factory}() raised {type(error).__name__}: {error} ({where}). It is called without arguments"
        ) from error
    if isinstance(made, nn.Module):
        return ModelSource(model=made)
    if isinstance(made, Mapping) and isinstance(made.get("model"), nn.Module):
        for key in made:
            if key not in FACTORY_KEYS:
                raise UnknownName(f"key returned by {factory}:", key, FACTORY_KEYS)
        return ModelSource(model=made["model"], arguments={key: value for key, value in made.items() if key != "model"})
    raise InvalidInput(
        f"{path}:{factory} returned {type(made).__name__}, not a torch.nn.Module or a mapping with 'model'"
    )


def _functions(module: ModuleType) -> list[str]:
    """What the file itself defines; where that is nothing, all that can be called in it."""
    called = {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}
    own = [name for name, value in called.items() if getattr(value, "__module__", None) == module.__name__]
    return own or list(called)


def _advice(path: Path) -> str:
    if not path.is_file():
        return f"such as {path}:make (but there is no file {path})"
    try:
        return f"such as {path}:{(_functions(_import(path)) or ['make'])[0]}"
    except InvalidInput as error:
        return f"such as {path}:make (but {error})"


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
