"""A hypothesis state machine drives each store against the pure join of the same records."""

import os
import secrets
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from model_opt.errors import StoreConflict
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Record, Revocation
from model_opt.federation.join import Knowledge
from model_opt.federation.known import InspectableStore
from model_opt.federation.stream import Stream
from model_opt.federation.wire import encode
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, RESNET34, VIT_B, entries, must_raise, sorted_rows
from servers.starting import Server

SIGNATURES = (RESNET18, RESNET34, VIT_B)
ORIGINS = ("alpha", "beta")
SOAK = bool(os.environ.get("MODEL_OPT_SOAK"))


class StoreMachine(RuleBasedStateMachine):
    """Appends in any order and any form, repeats, contradicts, revokes, closes: the rows are the join's."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.federation = f"machine-{secrets.token_hex(6)}"
        self.store: InspectableStore = open_store(self.url, self.federation)
        self.streams = {name: Stream(origin=name, federation=self.federation) for name in ORIGINS}
        self.held_back: list[Envelope] = []
        self.told: list[Record] = []

    def tell(self, record: Record, as_bytes: bool) -> None:
        new = self.store.append(encode(record) if as_bytes else record)
        assert new == (record not in self.told)
        if new:
            self.told.append(record)

    @rule(
        origin=st.sampled_from(ORIGINS), which=st.sampled_from(SIGNATURES), size=st.integers(1, 4), late=st.booleans()
    )
    def mint(self, origin: str, which: object, size: int, late: bool) -> None:
        stream = self.streams[origin]
        envelope = stream.mint(which, entries(size, stream.sequence + 1, first=size % 2))
        if late:
            self.held_back.append(envelope)
        else:
            self.tell(envelope, as_bytes=size % 2 == 0)

    @precondition(lambda self: self.held_back)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.tell(self.held_back.pop(data.draw(st.integers(0, len(self.held_back) - 1))), as_bytes=True)

    @precondition(lambda self: self.told)
    @rule(data=st.data(), as_bytes=st.booleans())
    def repeat(self, data: st.DataObject, as_bytes: bool) -> None:
        self.tell(data.draw(st.sampled_from(self.told)), as_bytes)

    @precondition(lambda self: any(isinstance(record, Envelope) for record in self.told))
    @rule(data=st.data())
    def contradict(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from([record for record in self.told if isinstance(record, Envelope)]))
        place = {"sequence": known.sequence - 1, "previous": known.previous, "epoch": known.epoch}
        twin = Stream(origin=known.origin, federation=self.federation, **place).mint(RESNET34, entries(5))
        must_raise(StoreConflict, lambda: self.store.append(twin))

    @rule(origin=st.sampled_from(ORIGINS), first=st.integers(1, 4))
    def revoke_from(self, origin: str, first: int) -> None:
        epochs = {self.streams[origin].epoch: first}
        self.tell(
            Revocation(federation=self.federation, origin=origin, authority="r", reason="test", epochs=epochs), False
        )

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.url, self.federation)

    @invariant()
    def rows_are_those_of_the_join(self) -> None:
        known = Knowledge.of(EncodedRecord.of(record) for record in self.told)
        assert self.store.rows() == sorted_rows(known.rows().values())
        assert sorted(data for _, data in self.store.envelopes()) == sorted(map(encode, self.told))

    def teardown(self) -> None:
        self.store.close()


def drive(url: str, examples: int, steps: int) -> None:
    machine = type("Machine", (StoreMachine,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples * (50 if SOAK else 1),
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sqlite(tmp_path: Path) -> None:
    drive(f"sqlite:///{tmp_path / 'knowledge.db'}", 12, 25)


def test_json(tmp_path: Path) -> None:
    drive(str(tmp_path / "knowledge.json"), 8, 15)


@pytest.mark.server
def test_redis(redis_server: Server) -> None:
    drive(redis_server.url, 8, 20)


@pytest.mark.server
def test_mongodb(mongodb_server: Server) -> None:
    drive(mongodb_server.url, 3, 15)


@pytest.mark.server
def test_neo4j(neo4j_server: Server) -> None:
    drive(neo4j_server.url, 1, 15)
