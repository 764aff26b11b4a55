"""On its way into a store a record's head is parsed once and its body decoded once, however many look at it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from running import LocalHub

from model_opt.errors import WireError
from model_opt.exchange.intake import Intake
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Revocation
from model_opt.federation.identity import Identity, deployment_identity
from model_opt.federation.signing import sign
from model_opt.federation.stream import Stream
from model_opt.federation.trust import trust
from model_opt.federation.wire import WireLimits, encode
from model_opt.storage.copy_store import copy_store
from model_opt.storage.sqlite import SQLiteBackend
from model_opt.storage.testing import RESNET18, entries

Parsed = Callable[[Callable[[], Any]], dict[str, int]]


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """How many heads and bodies are unpacked while something is done."""
    counts: Counter[str] = Counter()
    unpackb = msgpack.unpackb

    def counting(raw: bytes, **limits: Any) -> Any:
        said = unpackb(raw, **limits)
        counts["head" if "kind" in said else "body"] += 1
        return said

    def count(action: Callable[[], Any]) -> dict[str, int]:
        counts.clear()
        action()
        return dict(counts)

    monkeypatch.setattr(msgpack, "unpackb", counting)
    return count


@pytest.fixture
def alice(tmp_path: Path) -> Identity:
    return deployment_identity(tmp_path / "alice")


def told(by: Identity, count: int) -> list[Envelope]:
    stream = Stream(origin=by.origin, epoch=by.epoch)
    return [stream.mint(RESNET18, entries(5, first=5 * number)) for number in range(count)]


def once(count: int) -> dict[str, int]:
    return {"head": count, "body": count}


def test_a_pushed_envelope(local_hub: LocalHub, alice: Identity, parsed: Parsed) -> None:
    one, two, three = (sign(alice, envelope) for envelope in told(alice, 3))
    with local_hub.client(alice) as client:
        assert parsed(lambda: client.push([one])) == once(1)
        assert parsed(lambda: client.push([two, three])) == once(2)
        assert parsed(lambda: client.push([one])) == once(1)
    assert [data for _, data in local_hub.hosted.pull(0, 2**20).records] == [one, two, three]


def test_pulled_envelopes(local_hub: LocalHub, alice: Identity, tmp_path: Path, parsed: Parsed) -> None:
    bob = deployment_identity(tmp_path / "bob")
    trust(alice.origin, 1.0, folder=tmp_path / "bob")
    with local_hub.client(alice) as client:
        client.push([sign(alice, envelope) for envelope in told(alice, 3)])
    with SQLiteBackend(tmp_path / "bob.db") as store, local_hub.client(bob) as client:
        intake = Intake(store, bob, folder=tmp_path / "bob")
        assert parsed(lambda: intake.take(data for _, data in client.pull(0).records)) == once(3)
        assert intake.outcome().rows_added == 15 == len(store.rows())


def test_envelopes_that_are_appended_or_copied(alice: Identity, tmp_path: Path, parsed: Parsed) -> None:
    one, two = told(alice, 2)
    with SQLiteBackend(tmp_path / "a.db") as store, SQLiteBackend(tmp_path / "b.db") as copied:
        assert parsed(lambda: told(alice, 1)) == {}
        assert parsed(lambda: store.append(one)) == {}
        assert parsed(lambda: store.append(encode(two))) == once(1)
        assert parsed(lambda: copy_store(store, copied)) == once(2)
        assert copied.rows() == store.rows()


def test_a_store_keeps_to_its_own_limits(tmp_path: Path, alice: Identity) -> None:
    """What was opened under wider limits is opened anew."""
    (envelope,) = told(alice, 1)
    data = encode(envelope)
    tight = replace(WireLimits(), max_rows=4)
    with SQLiteBackend(tmp_path / "a.db", limits=tight) as store:
        opened = EncodedRecord.open(data)
        assert opened.record and not opened.limits.within(tight) and tight.within(opened.limits)
        for given in (data, opened):
            with pytest.raises(WireError):
                store.append(given)
        law = EncodedRecord.of(Revocation(federation="local", origin="a", authority="a", reason="x"))
        assert store.append(law) == 1
