"""A hub that is lied to: what is forged, replayed, cut short, too large, unsigned or of another federation is refused
and logged, and the hub goes on."""

import contextlib
import http.client
import random
import socket
from pathlib import Path

import pytest
from running import LocalHub, RunningHub

from model_opt.federation.identity import Identity, deployment_identity
from model_opt.federation.signing import sign
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode, seal, split
from model_opt.hub.credentials import written
from model_opt.hub.limits import HubLimits
from model_opt.hub.nonces import Nonces
from model_opt.hub.rates import Rates
from model_opt.hub.record_frames import pack, unpack, unpack_page
from model_opt.storage.testing import RESNET18, entries

PUSH = "/v1/local/records"


class Raw:
    """One member, and requests that its own client would never make."""

    def __init__(self, hub: RunningHub, identity: Identity) -> None:
        self.hub, self.identity = hub, identity

    def send(self, method: str, path: str, body: bytes = b"", headers: dict | None = None) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.hub.port, timeout=30)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it answers before all was sent
                connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def nonce(self) -> str:
        return self.send("GET", "/v1/nonce")[1]["replay-nonce"]

    def signed(self, body: bytes, path: str = PUSH, method: str = "POST", **changed: str | bytes) -> dict[str, str]:
        fields = {"target": path, "audience": self.hub.url, "nonce": changed.get("nonce") or self.nonce(), "body": body}
        return {"Authorization": written(self.identity, method=method, **(fields | changed))}  # type: ignore[arg-type]

    def record(self, federation: str = "local") -> bytes:
        stream = Stream(origin=self.identity.origin, epoch=self.identity.epoch, federation=federation)
        return sign(self.identity, stream.mint(RESNET18, entries(3)))


@pytest.fixture
def member(hub: RunningHub, tmp_path: Path) -> Raw:
    raw = Raw(hub, deployment_identity(tmp_path / "keys"))
    hub.allow(raw.identity.origin)
    return raw


def refusals(hub: RunningHub) -> list[str]:
    return [line["reason"] for line in hub.audit() if line["event"] == "refused"]


def test_requests_that_are_refused_and_logged(hub: RunningHub, member: Raw, tmp_path: Path) -> None:
    body = pack([member.record()])
    stranger = Raw(hub, deployment_identity(tmp_path / "stranger"))
    good = member.signed(body)
    value = good["Authorization"]
    forged = value[:-1] + ("0" if value[-1] != "0" else "1")
    other = value.replace(member.identity.origin, stranger.identity.origin)
    big = bytes(300 * 2**10)
    cases = [
        ("not_signed", 401, body, {}, PUSH),
        ("not_signed", 401, body, {"Authorization": "Bearer x"}, PUSH),
        ("forged", 401, body, {"Authorization": forged}, PUSH),
        ("forged", 401, body, {"Authorization": other}, PUSH),
        ("forged", 401, body, good, "/v1/elsewhere/records"),
        ("forged", 401, body + b"x", member.signed(body), PUSH),
        ("stale_nonce", 401, body, member.signed(body, nonce="0" * 64), PUSH),
        ("wrong_address", 401, body, member.signed(body, audience="http://hub.example"), PUSH),
        ("not_allowed", 403, body, stranger.signed(body), PUSH),
        ("not_allowed", 403, body, member.signed(body, "/v1/elsewhere/records"), "/v1/elsewhere/records"),
        ("no_such_federation", 404, body, member.signed(body, "/v1/nowhere/records"), "/v1/nowhere/records"),
        ("too_large", 413, big, member.signed(big), PUSH),
        ("malformed", 422, body[:-5], member.signed(body[:-5]), PUSH),
        ("malformed", 422, b"\xff" * 9, member.signed(b"\xff" * 9), PUSH),
        ("malformed", 422, pack([bytes(140 * 2**10)]), member.signed(pack([bytes(140 * 2**10)])), PUSH),
    ]
    for reason, status, sent, headers, path in cases:
        before = len(refusals(hub))
        answer, _, said = member.send("POST", path, sent, headers)
        assert (answer, reason in said.decode()) == (status, True), (reason, answer, said)
        assert refusals(hub)[before:] == [reason], (reason, status, path)
    assert member.send("POST", PUSH, body, good)[0] == 200
    assert member.send("POST", PUSH, body, good)[0] == 401 and refusals(hub)[-1] == "stale_nonce"


def test_records_that_are_refused_and_logged(hub: RunningHub, member: Raw, tmp_path: Path) -> None:
    mallory = deployment_identity(tmp_path / "mallory")
    stolen = split(member.record()).seal
    unsigned = encode(Stream(origin=member.identity.origin, epoch=member.identity.epoch).mint(RESNET18, entries(4)))
    cases = {
        "not signed": unsigned,
        "not trusted": Raw(hub, mallory).record(),
        "forged": seal(unsigned, stolen),
        "of federation 'elsewhere'": member.record("elsewhere"),
        "not a record": b"nonsense",
    }
    body = pack(cases.values())
    status, _, said = member.send("POST", PUSH, body, member.signed(body))
    assert status == 200 and b'"new":0' in said
    logged = [line["reason"] for line in hub.audit() if line["event"] == "record refused"][-len(cases) :]
    assert all(expected in reason for expected, reason in zip(cases, logged, strict=True))


