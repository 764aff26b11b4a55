"""Classes and functions of the user's scripts travel by value: what loads them may not have the scripts."""

import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import cloudpickle


@contextmanager
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
