"""The embedded stores: several processes at once, crashes, files that cannot be read, old layouts, moving about."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model_opt.errors import InvalidInput, StoreCorrupt, StoreError, UnknownName
from model_opt.federation.envelope import Revocation
from model_opt.federation.known import rows_for, show, stats
from model_opt.federation.stream import Stream
from model_opt.fleet.journal import SqliteJournal
from model_opt.storage.copy_store import copy_store, rebuild_index
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, RESNET34, RESNET50, VIT_B, entries, expected_rows, sorted_rows

SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))
FILES = ["knowledge.db", "knowledge.json"]
WRITER = """
import sys, time
from model_opt.federation.stream import Stream
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, entries
path, origin, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
store, stream = open_store(path), Stream(origin=origin)
end = time.monotonic() + seconds
while time.monotonic() < end:
    store.append(stream.mint(RESNET18, entries(3, first=stream.sequence % 300)))
    print(stream.sequence, flush=True)
"""


def writer(path: Path, origin: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), origin, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", FILES)
def test_two_processes_lose_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    writers = [writer(path, f"origin-{number}", 60.0 if SOAK else 1.0) for number in range(2)]
    said = [one.communicate(timeout=250)[0].split() for one in writers]
    assert [one.returncode for one in writers] == [0, 0] and all(said)
    store = open_store(path)
    assert store.counts().records == sum(len(one) for one in said)
    print(f"{name}: {store.counts().records} envelopes of two writers, none lost")
    reached = {origin: at.sequence for (_, origin, _), at in store.cursors().items()}
    assert reached == {f"origin-{number}": int(lines[-1]) for number, lines in enumerate(said)}
    store.close()


@pytest.mark.parametrize("name", FILES)
def test_a_killed_writer_loses_nothing_acknowledged(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for attempt in range(20 if SOAK else 2):
        process = writer(path, f"origin-{attempt}", 60.0)
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(0.3)
        process.kill()
        said += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        whole = [int(line) for line in said if line.endswith("\n")]
        store = open_store(path)
        (at,) = [at for (_, origin, _), at in store.cursors().items() if origin == f"origin-{attempt}"]
        assert at.sequence >= whole[-1] and not at.missing
        store.close()


@pytest.mark.parametrize(
    "raw", [b"{not json", b" ", b"\x00" * 100, b"[]", b'{"format": "model_opt knowledge", "schema": 1}']
)
def test_a_file_that_cannot_be_read_is_refused_and_left_as_it_is(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kb.json"
    path.write_bytes(raw)
    store = open_store(path)
    for use in (store.rows, store.counts, lambda: store.append(Stream(origin="alpha").mint(RESNET18, entries(2)))):
        with pytest.raises(StoreCorrupt, match="move it away"):
            use()
    assert {one.name for one in tmp_path.iterdir()} <= {"kb.json", "kb.json.lock"} and path.read_bytes() == raw
    path.rename(tmp_path / "damaged.json")
    assert store.append(Stream(origin="alpha").mint(RESNET18, entries(2))) == 1


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "package.json"
    path.write_text('{"name": "something else"}')
    with pytest.raises(InvalidInput, match="some other kind"):
        open_store(path).rows()
    newer = tmp_path / "newer.json"
    newer.write_text('{"format": "model_opt knowledge", "schema": 99, "records": []}')
    with pytest.raises(StoreError, match="newer model_opt"):
        open_store(newer).rows()
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreCorrupt):
        open_store(garbage).rows()
    assert garbage.read_bytes() == b"not a database at all" * 100


def test_a_person_can_read_the_json_file(tmp_path: Path) -> None:
    path = tmp_path / "kb.json"
    open_store(path).append(Stream(origin="alpha").mint(RESNET18, entries(2, 4)))
    document = json.loads(path.read_text())
    first = document["plans"][0]
    assert first["family"] == "cnn" and "prune=" in first["plan"] and first["samples"] == 4
    assert first["metrics"]["log_speedup"]["n"] == 4 and "mean" in first["metrics"]["log_speedup"]


def test_rows_of_an_older_layout_are_derived_anew(tmp_path: Path) -> None:
    path = tmp_path / "k.db"
    envelope = Stream(origin="alpha").mint(RESNET18, entries(5))
    store = open_store(path)
    store.append(envelope)
    store.close()
    with sqlite3.connect(path) as link:
        link.execute("DELETE FROM measured")
        link.execute("UPDATE facts SET value = 0 WHERE name = 'rows'")
    link.close()
    assert open_store(path).rows() == sorted_rows(envelope.rows)
    with sqlite3.connect(path) as link:
        link.execute("UPDATE facts SET value = 99 WHERE name = 'rows'")
    link.close()
    with pytest.raises(StoreError, match="newer model_opt"):
        open_store(path).rows()


@pytest.mark.parametrize("name", FILES)
def test_old_files_are_read_for_ever(name: str, tmp_path: Path) -> None:
    old = Path(__file__).parents[1] / "data" / f"1-{name}"
    (tmp_path / name).write_bytes(old.read_bytes())
    rows = open_store(tmp_path / name).rows()
    first = Stream(origin="alpha", epoch="0" * 32).mint(RESNET18, entries(4, 2))
    second = Stream(origin="beta", epoch="1" * 32).mint(VIT_B, entries(3))
    assert rows == expected_rows("local", first, second)


def test_knowledge_moves_whole(tmp_path: Path) -> None:
    source, target = open_store(tmp_path / "a.db"), open_store(tmp_path / "b.json")
    one, two = Stream(origin="alpha"), Stream(origin="beta")
    source.append(one.mint(RESNET18, entries(3)), two.mint(VIT_B, entries(2)))
    assert copy_store(source, target, dry_run=True).new == 2 and target.rows() == []
    moved = copy_store(source, target)
    assert (moved.new, moved.known, moved.rows, moved.origins) == (2, 0, 5, ("alpha", "beta"))
    assert target.rows() == source.rows() and copy_store(source, target).known == 2
    source.append(one.mint(RESNET50, entries(1)))
    assert copy_store(source, target).new == 1 and target.rows() == source.rows()
    twin = Stream(origin="beta", epoch=two.epoch).mint(VIT_B, entries(9))
    third = open_store(tmp_path / "c.db")
    third.append(twin)
    assert len(copy_store(source, third).conflicts) == 1
    target.revoke(Revocation(federation="local", origin="alpha", authority="reader", reason="test"))
    assert copy_store(source, target).known == 3 and len(target.rows()) == 2
    with pytest.raises(InvalidInput):
        rebuild_index(source)


def test_what_is_known_of_a_model(tmp_path: Path) -> None:
    store = open_store(tmp_path / "k.db")
    stream = Stream(origin="alpha")
    store.append(*(stream.mint(one, entries(2, 3)) for one in (RESNET18, RESNET50, VIT_B)))
    found = rows_for(store, RESNET34, k=2)
    assert {one.signature.key for one in found} == {RESNET18.key, RESNET50.key} and len(found[0].rows) == 2
    exact = rows_for(store, RESNET18, k=1)
    assert exact[0].similarity == 1.0 and exact[0].signature == RESNET18 and len(exact) == 2
    store.revoke(Revocation(federation="local", origin="alpha", authority="r", reason="x", epochs={stream.epoch: 2}))
    told = stats(store)
    assert told.samples == {"log_size_ratio": 2, "log_speedup": 6} and told.counts.rows == 2
    (model,) = show(store)
    assert (model.plans, model.origins, model.metrics["log_speedup"]) == (2, ("alpha",), 6)


def test_addresses(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"mongodb.*neo4j.*redis.*sqlite"):
        open_store("postgres://localhost/x")
    with pytest.raises(InvalidInput, match="ends in"):
        open_store("knowledge")
    with pytest.raises(InvalidInput, match="three slashes"):
        open_store("sqlite://knowledge.db")
    for wrong in (
        "redis://:pa/ss@host/0",
        "neo4j://u:pa:ss@host:x",
        "mongodb://",
        "neo4j://",
        "sqlite:///k.db?chroma=",
    ):
        with pytest.raises(InvalidInput) as raised:
            open_store(wrong)
        assert "pa" not in str(raised.value).replace("password", "")
    with pytest.raises(InvalidInput, match="nonsense"):
        open_store("redis://127.0.0.1:1/0?nonsense=1").counts()
    for wrong in ("mongodb://user:pa@ss@127.0.0.1:1/x", "mongodb://127.0.0.1:port/x"):
        with pytest.raises(InvalidInput, match="cannot read the address") as raised:
            open_store(wrong).counts()
        assert "pa@ss" not in str(raised.value)
    store = open_store(f"sqlite:///{tmp_path / 'k.db'}?federation=team")
    assert store.federation == "team" and open_store(store) is store


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE rows(id INTEGER PRIMARY KEY, measurement TEXT)")
        db.execute("INSERT INTO rows(measurement) VALUES ('precious')")
    db.close()


def _knowledge(path: Path) -> None:
    with open_store(path) as store:
        store.append(Stream(origin="alpha").mint(RESNET18, entries(2)))


def _search(path: Path) -> None:
    SqliteJournal(path).close()


@pytest.mark.parametrize("read", [lambda path: open_store(path).counts(), SqliteJournal], ids=["store", "journal"])
@pytest.mark.parametrize("write", [_foreign, _knowledge, _search])
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of before"])
def test_a_sqlite_file_of_another_kind_is_left_alone(tmp_path, read, write, marked) -> None:
    path = tmp_path / "file.db"
    write(path)
    if not marked:  # as files were before kinds were written into them
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA application_id = 0")
        db.close()
    own = {_knowledge: "store", _search: "journal"}.get(write)
    before = path.read_bytes()
    if own == ("journal" if read is SqliteJournal else "store"):
        read(path)
        return
    with pytest.raises(StoreError, match="left alone"):
        read(path)
    assert path.read_bytes() == before and {one.name for one in tmp_path.iterdir()} == {"file.db"}


def test_importing_loads_nothing_heavy() -> None:
    heavy = "torch ray neo4j chromadb redis pymongo"
    code = f"import sys, model_opt.core.storage; print([n for n in '{heavy}'.split() if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "[]"