def test_bodies_that_do_not_end(hub: RunningHub, member: Raw) -> None:
    """Chunks without end are cut off at the limit; a connection that is closed within the body is no harm."""
    headers = member.signed(b"x")
    connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=30)
    endless = (bytes(2**16) for _ in range(1000))
    try:
        connection.request("POST", PUSH, endless, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the hub has answered and hung up before it was listened to
    assert refusals(hub)[-1] == "too_large"
    connection.close()
    headers = member.signed(b"y" * 500)
    with socket.create_connection(("127.0.0.1", hub.port)) as link:
        signed = f"Authorization: {headers['Authorization']}"
        lines = [f"POST {PUSH} HTTP/1.1", "Host: x", "Content-Length: 500", signed]
        link.sendall("\r\n".join([*lines, "", ""]).encode() + b"y" * 100)
    for _ in range(200):
        if refusals(hub)[-1] == "cut_short":
            break
        member.send("GET", "/health")
    assert refusals(hub)[-1] == "cut_short" and member.send("GET", "/health")[0] == 200


def test_altered_requests_never_break_it(hub: RunningHub, member: Raw) -> None:
    """Raw bytes of a good request, altered anywhere: the answer is a refusal or silence, never a failure."""
    source = random.Random(0)
    record = member.record()
    for _ in range(60):
        body = bytearray(pack([record]))
        if source.random() < 0.6:
            for _ in range(source.randint(1, 6)):
                body[source.randrange(len(body))] = source.randrange(256)
        headers = member.signed(bytes(body), f"{PUSH}?a=1")
        lines = [f"POST {PUSH}?a=1 HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        raw = bytearray("\r\n".join([*lines, f"Authorization: {headers['Authorization']}", "", ""]).encode() + body)
        if source.random() < 0.5:
            raw[source.randrange(len(raw))] = source.randrange(256)
        with socket.create_connection(("127.0.0.1", hub.port), timeout=30) as link:
            link.sendall(raw)
            link.shutdown(socket.SHUT_WR)
            answer = link.recv(100)
        assert not answer.startswith(b"HTTP/1.1 500"), bytes(raw)
    assert b"Traceback" not in hub.output() and member.send("GET", "/health")[0] == 200


def test_who_asks_too_often_waits(tmp_path: Path) -> None:
    running = RunningHub(tmp_path / "hub", ("--rate", "0.2")).start()
    try:
        raw = Raw(running, deployment_identity(tmp_path / "keys"))
        running.allow(raw.identity.origin)
        path = "/v1/local/status"
        answers = [raw.send("GET", path, headers=raw.signed(b"", path, "GET")) for _ in range(4)]
        assert [answer[0] for answer in answers] == [200, 200, 429, 429] and int(answers[-1][1]["retry-after"]) >= 1
    finally:
        running.kill()


def test_strangers_have_a_rate_of_their_own(tmp_path: Path) -> None:
    now, limits = [0.0], HubLimits()
    running = LocalHub(tmp_path / "hub", clock=lambda: now[0])
    burst = int(limits.strangers_per_s * limits.burst_s)
    try:
        with running.http() as http:
            assert [http.get("/v1/nonce").status_code for _ in range(burst + 1)] == [200] * burst + [429]
            now[0] += 1 / limits.strangers_per_s
            assert [http.get("/v1/nonce").status_code for _ in range(2)] == [200, 429]
    finally:
        running.close()


def test_nonces_are_good_once_and_not_for_long() -> None:
    now = [100.0]
    nonces, others = Nonces(10.0, lambda: now[0]), Nonces(10.0, lambda: now[0])
    first, second = nonces.issue(), nonces.issue()
    assert nonces.fresh(first) and not others.fresh(first) and not nonces.fresh(first.upper()) and first != second
    nonces.spend(first)
    assert not nonces.fresh(first) and nonces.fresh(second)
    now[0] += 11
    assert not nonces.fresh(second) and not nonces.fresh("zz") and not nonces.fresh("")


def test_rates_refill_and_forget() -> None:
    now = [0.0]
    rates = Rates(2.0, 2.0, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert rates.wait_s("b") == 0
    now[0] += 0.5
    assert rates.wait_s("a", count=False) == 0 and rates.wait_s("a") == 0 and rates.wait_s("a") == 0.5


def test_frames_come_apart_as_they_were_put_together() -> None:
    records = [b"a", b"bc" * 1000]
    assert list(unpack(pack(records), 2000)) == records and list(unpack_page(b"", 1)) == []
