"""Length-prefixed cloudpickle frames over a socket, between a worker and the process that measures for it."""

import pickle
import select
import socket
import time
from typing import Any

import cloudpickle

HEADER_BYTES = 8
CHUNK_BYTES = 1 << 20


def send(connection: socket.socket, message: object) -> None:
    """Writes `message`. Raises `OSError` where the other side is gone, or what pickling raises, before a byte left."""
    body = cloudpickle.dumps(message)
    connection.sendall(len(body).to_bytes(HEADER_BYTES, "big"))
    connection.sendall(body)


class PickleFrameReader:
    """Collects frames from a socket. What has arrived in part is kept between calls."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def receive(self, timeout_s: float | None = None) -> tuple[Any, ...] | None:
        """The next message, or None where it has not arrived in full within `timeout_s` (None: for ever).

        Raises `EOFError` where the other side has closed.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (body := self._complete()) is None:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._connection], [], [], left)[0]:
                return None
            self._fill()
        return tuple(pickle.loads(body))

    def _fill(self) -> None:
        try:
            chunk = self._connection.recv(CHUNK_BYTES)
        except ConnectionError as error:
            raise EOFError("the connection was lost") from error
        if not chunk:
            raise EOFError("the connection was closed")
        self._buffer += chunk

    def _complete(self) -> bytes | None:
        if len(self._buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return body
