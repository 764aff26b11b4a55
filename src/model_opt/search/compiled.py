"""The tree's kernels compiled by numba: twins of the functions in `tree`, and where they are kept between processes."""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from model_opt.search import tree


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What is called of `tree` from outside it, compiled or not."""

    enlist_all: Callable[..., None]
    mask_options: Callable[..., None]
    step: Callable[..., int]


def _plain_step(*arguments: Any) -> int:
    with np.errstate(over="ignore"):  # the random numbers' words wrap around
        return int(tree.step(*arguments))


PLAIN = Kernels(enlist_all=tree.enlist_all, mask_options=tree.mask_options, step=_plain_step)


@cache
def twins() -> Mapping[str, Any]:
    """Name → compiled twin of every kernel: when it is first called it is loaded from the cache, or compiled.

    They are numba's, and can be called by other compiled functions; by Python only where they are an `entry`.
    """
    from numba import njit

    config: Any = import_module("numba.core.config")  # one without types

    folder, known = cache_folder(), dict(vars(tree))  # twins call twins: the functions' globals are these
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder or "")
    try:
        for name, options in tree.KERNELS.items():
            code = getattr(tree, name).__code__
            known[name] = njit(cache=folder is not None, **options)(FunctionType(code, known, name))
    finally:
        config.CACHE_DIR = before
    return {name: known[name] for name in tree.KERNELS}


@cache
def load_compiled() -> Kernels:
    """The compiled kernels, from the cache where they are there, else compiled now: seconds.

    One call of each brings in all that `Planner` will use: arrays of the same types and layouts.
    """
    made = twins()
    kernels = Kernels(enlist_all=made["enlist_all"], mask_options=made["mask_options"], step=made["step"])
    _call_each(kernels)
    return kernels


def _call_each(kernels: Kernels) -> None:
    """A search of a few steps through a made-up space."""
    sizes, rng = np.array([2, 3]), np.random.default_rng(0)
    plans = np.zeros((1, 2), dtype=np.int16)
    rules = tree.ForbiddenMoves(
        table=np.zeros((0, 2, 3), dtype=np.bool_), named=np.zeros((0, 2), dtype=np.bool_), known=plans
    )
    archive, walkers = tree.new_archive(64, sizes, rng), tree.new_walkers(1, sizes, rng)
    made = tree.new_tree(np.arange(2), sizes, 8)
    kernels.enlist_all(archive, plans, -np.inf)
    kernels.mask_options(made, 0, 0, plans[0], rules)
    policy = np.full((2, 3), 1 / 3, dtype=np.float32)
    kernels.step(made, rules, archive, walkers, np.zeros(tree.CHUNK, dtype=np.int64), plans, policy, -np.inf)


# the cache ------------------------------------------------------------------------------------------------------------


@cache
def cache_folder() -> Path | None:
    """The first folder that can be written: $NUMBA_CACHE_DIR, beside the source, the user's cache, the user's part of
    the temporary folder; None on a system that takes nothing."""
    return next((folder for folder in _folders() if _is_ours(folder)), None)


def _folders() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    yield Path(tree.__file__).parent / "__pycache__"
    if home := os.environ.get("XDG_CACHE_HOME"):
        yield Path(home) / "model_opt"
    elif home := os.environ.get("HOME"):
        yield Path(home) / ".cache" / "model_opt"
    with suppress(OSError):  # there is none
        yield Path(tempfile.gettempdir()) / f"model-opt-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Whether `folder` can be written, and by nobody who could plant code in it: what is kept there is run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        about = folder.stat()
    except OSError:
        return False
    return about.st_uid == os.getuid() or not about.st_mode & 0o002


def is_kept() -> bool:
    """Whether the cache holds every kernel, for this processor and these versions."""
    path = mark()
    return path is not None and path.exists()


@cache
def mark() -> Path | None:
    """The file that says that the cache is whole; None where there is no cache."""
    folder = cache_folder()
    if folder is None:
        return None
    told = (Path(tree.__file__).read_text(), version("numba"), sys.implementation.cache_tag, _processor())
    return folder / f"tree-{hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()}.compiled"


def _processor() -> str:
    """What numba compiles for."""
    named = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_CPU")]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    about = dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))
    return "\n".join([platform.machine(), *about, *named])
