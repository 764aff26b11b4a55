"""The audit log: one JSON object a line, for every request that was signed and every one that was refused."""

import json
import logging
import logging.handlers
import time
from pathlib import Path

_FILE_BYTES, _FILES = 64 * 2**20, 10
_LONGEST = 300


class AuditLog:
    """Appends to `path`, from any thread; at 64 MiB a file is put aside, the last ten are kept."""

    def __init__(self, path: Path) -> None:
        """Makes the file, readable by its owner only."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=_FILE_BYTES, backupCount=_FILES, encoding="utf-8"
        )
        path.chmod(0o600)

    def write(self, event: str, **fields: object) -> None:
        """Adds a line. Texts are cut at 300 characters: what a stranger sends may be long."""
        line = {"time": time.time(), "event": event} | {name: _short(value) for name, value in fields.items()}
        text = json.dumps(line, default=str)
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Lets the file go."""
        self._handler.close()


def _short(value: object) -> object:
    return value[:_LONGEST] if isinstance(value, str) else value
