"""Servers that die in the middle of a write storm, servers that are not there, and passwords that stay hidden."""

import logging
import os
import secrets
import threading
import time
from pathlib import Path

import pytest

from model_opt.core.storage import MongoDBBackend, Neo4jBackend, RedisBackend
from model_opt.errors import StoreCorrupt, StoreError, StoreUnavailable
from model_opt.federation.envelope import Envelope
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode
from model_opt.storage.base import BaseStore
from model_opt.storage.indexed import IndexedStore
from model_opt.storage.open import open_store
from model_opt.storage.retry import Retry
from model_opt.storage.testing import RESNET18, RESNET34, VIT_B, entries, expected_rows
from servers.starting import Server

SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))
STORMS = 5 if SOAK else 1
STORM_S = 10.0 if SOAK else 1.0


def storm(server: Server, rows: int) -> None:
    """Writes without pause while the server is killed and started again; the writer knows what was acknowledged."""
    federation = f"storm-{secrets.token_hex(6)}"
    store = open_store(server.url, federation)
    assert isinstance(store, BaseStore)
    store._retry = Retry(deadline_s=0.5)
    stream = Stream(origin="alpha", federation=federation)
    minted: list[Envelope] = []
    acknowledged: list[Envelope] = []
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            minted.append(
                stream.mint(RESNET18, entries(rows, stream.sequence % 3 + 1, first=stream.sequence * rows // 2))
            )
            try:
                store.append(minted[-1])
            except StoreError:
                time.sleep(0.2)
            else:
                acknowledged.append(minted[-1])

    store.counts()
    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(STORMS):
        time.sleep(STORM_S)
        server.kill()
        time.sleep(0.3)
        server.start()
    time.sleep(STORM_S)
    ended.set()
    writer.join()
    store.close()
    assert acknowledged
    later = open_store(server.url, federation)
    there = [data for _, data in later.envelopes()]
    assert len(there) == len(set(there)) and {encode(envelope) for envelope in acknowledged} <= set(there)
    print(f"{server.name}: {STORMS} kills, {len(minted)} envelopes minted, {len(acknowledged)} acknowledged, none lost")
    later.append(*minted)
    assert sorted(data for _, data in later.envelopes()) == sorted(map(encode, minted))
    assert later.rows() == expected_rows(federation, *minted)
    later.close()


@pytest.mark.server
@pytest.mark.parametrize(("name", "rows"), [("redis", 200), ("mongodb", 20), ("neo4j", 10)])
def test_a_killed_server_loses_nothing_acknowledged(name: str, rows: int, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(f"{name}_server")
    if not server.ours:
        pytest.skip("a server that was not started here is not killed")
    storm(server, rows)


@pytest.mark.server
def test_a_redis_that_does_not_keep_what_it_acknowledged_is_refused_or_told(redis_server: Server) -> None:
    import redis

    if not redis_server.ours:
        pytest.skip("a server that was not started here is not set up anew")
    client = redis.Redis.from_url(redis_server.url)
    federation = f"kept-{secrets.token_hex(6)}"
    with open_store(redis_server.url, federation) as store:
        store.append(Stream(origin="alpha", federation=federation).mint(RESNET18, entries(3)))
    try:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreError, match="noeviction"):
            open_store(redis_server.url, federation).rows()
        client.config_set("maxmemory-policy", "volatile-lru")  # ours never expire
        assert len(open_store(redis_server.url, federation).rows()) == 3
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
        with pytest.warns(UserWarning, match="appendonly yes"):
            open_store(redis_server.url, federation).rows()
    finally:
        client.config_set("appendonly", "yes")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")
    client.delete(f"{{model_opt:{federation}}}:records")
    with pytest.raises(StoreCorrupt, match="0 records and knows of 1"):
        open_store(redis_server.url, federation).rows()


@pytest.mark.server
def test_a_mongodb_whose_index_lets_documents_expire_is_refused(mongodb_server: Server) -> None:
    import pymongo

    federation = f"kept-{secrets.token_hex(6)}"
    with open_store(mongodb_server.url, federation) as store:
        store.append(Stream(origin="alpha", federation=federation).mint(RESNET18, entries(3)))
    with pymongo.MongoClient(mongodb_server.url) as client:
        records = client.get_default_database().records
        name = records.create_index([("at", 1)], expireAfterSeconds=60)
        if "expireAfterSeconds" not in records.index_information().get(name, {}):
            records.drop_index(name)
            pytest.skip("this server does not know indexes that expire")
        try:
            with pytest.raises(StoreError, match="expire"):
                open_store(mongodb_server.url, federation).rows()
        finally:
            records.drop_index(name)
    assert len(open_store(mongodb_server.url, federation).rows()) == 3


@pytest.mark.server
def test_an_index_that_dies_is_done_without_and_catches_up(chroma_server: Server, tmp_path: Path) -> None:
    if not chroma_server.ours:
        pytest.skip("a server that was not started here is not killed")
    federation = f"index-{secrets.token_hex(6)}"
    store = open_store(f"sqlite:///{tmp_path / 'k.db'}?chroma={chroma_server.url}", federation)
    assert isinstance(store, IndexedStore)
    stream = Stream(origin="alpha", federation=federation)
    store.append(stream.mint(RESNET18, entries(1)))
    chroma_server.kill()
    store.append(stream.mint(VIT_B, entries(1)))
    assert [signature for signature, _ in store.nearest(RESNET34)] == [RESNET18, VIT_B]
    chroma_server.start()
    assert [signature for signature, _ in store.nearest(RESNET34)] == [RESNET18, VIT_B]
    assert store.index.keys() == {RESNET18.key, VIT_B.key}
    store.index.remove([VIT_B.key])
    store.index.add([RESNET34])
    store.close()
    assert [signature for signature, _ in store.nearest(VIT_B, 1)] == [VIT_B]
    assert store.rebuild_index() == 2 and store.index.keys() == {RESNET18.key, VIT_B.key}
    store.close()


SECRET = "hunter2-never-shown"
HIDDEN = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"mongodb://someone:{SECRET}@127.0.0.1:1/db?serverSelectionTimeoutMS=100",
    f"bolt://neo4j:{SECRET}@127.0.0.1:1/neo4j",
]


@pytest.mark.parametrize("url", HIDDEN)
def test_passwords_are_never_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="model_opt")
    store = open_store(url)
    assert isinstance(store, BaseStore)
    store._retry = Retry(deadline_s=0.2)
    with pytest.raises(StoreUnavailable) as raised:
        store.counts()
    assert "127.0.0.1" in str(raised.value)
    assert SECRET not in f"{store!r} {store} {raised.value} {raised.value!r} {caplog.text}"
    store.close()


