"""Saving and loading optimised models, so that a fresh process gives equal outputs.

A file holds a header (format, versions, the recipe, length and hash of the body) and a body: the module as
`torch.save` writes it. Classes and functions that live outside installed packages, in a script of the user's for
example, travel by value, so the file loads where that script is not.

Trust: the body is a pickle, and runtimes' files are machine code or graphs that native libraries parse. Loading a file
runs what its author put there. The hash finds damage, not malice: load only files from people whose code you would run.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import nn

from model_opt.atomic import write_atomically
from model_opt.compression.quiet import quiet
from model_opt.compression.runtimes.static_int8 import quantised_engine
from model_opt.compression.users_modules import users_modules_by_value
from model_opt.errors import InvalidInput

MAGIC = b"model_opt\n"
_MOVED = {
    f"model_opt.compression.{name}": f"model_opt.compression.{package}.{name}"
    for package, names in {
        "techniques": "attention clean distil heads low_rank packed_linear prune refit token_merging",
        "runtimes": "aot_inductor exporting onnx_runtime openvino precision runtime runtime_module static_int8",
    }.items()
    for name in names.split()
}
"""Where the modules are now whose classes files of version 0.1 name."""
FORMAT = 3
LARGEST_HEADER = 16 * 2**20


def save_model(model: nn.Module, path: str | os.PathLike[str], *, recipe: Mapping[str, Any]) -> None:
    """Writes `model` at `path`, whole or not at all; `recipe` (JSON-like) says how it was made.

    Raises `InvalidInput` where the model cannot be pickled or the file cannot be written (a full disk, no such
    folder); what was at `path` before is then still there.
    """
    body = _pickled(model)
    header = {
        "format": FORMAT,
        "versions": _versions(),
        "recipe": dict(recipe),
        "body_bytes": len(body),
        "body_blake2b": hashlib.blake2b(body, digest_size=32).hexdigest(),
    }
    try:
        text = json.dumps(header).encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"the recipe of a saved model must be JSON-like: {error}") from error
    write_atomically(Path(path), MAGIC + len(text).to_bytes(8, "big") + text + body)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The model that `save_model` wrote, in eval mode; raises `InvalidInput` for a file that is none or is damaged.

    Runs code from the file: see the module's note on trust.
    """
    header, body = _read(Path(path))
    try:
        with quantised_engine(), quiet():
            where = "cpu" if _no_gpu() else None
            model = torch.load(io.BytesIO(body), map_location=where, pickle_module=_Reading, weights_only=False)
    except ImportError as error:
        raise InvalidInput(f"{path} needs a package that is not installed here: {error}") from error
    except Exception as error:
        saved = header.get("versions", {})
        raise InvalidInput(f"{path} cannot be loaded (saved with {saved}): {str(error)[:300]}") from error
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{path} holds a {type(model).__name__}, not a model")
    return model.eval()


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the model at `path` was made, without loading it: no code runs. Raises `InvalidInput`."""
    recipe = _read(Path(path))[0].get("recipe")
    return dict(recipe) if isinstance(recipe, Mapping) else {}


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and body, checked; raises `InvalidInput`."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} could not be read: {error.strerror or error}") from error
    if not contents.startswith(MAGIC):
        raise InvalidInput(f"{path} is not a model that model_opt saved")
    start = len(MAGIC) + 8
    length = int.from_bytes(contents[len(MAGIC) : start], "big")
    try:
        if length > min(LARGEST_HEADER, len(contents) - start):
            raise ValueError("the header is cut off")
        header = json.loads(contents[start : start + length])
        written, size, digest = int(header["format"]), header["body_bytes"], header["body_blake2b"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} is damaged: {error}") from error
    if written != FORMAT:
        age, advice = ("a newer", "update to load it") if written > FORMAT else ("an older", "optimise the model again")
        raise InvalidInput(f"{path} was saved by {age} model_opt (format {written}, not {FORMAT}): {advice}")
    body = contents[start + length :]
    if len(body) != size or hashlib.blake2b(body, digest_size=32).hexdigest() != digest:
        raise InvalidInput(f"{path} is damaged: {len(body)} of {size} bytes are there, or they were changed")
    return header, body


def _pickled(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with users_modules_by_value():
        try:
            torch.save(model, buffer, pickle_module=cloudpickle, pickle_protocol=5)
        except Exception as error:
            raise InvalidInput(f"this model cannot be pickled: {str(error)[:300]}") from error
    return buffer.getvalue()


class _Unpickler(pickle.Unpickler):
    """Finds classes where they are now."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        return super().find_class(_MOVED.get(module_name, module_name), global_name)


class _Reading:
    """As much of the module `pickle` as `torch.load` asks for."""

    Unpickler = _Unpickler


def _no_gpu() -> bool:
    return not torch.cuda.is_available()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchvision", "openvino", "onnxruntime", "torchao", "timm", "model_opt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}
