"""Files that appear whole or not at all: written beside their places, brought to the disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_opt.errors import InvalidInput


@contextmanager
def replacing(*paths: Path, mode: int | None = None) -> Iterator[tuple[BinaryIO, ...]]:
    """Files to write that take the places of `paths` once all of them are on the disk.

    Where the block, the disk or a rename fails, what was there before stays. They get the permissions `mode`, or those
    of the file that was there, or 0644; until then nobody else reads them. Raises `OSError`.
    """
    ready: list[Path] = []
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            for path in paths:
                descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
                ready.append(Path(name))
                files.append(stack.enter_context(os.fdopen(descriptor, "wb")))
            yield tuple(files)
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in zip(ready, paths, strict=True):
            temporary.chmod(_mode(path, mode))
        for temporary, path in zip(ready, paths, strict=True):
            temporary.replace(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)
    finally:
        for temporary in ready:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_atomically(path: Path, contents: bytes) -> None:
    """At `path` there is the old file or the new one. Raises `InvalidInput` where it cannot be written."""
    write_together(path.parent, {path.name: contents})


def write_together(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes `files` (name → contents) into `folder`; none takes its place before all are on the disk.

    Raises `InvalidInput` where that fails; what was there before is then still there.
    """
    try:
        with replacing(*(folder / name for name in files)) as opened:
            for file, contents in zip(opened, files.values(), strict=True):
                file.write(contents)
    except OSError as error:
        names = " and ".join(files)
        raise InvalidInput(
            f"{names} could not be written in {folder}: {error.strerror or error}; nothing was changed"
        ) from error


def write_private(path: Path, text: str) -> None:
    """Replaces the file at `path` by one that only its owner may read. Raises `OSError`."""
    with replacing(path, mode=0o600) as (file,):
        file.write(text.encode())


def _mode(path: Path, mode: int | None) -> int:
    if mode is not None:
        return mode
    return path.stat().st_mode & 0o777 if path.exists() else 0o644


def _sync(folder: Path) -> None:
    """Makes a rename last through a loss of power, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