def test_constructing_connects_to_nothing() -> None:
    MongoDBBackend(connection_string="mongodb://localhost:27017")
    RedisBackend(host="localhost", port=6379)
    Neo4jBackend("neo4j://localhost:7687", user="neo4j", password=SECRET)


@pytest.mark.server
def test_a_wrong_password_is_said_at_once(redis_server: Server, neo4j_server: Server) -> None:
    for server in (redis_server, neo4j_server):
        wrong = server.url.replace("loopback-only", SECRET)
        if wrong == server.url:
            pytest.skip("the given server has a password of its own")
        with pytest.raises(StoreError, match="refuses the user name or password") as raised:
            open_store(wrong).counts()
        assert not isinstance(raised.value, StoreUnavailable) and SECRET not in str(raised.value)


def test_trying_again_keeps_to_its_deadline() -> None:
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    retry = Retry(deadline_s=5.0, clock=lambda: now[0], sleep=sleep)
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise StoreUnavailable("down")

    with pytest.raises(StoreUnavailable):
        retry.call(fail)
    assert now[0] < 5.0 and len(attempts) == len(waits) + 1 > 3
    assert all(wait <= min(2.0, 0.05 * 2**number) for number, wait in enumerate(waits))
    assert retry.call(lambda: 7) == 7
