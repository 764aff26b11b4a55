"""Logs of the fleet's processes: one JSON object a line, with the ids that tell searches and workers apart."""

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `ids` are in every line."""

    def __init__(self, ids: dict[str, str]) -> None:
        super().__init__()
        self._ids = ids

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = {"at": at, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields | self._ids)


def log_as_json(**ids: str) -> None:
    """Sends this process's `model_opt` logs to its standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(ids))
    logger = logging.getLogger("model_opt")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
