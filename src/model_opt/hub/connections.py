"""Open connections of a hub, over uvicorn's protocol: who says nothing makes room for who does."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from model_opt.hub.limits import HubLimits

_SAID_AGAIN_S = 60.0


class Connections:
    """All open connections, and since when those wait that have no whole head of a request. For the event loop alone.

    One that waits is closed after `head_s`; where one address or all together have too many, the one that has waited
    longest makes room, and where none waits the newest is turned away. So silent strangers cost others nothing.
    """

    def __init__(
        self, limits: HubLimits, told: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`told` hears the limit that bites and an address, at most once a minute for each limit."""
        self._limits, self._told, self._clock = limits, told, clock
        self._of: dict[str, set[GuardedConnection]] = {}
        self._waiting: OrderedDict[GuardedConnection, float] = OrderedDict()
        self._count = 0
        self._said: dict[str, float] = {}

    def __len__(self) -> int:
        return self._count

    def opened(self, one: "GuardedConnection") -> None:
        """Lets `one` in, and makes room for it where there is none."""
        peers = self._of.setdefault(one.address, set())
        peers.add(one)
        self._count += 1
        self.waits(one)
        if len(peers) > self._limits.connections_of_address:
            self._close("connections_of_address", next(other for other in self._waiting if other in peers))
        elif self._count > self._limits.connections:
            self._close("connections", next(iter(self._waiting)))

    def closed(self, one: "GuardedConnection") -> None:
        """Forgets `one`."""
        peers = self._of.get(one.address, set())
        if one in peers:
            peers.remove(one)
            self._count -= 1
        if not peers:
            self._of.pop(one.address, None)
        self._waiting.pop(one, None)

    def waits(self, one: "GuardedConnection") -> None:
        """`one` has no whole head of a request, from now on unless it had none before."""
        if one not in self._waiting:
            self._waiting[one] = self._clock()
            one.loop.call_later(self._limits.head_s, self.sweep)

    def is_served(self, one: "GuardedConnection") -> None:
        """`one` has a request that is being answered."""
        self._waiting.pop(one, None)

    def sweep(self) -> None:
        """Closes what has waited too long."""
        until = self._clock() - self._limits.head_s
        for one in list(takewhile(lambda one: self._waiting[one] <= until, self._waiting)):
            self._close("head_s", one)

    def _close(self, limit: str, one: "GuardedConnection") -> None:
        self._waiting.pop(one, None)
        one.hang_up()
        now = self._clock()
        if now - self._said.get(limit, -_SAID_AGAIN_S) >= _SAID_AGAIN_S:
            self._said[limit] = now
            self._told(limit, one.address)


class HandshakeLimit(asyncio.SelectorEventLoop):
    """An event loop whose servers give a TLS handshake `head_s` seconds: what is silent before it is no connection yet,
    and is seen by nobody else."""

    def __init__(self, head_s: float) -> None:
        super().__init__()
        self._head_s = head_s

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """See `asyncio.loop.create_server`."""
        limit_s = self._head_s if options.get("ssl") else None
        return await super().create_server(*args, **options, ssl_handshake_timeout=limit_s)


class GuardedConnection(H11Protocol):
    """uvicorn's protocol, which tells `guard` when it waits for a request and when it answers one."""

    def __init__(self, guard: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._guard = guard

    @property
    def address(self) -> str:
        """The other side's."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._guard.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._guard.closed(self)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """See uvicorn's protocol."""
        super().on_response_complete()
        self._note()

    def hang_up(self) -> None:
        """Closes at once."""
        self.transport.abort()

    def _note(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._guard.is_served(self)
        else:
            self._guard.waits(self)
