"""When something new of an origin's epoch last arrived, by the reader's own clock, in a file beside its keys.

What has not been heard of for long counts for less (`weighting.merge_origins`). Nobody else's clock is believed.
"""

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from filelock import FileLock

from model_opt.atomic import write_private
from model_opt.errors import StoreError
from model_opt.federation.identity import identity_folder

Epoch = tuple[str, str]
"""An origin and one of its epochs."""
_FILE = "heard.json"


def last_heard(folder: Path | None = None) -> dict[Epoch, float]:
    """Seconds since 1970 at which each epoch was last heard of. `folder` is the identity's; empty where nothing is.

    A file that cannot be read counts as none: everything is new then.
    """
    try:
        found = json.loads(((folder or identity_folder()) / _FILE).read_text())
        return {
            (origin, epoch): float(seconds) for origin, epochs in found.items() for epoch, seconds in epochs.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_heard(epochs: Collection[Epoch], *, folder: Path | None = None, now: float | None = None) -> None:
    """Notes that something new of `epochs` has arrived `now` (seconds since 1970). Raises `StoreError`."""
    if not epochs:
        return
    folder = folder or identity_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(folder / ".heard.lock", timeout=10):
            known = last_heard(folder) | dict.fromkeys(epochs, time.time() if now is None else now)
            write_private(folder / _FILE, json.dumps(_by_origin(known), indent=1))
    except OSError as error:
        raise StoreError(f"arrivals cannot be kept at {folder}: {error.strerror or error}") from error


def _by_origin(known: Mapping[Epoch, float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (origin, epoch), seconds in sorted(known.items()):
        found.setdefault(origin, {})[epoch] = seconds
    return found
