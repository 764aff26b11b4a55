"""Saving, loading and exporting optimised models, so that a fresh process gives equal outputs.

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
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch import nn

from model_opt.compression.exporting import export_program, onnx_bytes
from model_opt.compression.inputs import Inputs
from model_opt.compression.layout import layout_of
from model_opt.compression.quiet import quiet
from model_opt.compression.runtime_module import RuntimeModule, WithOriginal
from model_opt.compression.static_int8 import quantised_engine
from model_opt.errors import InvalidInput, TechniqueError, UnknownName

MAGIC = b"model_opt\n"
FORMAT = 3
LARGEST_HEADER = 16 * 2**20
FORMATS = ("torch", "onnx", "openvino")


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
            model = torch.load(io.BytesIO(body), map_location="cpu" if _no_gpu() else None, weights_only=False)
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


def export_model(model: nn.Module, path: str | os.PathLike[str], format: str, example: Inputs) -> None:
    """Writes `model` for others to run: "torch" (torch.export; TorchScript for static int8), "onnx" or "openvino".

    OpenVINO writes two files, `path` with the suffixes .xml and .bin. Raises `UnknownName` for another format,
    `TechniqueError` where this model cannot be written so (a runtime's file has one format of its own).
    Of a compiled model that keeps the original as its fallback the compiled one is written.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    target = Path(path)
    model = model.compiled if isinstance(model, WithOriginal) else model
    if isinstance(model, RuntimeModule):
        _export_runtime(model, target, format)
        return
    layout = layout_of(model, example)
    if format == "onnx":
        write_atomically(target, onnx_bytes(model, layout, example)[0])
    elif format == "torch":
        _export_program(model, target, example)
    else:
        _export_openvino(model, target, example)


def _export_runtime(model: RuntimeModule, target: Path, format: str) -> None:
    if model.format != format:
        raise TechniqueError(f"this model runs in {model.format}: it exports to {model.format!r}, not to {format!r}")
    for suffix, contents in model.exported().items():
        write_atomically(target.with_suffix(suffix) if suffix else target, contents)


def _export_program(model: nn.Module, target: Path, example: Inputs) -> None:
    program, _ = export_program(model, layout_of(model, example), example)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(target, buffer.getvalue())


def _export_openvino(model: nn.Module, target: Path, example: Inputs) -> None:
    from model_opt.compression.openvino import convert, pack, unpack

    converted, _ = convert(model, layout_of(model, example), example)
    xml, weights = unpack(pack(converted, half_weights=False))
    write_atomically(target.with_suffix(".xml"), xml)
    write_atomically(target.with_suffix(".bin"), weights)


def write_atomically(path: Path, contents: bytes) -> None:
    """Temporary file, fsync, rename: at `path` there is the old file or the new one. Raises `InvalidInput`."""
    write_together(path.parent, {path.name: contents})


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes `files` (name → contents) into `folder`; none takes its place before all are on the disk.

    Raises `InvalidInput` where that fails; what was there before is then still there.
    """
    written: dict[str, Path] = {}
    try:
        for name, contents in files.items():
            descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            written[name] = Path(temporary)
            with os.fdopen(descriptor, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            written[name].chmod(0o644)
        for name, ready in written.items():
            ready.replace(folder / name)
    except OSError as error:
        for ready in written.values():
            with contextlib.suppress(OSError):
                ready.unlink()
        names = " and ".join(files)
        raise InvalidInput(
            f"{names} could not be written in {folder}: {error.strerror or error}; nothing was changed"
        ) from error


def size_bytes(model: nn.Module) -> int:
    """Bytes of `model`'s serialised state dict, packed weights included; of its file where a runtime runs it."""
    if isinstance(model, RuntimeModule):
        return int(model.file.numel())
    counter = _Counter()
    torch.save(model.state_dict(), counter)  # type: ignore[arg-type]
    return counter.total


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


@contextlib.contextmanager
def users_modules_by_value() -> Iterator[None]:
    """Inside, cloudpickle writes classes and functions of modules outside installed packages by value."""
    added = []
    known = cloudpickle.list_registry_pickle_by_value()
    for module in list(sys.modules.values()):
        if _is_users(module) and module.__name__ not in known:
            cloudpickle.register_pickle_by_value(module)
            added.append(module)
    try:
        yield
    finally:
        for module in added:
            cloudpickle.unregister_pickle_by_value(module)


def _is_users(module: ModuleType) -> bool:
    """Whether `module` is a file outside the standard library, installed packages and this package."""
    file = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "")
    if not isinstance(file, str) or name.partition(".")[0] in {"model_opt", "__main__", "cloudpickle"}:
        return False
    if sys.modules.get(name) is not module:
        return False
    path = os.path.abspath(file)  # noqa: PTH100  (thousands of modules: pathlib is ten times slower)
    return not any(path.startswith(folder + os.sep) for folder in _installed_folders())


@cache
def _installed_folders() -> set[str]:
    """Folders of the standard library and of installed packages."""
    folders = {*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()}
    return {str(Path(folder).absolute()) for folder in folders if not _is_top(folder)}


def _is_top(folder: str) -> bool:
    """Whether `folder` holds everything ("/usr", a virtual environment's root) rather than packages."""
    return folder in {sysconfig.get_path("data"), sysconfig.get_path("scripts"), ""}


def _no_gpu() -> bool:
    return not torch.cuda.is_available()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchvision", "openvino", "onnxruntime", "torchao", "timm", "model_opt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


class _Counter(io.RawIOBase):
    """A file that keeps nothing but the number of bytes written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        length = memoryview(data).nbytes  # type: ignore[arg-type]
        self.total += length
        return length
