"""Small files beside the keys: nobody else reads them, and each appears whole or not at all."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replaces the file at `path` by one of mode 0600 that holds `text`. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
