"""A hub as deployments use it: two of them end with the same knowledge, whatever their stores and whatever is lost."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running import RunningHub, Side, knowledge

from model_opt.errors import HubError, HubRefused, HubUnreachable, InvalidInput
from model_opt.exchange.outgoing import Outgoing
from model_opt.exchange.shared import withdraw
from model_opt.federation.envelope import Revocation
from model_opt.federation.identity import Identity, deployment_identity, rotate
from model_opt.federation.signing import sign
from model_opt.federation.stream import Stream
from model_opt.federation.trust import peers
from model_opt.federation.wire import read_head
from model_opt.hub.client import HubClient
from model_opt.hub.limits import HubLimits
from model_opt.hub.serve import members_folder
from model_opt.hub.sync import pull, push, sync
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, RESNET34, VIT_B, entries

MakeSide = Callable[..., Side]


def exchange(*sides: Side) -> None:
    for one in sides:
        with one.client() as client:
            push(one, client)
    for one in sides:
        with one.client() as client:
            pull(one, client, one.url)


def meet(a: Side, b: Side) -> None:
    """Both measure, twice; both end with the same knowledge, and nothing of it is counted twice."""
    a.trusts(b.identity)
    b.trusts(a.identity)
    search = a.measure((RESNET18, entries(12, 3)), (VIT_B, entries(5)))
    b.measure((RESNET18, entries(8, 2, first=6)), (RESNET34, entries(4)))
    exchange(a, b)
    assert knowledge(a.store) == knowledge(b.store) and len(knowledge(a.store)) == 2 * 29
    a.store.append(search.mint(RESNET18, entries(20, 4)))
    exchange(a, b, a)
    assert knowledge(a.store) == knowledge(b.store) and len(knowledge(a.store)) == 2 * 37
    with a.client() as client:
        assert push(a, client).sent == 0 and pull(a, client, a.url).new == 0


def test_two_deployments_end_with_equal_knowledge(side: MakeSide, tmp_path: Path) -> None:
    meet(side("a"), side("b", str(tmp_path / "b.json")))


@pytest.mark.server
def test_neo4j_and_chroma_meet_sqlite(side: MakeSide, neo4j_server, chroma_server) -> None:
    a = side("a", f"{neo4j_server.url}?chroma={chroma_server.url}", federation="elsewhere")
    b = side("b", federation="elsewhere")
    meet(a, b)
    near = [(signature.key, round(alike, 5)) for signature, alike in a.store.nearest(RESNET18, 2)]
    assert near[0] == (RESNET18.key, 1.0) and len(near) == 2


def test_a_skipped_bundle_is_noticed_and_asked_for(side: MakeSide) -> None:
    a, b = side("a"), side("b")
    b.trusts(a.identity)
    told = Stream(origin=a.identity.origin, epoch=a.identity.epoch)
    first, second, third = (sign(a.identity, told.mint(RESNET18, entries(4, first=4 * i))) for i in range(3))
    with a.client() as client:
        answer = client.push([first, third])
        assert answer.new == 2 and answer.missing == {f"{a.identity.origin}/{a.identity.epoch}": 1}
    with b.client() as client:
        (gap,) = pull(b, client, b.url).gaps
        assert (gap.origin, gap.known) == (a.identity.origin, 1)
    with a.client() as client:
        assert client.push([second]).missing == {}
    with b.client() as client:
        assert pull(b, client, b.url).gaps == () and len(b.store.rows()) == 12
    late = side("late")
    with late.client() as client:
        refused = pull(late, client, late.url)
        assert refused.new == 0 and "not trusted" in " ".join(refused.refused)
        late.trusts(a.identity)
        assert pull(late, client, late.url).new == 3


def test_a_hub_that_lost_its_store_is_told_again(tmp_path: Path) -> None:
    running = RunningHub(tmp_path / "hub").start()
    identity = deployment_identity(tmp_path / "keys")
    a = Side(store=open_store(tmp_path / "a.db"), identity=identity, folder=tmp_path / "keys", url=running.url)
    try:
        running.allow(identity.origin)
        a.measure((RESNET18, entries(5)))
        with a.client() as client:
            assert push(a, client).new == 1 and push(a, client).sent == 0
        assert running.stop() == 0
        for path in [*running.state.glob("hub.db*"), running.state / "hub-id"]:
            path.unlink()
        running.start()
        with a.client() as client:
            assert push(a, client).new == 1 and pull(a, client, a.url).own == 1
        with pytest.raises(RuntimeError, match="another hub runs"):
            RunningHub(running.state).start()
    finally:
        running.kill()
        a.store.close()


def test_withdrawals_and_stolen_keys(hub: RunningHub, side: MakeSide) -> None:
    a, b = side("a"), side("b")
    b.trusts(a.identity)
    a.measure((RESNET18, entries(5)))
    exchange(a, b)
    assert len(b.store.rows()) == 5
    withdraw(a.store, a.identity.origin, reason="stolen", epochs={a.identity.epoch: 1}, folder=a.folder)
    with a.client() as client:
        assert push(a, client).new == 1
    with b.client() as client:
        assert pull(b, client, b.url).withdrawals and b.store.rows() == []
    with a.client() as client, pytest.raises(HubRefused, match="withdrawn"):
        client.status()
    renewed = replace(a, identity=rotate(a.folder))
    with renewed.client() as client:
        assert client.status().records
    foreign = sign(b.identity, _revocation(b.identity, a.identity.origin))
    with b.client() as client:
        assert "cannot withdraw" in next(iter(client.push([foreign]).refused))
    assert any(line["event"] == "record refused" and "withdraw" in line["reason"] for line in hub.audit())


def test_a_withdrawal_is_asked_for_where_it_is_missing(side: MakeSide, tmp_path: Path) -> None:
    """By a store that is begun anew, and by who trusts an origin only after its withdrawal was pulled."""
    a, early, late = side("a"), side("early"), side("late")
    early.trusts(a.identity)
    a.measure((RESNET18, entries(5)))
    exchange(a)
    signed = sign(a.identity, _revocation(a.identity, a.identity.origin, {a.identity.epoch: 1}))
    Outgoing(a.identity, "local", a.folder).keep(signed)
    a.store.append(signed)
    renewed = replace(a, identity=rotate(a.folder))
    exchange(renewed, early, late)
    right = knowledge(early.store)
    assert len(right) == 2 * 5 and knowledge(late.store) == {}
    early.store.close()
    for path in tmp_path.glob("early.db*"):
        path.unlink()
    anew = replace(early, store=open_store(tmp_path / "early.db"))
    late.trusts(a.identity)
    exchange(anew, late)
    assert knowledge(anew.store) == knowledge(late.store) == right
    anew.store.close()


def test_a_clone_is_told_before_it_tells_another_story(side: MakeSide, tmp_path: Path) -> None:
    a, reader = side("a"), side("reader")
    reader.trusts(a.identity)
    a.measure((RESNET18, entries(5)))
    exchange(a)
    shutil.copytree(a.folder, tmp_path / "keys-clone")
    clone = replace(a, folder=tmp_path / "keys-clone", store=open_store(tmp_path / "clone.db"))
    a.measure((RESNET34, entries(4)))
    exchange(a)
    clone.measure((VIT_B, entries(3)))
    with clone.client() as client, pytest.raises(HubError, match="identity rotate"):
        push(clone, client)
    exchange(replace(clone, identity=rotate(clone.folder)))
    a.measure((RESNET34, entries(2, first=9)))
    exchange(a, reader)
    assert len(reader.store.rows()) == 5 + 4 + 3 + 2
    clone.store.close()


def _revocation(by: Identity, origin: str, epochs: Mapping[str, int] | None = None) -> Revocation:
    return Revocation(federation="local", origin=origin, authority=by.origin, reason="spite", epochs=dict(epochs or {}))


def test_two_stories_put_an_origin_in_quarantine(hub: RunningHub, side: MakeSide) -> None:
    a = side("a")
    one, two = (
        sign(a.identity, Stream(origin=a.identity.origin, epoch=a.identity.epoch).mint(RESNET18, entries(3, first=i)))
        for i in (0, 9)
    )
    with a.client() as client:
        assert client.push([one]).new == 1 and client.push([one]).known == 1
        assert "contradicts" in next(iter(client.push([two]).refused))
        with pytest.raises(HubRefused, match="allow-list"):
            client.status()
    assert "quarantined" in peers(members_folder(hub.state, "local"))[a.identity.origin].note
    assert any(line["event"] == "quarantined" and line["quarantined"] == a.identity.origin for line in hub.audit())


def test_what_goes_wrong_is_said_plainly(hub: RunningHub, side: MakeSide) -> None:
    stranger = side("stranger", allowed=False)
    with stranger.client() as client, pytest.raises(HubRefused, match="not on the allow-list"):
        client.status()
    nobody = "http://127.0.0.1:1"
    with HubClient(nobody, stranger.identity, deadline_s=0.5) as client, pytest.raises(HubUnreachable, match="reached"):
        client.status()
    with pytest.raises(InvalidInput, match="no hub's address"):
        HubClient("hub.example", stranger.identity)
    lost = HubClient(hub.url, stranger.identity, federation="nowhere")
    with lost as client, pytest.raises(HubRefused, match="no federation"):
        client.status()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise KeyboardInterrupt

    with HubClient(nobody, stranger.identity, deadline_s=0.2) as client, pytest.raises(KeyboardInterrupt):
        sync(stranger, client, nobody, every_s=5, tell=lambda *_: None, sleep=sleep)
    assert waited == [5, 5]


def test_it_tells_about_itself(hub: RunningHub, side: MakeSide) -> None:
    a = side("a")
    a.measure((RESNET18, entries(4)))
    exchange(a)

    def get(path: str) -> str:
        return urllib.request.urlopen(f"{hub.url}{path}", timeout=10).read().decode()

    assert json.loads(get("/health"))["status"] == "ok"
    counted = get("/metrics")
    for name in ("requests_total", "records_total", "kept_records", "refused_total", "request_seconds_bucket"):
        assert f"model_opt_hub_{name}" in counted
    document = json.loads(get("/openapi.json"))
    assert document["openapi"].startswith("3.")
    asked = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert {("/v1/{federation}/records", "post"), ("/v1/{federation}/records", "get")} <= asked
    for path, method in asked:
        assert {"200"} <= document["paths"][path][method]["responses"].keys()
    for code in ("401", "403", "404", "413", "422", "429", "503"):
        assert code in document["paths"]["/v1/{federation}/records"]["post"]["responses"]
    assert "ModelOpt" in document["components"]["securitySchemes"]


def test_the_commands_by_hand(hub: RunningHub, tmp_path: Path) -> None:
    def run(who: str, *words: str) -> subprocess.CompletedProcess[str]:
        home = os.environ | {"XDG_DATA_HOME": str(tmp_path / who), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "model_opt.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, env=home, timeout=240)

    def ask(who: str, *words: str) -> dict:
        done = run(who, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    names = {who: ask(who, "identity", "create")["origin"] for who in ("a", "b")}
    refused = run("a", "hub", "push", hub.url)
    assert refused.returncode == 2 and "hub allow" in refused.stderr and len(refused.stderr.splitlines()) == 1
    for name in names.values():
        ask("a", "hub", "allow", name, "--state", str(hub.state))
    ask("b", "identity", "trust", names["a"])
    with open_store(tmp_path / "a" / "model_opt" / "knowledge.db") as store:
        store.append(Stream(origin=names["a"]).mint(RESNET18, entries(6)))
    assert ask("a", "hub", "push", hub.url)["new"] == 1
    assert ask("b", "hub", "sync", hub.url)["pulled"]["rows_added"] == 6
    assert names["a"] in run("b", "knowledge", "stats").stdout
    assert ask("a", "hub", "members", "--state", str(hub.state)).keys() >= set(names.values())


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
    builder = (
        builder.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    (folder / "hub.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "hub.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return folder / "hub.pem", folder / "hub.key"


def test_who_is_silent_before_the_tls_handshake_is_closed_like_who_is_silent_after_it(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    running = RunningHub(tmp_path / "hub", ("--tls-cert", str(pem), "--tls-key", str(key)), scheme="https").start()
    try:
        silent = socket.create_connection(("127.0.0.1", running.port), timeout=HubLimits().head_s + 20)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        assert time.monotonic() - began > HubLimits().head_s / 2
        silent.close()
        assert running.stop() == 0
    finally:
        running.kill()


def test_tls_and_a_kill_under_load(tmp_path: Path) -> None:
    """Everything that was acknowledged before SIGKILL is there afterwards, over TLS."""
    pem, key = certificate(tmp_path)
    options = ("--tls-cert", str(pem), "--tls-key", str(key), "--rate", "1000")
    running = RunningHub(tmp_path / "hub", options, scheme="https").start()
    os.environ["NO_PROXY"] = "127.0.0.1"
    acknowledged: list[str] = []
    senders = [deployment_identity(tmp_path / f"keys-{number}") for number in range(3)]
    running.allow(*(sender.origin for sender in senders))

    def send(identity: Identity) -> None:
        stream = Stream(origin=identity.origin, epoch=identity.epoch)
        with HubClient(running.url, identity, authority=pem, deadline_s=0.5) as client:
            try:
                for number in range(2000):
                    data = sign(identity, stream.mint(RESNET18, entries(20, first=number)))
                    client.push([data])
                    acknowledged.append(read_head(data).digest)
            except HubError:
                return

    try:
        with HubClient(running.url, senders[0], deadline_s=0.5) as client, pytest.raises(HubUnreachable, match="CERT"):
            client.status()
        threads = [threading.Thread(target=send, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 30 and any(thread.is_alive() for thread in threads):
            threads[0].join(0.02)
        running.kill()
        for thread in threads:
            thread.join()
        running.start()
        with HubClient(running.url, senders[0], authority=pem) as client:
            kept, cursor, more = set(), 0, True
            while more:
                page = client.pull(cursor)
                kept |= {read_head(data).digest for _, data in page.records}
                cursor, more = page.cursor, page.more
            status = client.status()
        assert len(acknowledged) >= 30 and set(acknowledged) <= kept
        assert len(kept) <= len(acknowledged) + len(senders) and status.records == len(kept)
    finally:
        running.kill()
