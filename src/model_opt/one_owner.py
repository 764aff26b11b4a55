"""One process at a time works in a folder; who comes second is told who does."""

import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from model_opt.atomic import write_private
from model_opt.errors import FolderInUse

log = logging.getLogger(__name__)

LOCK, OWNER = ".lock", ".owner.json"


def take(folder: Path, *, timeout_s: float = 0.0) -> BaseFileLock:
    """Makes this process the owner of `folder`, which is there, until it releases what is returned, or dies.

    Parameters
    ----------
    folder
        What is owned.
    timeout_s
        How long to wait for an owner that may be ending, in seconds.

    Raises
    ------
    FolderInUse
        Where another process owns it.
    OSError
        Where nothing can be written there.
    """
    lock = FileLock(folder / LOCK, timeout=timeout_s, thread_local=False)  # any thread may release it
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(f"{folder} is in use by {_owner(folder)}") from error
    except NotImplementedError as error:  # some network file systems
        log.warning("two processes in %s at once would not be noticed: %s", folder, error)
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"}
    try:
        write_private(folder / OWNER, json.dumps(owner))
    except OSError:
        lock.release()
        raise
    return lock


def _owner(folder: Path) -> str:
    """Who has the lock, as far as it has said."""
    try:
        said = json.loads((folder / OWNER).read_bytes())
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
