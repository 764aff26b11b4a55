"""A TCP proxy before a real server, which delays, stalls, cuts and resets what goes through it."""

import random
import socket
import struct
import threading
import time

DELAY_S = (0.02, 0.3)
_CHUNK = 1 << 16
_LINGER_NO_MORE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on 127.0.0.1 and passes on to `port`. `mode` is "through", "delay", "stall", "cut" or "reset".

    While it stalls nothing passes and nothing is closed; while it cuts connections end, and new ones end at once; a
    reset ends them without a farewell, once for each connection.
    """

    def __init__(self, port: int, rng: random.Random) -> None:
        self._target, self._rng = port, rng
        self._mode = "through"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = mode
        if mode in ("cut", "reset"):
            for pair in self._pairs:
                self._end(pair)
            self._pairs = []

    def close(self) -> None:
        self.mode = "cut"
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._mode in ("cut", "reset"):
                self._end((client,))
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self._pairs.append((client, server))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                while self._mode == "stall":
                    time.sleep(0.05)
                if self._mode == "delay":
                    time.sleep(self._rng.uniform(*DELAY_S))
                sink.sendall(data)
        except OSError:
            pass
        self._end((source, sink))

    def _end(self, sockets: tuple[socket.socket, ...]) -> None:
        for one in sockets:
            try:
                if self._mode == "reset":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NO_MORE)
                else:
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            except OSError:
                pass
