"""Where a user's things are kept: in the user's own folders, or where those cannot be written in the temporary one.

A container may run as a user without a home, or with a file system that is read-only but for `/tmp`.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_data_path, user_state_path


def data_folder() -> Path:
    """Where knowledge and the deployment's identity are kept."""
    return _usual(user_data_path) or temporary_folder() / "data"


def state_folder() -> Path:
    """Where a coordinator keeps its searches."""
    return _usual(user_state_path) or temporary_folder() / "state"


def temporary_folder() -> Path:
    """The part of the temporary folder that is this user's own."""
    return Path(tempfile.gettempdir()) / f"model-opt-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def home_variables() -> dict[str, str]:
    """What to set for programs that insist on a home, and for their caches: nothing where there is one to write to."""
    if _usual(user_data_path) is not None:
        return {}
    folder = temporary_folder() / "home"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"HOME": str(folder)}


def passing() -> str | None:
    """What to tell a user whose knowledge is kept where it may not last; None where it is kept as it should be."""
    if _usual(user_data_path) is not None:
        return None
    return f"no home folder can be written: knowledge and identity are kept in {data_folder()}, which may not last"


def _usual(find: Callable[[str], Path]) -> Path | None:
    """The user's own folder, if there is one that can be written."""
    try:
        folder = find("model_opt")
    except RuntimeError:  # the system knows no such user, and no HOME is set
        return None
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return folder if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else None
