"""A real hub in a process of its own, and deployments that use it."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from starlette.testclient import TestClient

from model_opt.federation.export_policy import coarse
from model_opt.federation.fold import fold
from model_opt.federation.identity import Identity
from model_opt.federation.known import InspectableStore
from model_opt.federation.stream import Stream
from model_opt.federation.trust import trust
from model_opt.hub.app import build_app
from model_opt.hub.audit import AuditLog
from model_opt.hub.authorizer import Authorizer
from model_opt.hub.client import HubClient
from model_opt.hub.counts import HubCounts
from model_opt.hub.hosted_federation import HostedFederation
from model_opt.hub.limits import HubLimits
from model_opt.hub.serve import members_folder
from model_opt.hub.sync import Deployment
from model_opt.storage.sqlite import SQLiteBackend
from servers.starting import _end_with_parent, free_port


@dataclass
class RunningHub:
    """`model-opt hub serve` on a loopback port; `options` are added to its command line."""

    state: Path
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    scheme: str = "http"
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> "RunningHub":
        command = [sys.executable, "-m", "model_opt.cli.main", "hub", "serve", "--state", str(self.state)]
        command += ["--port", str(self.port), *self.options]
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "output.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent
            )
        end = time.monotonic() + 240
        while b'"hub"' not in self.output() or not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(self.output().decode())
            time.sleep(0.05)
        return self

    def output(self) -> bytes:
        return (self.state / "output.txt").read_bytes()

    def _answers(self) -> bool:
        if self.scheme == "https":
            return True
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process = None
        return code

    def allow(self, *origins: str, federation: str = "local") -> None:
        for origin in origins:
            trust(origin, 1.0, folder=members_folder(self.state, federation))

    def audit(self) -> list[dict]:
        return [json.loads(line) for line in (self.state / "audit.jsonl").read_text().splitlines()]


@dataclass(frozen=True, kw_only=True)
class Side(Deployment):
    """A deployment with a folder for its keys, which asks one hub."""

    url: str = ""

    def client(self, **options) -> HubClient:
        return HubClient(self.url, self.identity, federation=self.store.federation, deadline_s=20, **options)

    def measure(self, *rows: tuple) -> Stream:
        search = Stream(origin=self.identity.origin, federation=self.store.federation)
        self.store.append(*(search.mint(signature, entries) for signature, entries in rows))
        return search

    def trusts(self, *others: Identity) -> None:
        for other in others:
            trust(other.origin, 1.0, folder=self.folder)


def knowledge(store: InspectableStore) -> dict:
    """All that a reader sees, folded: by metric, coarse signature, plan, context and origin."""
    signatures = {key: coarse(signature).key for key, signature in store.signatures().items()}
    rows = [
        replace(row, signature=signatures[row.signature], epoch=f"{row.epoch}|{row.signature}") for row in store.rows()
    ]
    found = {}
    for metric in ("log_speedup", "log_size_ratio"):
        folded = fold(rows, metric)
        found |= {(metric, *cell): m for cell, m in zip(folded.cells, folded.moments.to_list(), strict=True)}
    return found


class LocalHub:
    """A hub's application in this process, with an SQLite store in `folder`; its clients need no socket."""

    url = "http://testserver"

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.members = folder / "members"
        limits = HubLimits()
        self.hosted = HostedFederation(SQLiteBackend(folder / "hub.db"), self.members, limits.records)
        self.hosted.open()
        self.audit = AuditLog(folder / "audit.jsonl")
        authorizer = Authorizer(
            {"local": self.hosted},
            audiences=frozenset({self.url}),
            limits=limits,
            audit=self.audit,
            counts=HubCounts(),
            clock=clock,
        )
        self.app = build_app(authorizer, "0" * 32)

    def client(self, identity: Identity) -> HubClient:
        """A client of `identity`, which the hub allows."""
        trust(identity.origin, 1.0, folder=self.members)
        made = HubClient(self.url, identity)
        made._http.close()
        made._http = self.http()
        return made

    def http(self) -> TestClient:
        """Sends what is not signed, too."""
        return TestClient(self.app, base_url=self.url)

    def close(self) -> None:
        self.audit.close()
        self.hosted.close()
