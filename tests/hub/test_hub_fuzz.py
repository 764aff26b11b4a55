"""A hub against hostile requests: no failure, no hang, and no more memory than four times its limits.

`make soak` tries a hundred thousand requests with a million records; python -m pytest -s tests/hub/test_hub_fuzz.py
prints the figures. The application is called as its server calls it, so that no time goes into sockets.
"""

import asyncio
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hostile import fitting, framed, mutated
from model_opt.federation.identity import Identity, deployment_identity
from model_opt.federation.signing import _RECORD, _mark
from model_opt.federation.stream import Stream
from model_opt.federation.trust import trust
from model_opt.federation.wire import encode, split
from model_opt.hub.app import build_app
from model_opt.hub.audit import AuditLog
from model_opt.hub.authorizer import Authorizer
from model_opt.hub.counts import HubCounts
from model_opt.hub.credentials import written
from model_opt.hub.hosted_federation import HostedFederation
from model_opt.hub.limits import HubLimits
from model_opt.hub.record_frames import pack
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, entries

SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))
REQUESTS, RECORDS = (100_000, 10) if SOAK else (200, 10)
EACH = 20
"""Requests of one member: one that is caught lying is not listened to any more."""
LIMITS = HubLimits(max_body_bytes=2**20, max_record_bytes=2**17, requests_per_s=1e9, strangers_per_s=1e9)
URL, PUSH = "http://127.0.0.1:1", "/v1/local/records"
TARGETS = (
    PUSH,
    "/v1/local/status",
    f"{PUSH}?after=3",
    "/v1/local/streams/a/b",
    "/v1/local/revocations",
    "/v1/nonce",
    "/metrics",
    "/health",
)


@dataclass
class Hub:
    """A hub's application and what stands behind it."""

    authorizer: Authorizer
    app: Callable[..., Awaitable[None]]
    members: Path

    async def ask(self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes) -> int:
        """The status of the answer; the body comes in two parts."""
        path, _, query = target.partition("?")
        half = len(body) // 2
        parts = [(body[:half], True), (body[half:], False)]
        received = ({"type": "http.request", "body": part, "more_body": more} for part, more in parts)
        answers: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return next(received, {"type": "http.disconnect"})

        async def send(message: dict[str, Any]) -> None:
            answers.append(message)

        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
        scope |= {"path": path, "raw_path": path.encode("latin-1"), "query_string": query.encode("latin-1")}
        scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1), "root_path": ""}
        await self.app(scope, receive, send)
        return next(answer["status"] for answer in answers if answer["type"] == "http.response.start")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    members = tmp_path / "members"
    hosted = HostedFederation(open_store(tmp_path / "hub.db"), members, LIMITS.records)  # type: ignore[arg-type]
    hosted.open()
    audit = AuditLog(tmp_path / "audit.jsonl")
    authorizer = Authorizer(
        {"local": hosted},
        audiences=frozenset({URL}),
        limits=LIMITS,
        audit=audit,
        counts=HubCounts(),
        clock=time.monotonic,
    )
    yield Hub(authorizer=authorizer, app=build_app(authorizer, "fuzzed"), members=members)
    audit.close()
    hosted.close()


class Attacker:
    """A member of the hub that lies: its signatures are good, what it signs is not."""

    def __init__(self, hub: Hub, folder: Path, source: random.Random) -> None:
        self.hub, self.source = hub, source
        self.identity: Identity = deployment_identity(folder)
        self.stream = Stream(origin=self.identity.origin, epoch=self.identity.epoch)
        shutil.rmtree(hub.members, ignore_errors=True)
        trust(self.identity.origin, 1.0, folder=hub.members)

    def record(self) -> bytes:
        """An envelope of its stream; one in five is as it should be, the others are altered, then signed."""
        good = split(encode(self.stream.mint(RESNET18, entries(self.source.randint(1, 4)))))
        head, meta, columns = good.head, bytes(good.meta), bytes(good.columns)
        kind = self.source.randrange(5)
        if kind == 1:
            meta = mutated(meta, self.source)
        elif kind == 2:
            columns = mutated(columns, self.source)
        elif kind == 3:
            head = mutated(head, self.source)
        if kind in (1, 2):
            head = fitting(head, meta, columns)
        signed = framed("model_opt", head, meta, columns, _mark(self.identity, _RECORD + head))
        return mutated(signed, self.source) if kind == 4 else signed

    def body(self) -> bytes:
        packed = pack([self.record() for _ in range(RECORDS)])
        return mutated(packed, self.source) if self.source.random() < 0.1 else packed

    async def ask(self) -> int:
        """One request: most push, some ask for what is not there, some are forged in their header or line."""
        source = self.source
        push = source.random() < 0.9
        target = PUSH if push else source.choice(TARGETS)
        body, method = (self.body(), "POST") if push else (b"", source.choice(["GET", "POST", "PUT", "HEAD"]))
        fields = {"target": target, "audience": URL, "nonce": self.hub.authorizer.nonces.issue(), "body": body}
        header = written(self.identity, method=method, **fields).encode()  # type: ignore[arg-type]
        if source.random() < 0.1:
            header = mutated(header, source)
        if source.random() < 0.05:
            target = mutated(target.encode(), source).decode("latin-1")
        headers = [(b"authorization", header), (b"content-length", str(len(body)).encode())]
        if source.random() < 0.05:
            headers[1] = (b"content-length", mutated(headers[1][1], source))
        return await self.hub.ask(method, target, headers, body)


def test_a_query_that_is_no_text_is_answered(hub: Hub) -> None:
    assert asyncio.run(hub.ask("GET", "/health?\xc6(", [], b"")) == 200
    assert asyncio.run(hub.ask("GET", f"{PUSH}?after=\xc6(", [], b"")) == 422


def test_hostile_requests_are_answered(hub: Hub, tmp_path: Path) -> None:
    source = random.Random(0)
    answers: Counter[int] = Counter()
    slowest = 0.0

    async def attack() -> None:
        nonlocal slowest
        for number in range(0, REQUESTS, EACH):
            attacker = Attacker(hub, tmp_path / "keys" / str(number), source)
            for _ in range(EACH):
                began = time.perf_counter()
                answers[await attacker.ask()] += 1
                slowest = max(slowest, time.perf_counter() - began)

    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    asyncio.run(attack())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    kept = hub.authorizer.federations["local"].records
    print(
        f"\n{REQUESTS:,} requests with {REQUESTS * RECORDS:,} records in {time.perf_counter() - began:.0f} s: answers "
        f"{dict(sorted(answers.items()))}, {kept:,} records kept, slowest {slowest:.2f} s, memory grew by "
        f"{grown:.0f} MiB"
    )
    assert not answers.keys() - {200, 401, 403, 404, 405, 413, 422} and answers[200] and answers[401] and answers[422]
    assert kept > 0 and slowest < 30
    assert grown <= (4 * LIMITS.bodies * LIMITS.max_body_bytes + 4096 * kept) / 2**20
