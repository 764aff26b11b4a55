"""Runs a hub: its state folder, its stores, the HTTP server, and TLS."""

import asyncio
import json
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from model_opt.atomic import write_atomically
from model_opt.errors import FolderInUse, HubError, InvalidInput, MissingDependency
from model_opt.federation.envelope import check_name
from model_opt.federation.known import InspectableStore
from model_opt.hub.app import build_app
from model_opt.hub.audit import AuditLog
from model_opt.hub.authorizer import Authorizer
from model_opt.hub.counts import HubCounts
from model_opt.hub.hosted_federation import HostedFederation
from model_opt.hub.limits import HubLimits
from model_opt.one_owner import take
from model_opt.storage.open import open_store

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """Where a hub listens and what it keeps. `state` holds allow-lists, the audit log and the hub's id.

    `store` is any URL or path of `open_store`; None is an SQLite file in `state`. It belongs to the hub alone. `url` is
    how clients know the hub, where that is not the address that it listens on (behind a proxy, or on all interfaces).
    """

    state: Path
    federations: Sequence[str] = ("local",)
    store: str | None = None
    host: str = "127.0.0.1"
    port: int = 8470
    certificate: Path | None = None
    key: Path | None = None
    url: str | None = None
    limits: HubLimits = field(default_factory=HubLimits)

    def __post_init__(self) -> None:
        if not self.federations:
            raise InvalidInput("a hub serves at least one federation")
        for name in self.federations:
            check_name("federation", name)
        if (self.certificate is None) != (self.key is None):
            raise InvalidInput("TLS needs both a certificate and its key")
        for path in (self.certificate, self.key):
            if path is not None and not path.is_file():
                raise InvalidInput(f"there is no file {path}")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The URLs that requests may be signed for; the first is the one to tell people."""
        scheme = "https" if self.certificate else "http"
        hosts = _LOOPBACK if self.host in _LOOPBACK else (self.host,)
        ordered = sorted(hosts, key=lambda host: host != self.host)
        own = [f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}" for host in ordered]
        return tuple(dict.fromkeys([*([self.url.rstrip("/")] if self.url else []), *own]))

    def folder(self, federation: str) -> Path:
        """Where a federation's allow-list is."""
        return members_folder(self.state, federation)


def members_folder(state: Path, federation: str) -> Path:
    """Where the hub with the folder `state` keeps the allow-list of a federation, as `federation.trust` writes it."""
    return state / f"members-{check_name('federation', federation)}"


def serve(settings: HubSettings) -> None:
    """Serves until SIGTERM or SIGINT. Raises `HubError` where the address or the state folder is taken."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependency("uvicorn", "hub") from error
    from model_opt.hub.connections import Connections, GuardedConnection, HandshakeLimit

    with _alone(settings.state), _keepers(settings) as federations:
        hub_id = _hub_id(settings.state)
        audit = AuditLog(settings.state / "audit.jsonl")
        authorizer = Authorizer(
            federations,
            audiences=frozenset(settings.addresses),
            limits=settings.limits,
            audit=audit,
            counts=HubCounts(),
            clock=time.monotonic,
        )
        app = build_app(authorizer, hub_id)
        connections = Connections(settings.limits, authorizer.connection_refused)
        options: dict[str, Any] = {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.key}
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=cast(Any, partial(GuardedConnection, connections)),
            ws="none",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            log_level="warning",
            h11_max_incomplete_event_size=16 * 2**10,
            timeout_graceful_shutdown=10,
            **options,
        )
        _claim(settings)
        kept = {name: hosted.records for name, hosted in federations.items()}
        audit.write("started", addresses=list(settings.addresses), records=kept)
        _announce(settings, kept)
        server = uvicorn.Server(config)

        def end(*_: object) -> None:
            server.should_exit = True

        # uvicorn raises the signal that ended it once more: by default the stores would not be closed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        with asyncio.Runner(loop_factory=partial(HandshakeLimit, settings.limits.head_s)) as runner:
            runner.run(server.serve())
        audit.write("stopped")
        audit.close()


def _announce(settings: HubSettings, kept: Mapping[str, int]) -> None:
    said = {"hub": settings.addresses[0], "records": kept, "state": str(settings.state)}
    print(json.dumps(said), file=sys.stderr, flush=True)


def _claim(settings: HubSettings) -> None:
    """Raises `HubError` where the address cannot be listened on: uvicorn would say so in a log only."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        raise HubError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}") from error


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Holds the state folder: a store has one writer."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        owned = take(state)
    except FolderInUse as error:
        raise HubError(f"another hub runs there: {error}") from error
    except OSError as error:
        raise HubError(f"the hub's folder {state} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        owned.release()


@contextmanager
def _keepers(settings: HubSettings) -> Iterator[dict[str, HostedFederation]]:
    federations: dict[str, HostedFederation] = {}
    try:
        for name in settings.federations:
            store = open_store(settings.store or settings.state / "hub.db", federation=name)
            if store.federation != name:
                raise InvalidInput(f"the store's URL names federation {store.federation!r}, the hub serves {name!r}")
            hosted = HostedFederation(cast(InspectableStore, store), settings.folder(name), settings.limits.records)
            federations[name] = hosted
            hosted.open()
        yield federations
    finally:
        for hosted in federations.values():
            hosted.close()


def _hub_id(state: Path) -> str:
    """A random name for this hub's cursors; they mean nothing at another."""
    path = state / "hub-id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(16).encode())
    found = path.read_bytes().decode(errors="replace").strip()
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise HubError(
            f"{path} is damaged: bring it back from a backup, or remove it (members then pull everything once more)"
        )
    return found
