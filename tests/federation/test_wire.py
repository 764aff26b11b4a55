"""Bytes: round trips, sizes, what is refused, and old bytes that are replayed for ever."""

from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_opt.errors import WireError
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, Record, Revocation
from model_opt.federation.moments import Moments
from model_opt.federation.stream import Stream
from model_opt.federation.wire import WireLimits, decode, decode_record, encode, read_head
from model_opt.search.plan import Choice, Plan
from model_opt.storage.testing import CONTEXT, OTHER_CONTEXT, RESNET18, VIT_B, entries

DATA = Path(__file__).parents[1] / "data"
EPOCH = "0123456789abcdef0123456789abcdef"
GOLDEN = {
    1: ("envelope-1", "envelope-2", "revocation-1"),
    2: ("envelope-3", "envelope-4", "revocation-2"),
}
"""Files by the schema of what they hold."""


def golden_records(schema: int = 1) -> dict[str, Record]:
    """What the golden files of a schema hold. Never change it: add another file instead."""
    stream = Stream(origin="alpha", epoch=EPOCH)
    rows = [*entries(5, 3), *entries(2, context=OTHER_CONTEXT), (Plan(), CONTEXT, {"latency_ms": Moments.of([1.5])})]
    first = replace(stream.mint(RESNET18, rows), schema=schema)
    stream.previous = read_head(encode(first)).digest
    second = replace(stream.mint(VIT_B, entries(3)), schema=schema)
    revocation = Revocation(
        federation="local",
        origin="alpha",
        authority="alpha",
        reason="a broken clock",
        epochs={EPOCH: 2},
        schema=schema,
    )
    names = GOLDEN[schema]
    return dict(zip(names, (first, second, revocation), strict=True))


@pytest.mark.parametrize(("schema", "name"), [(schema, name) for schema, names in GOLDEN.items() for name in names])
def test_old_bytes_are_read_and_written_alike(schema: int, name: str) -> None:
    record, data = golden_records(schema)[name], (DATA / f"{name}.bin").read_bytes()
    read = decode_record(data)
    assert read.schema == schema
    assert encode(read) == data == encode(record)
    opened, made = EncodedRecord.open(data), EncodedRecord.of(record)
    assert opened == made and opened.head == made.head and opened.identity == made.identity
    if isinstance(record, Envelope):
        assert isinstance(read, Envelope) and read.rows == record.rows and read.signature == record.signature
        assert list(read.row_keys()) == [row.key for row in record.rows]


def test_a_chain_names_its_predecessors() -> None:
    records = golden_records()
    first, second = records["envelope-1"], records["envelope-2"]
    assert isinstance(first, Envelope) and isinstance(second, Envelope)
    assert first.previous == "0" * 64 and second.previous == read_head(encode(first)).digest and second.sequence == 2


def test_a_revocation_is_no_envelope() -> None:
    with pytest.raises(WireError, match="revocation"):
        decode((DATA / "revocation-1.bin").read_bytes())


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name.isprintable())
MOMENTS = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=4).map(Moments.of)
PLANS = st.dictionaries(NAMES, NAMES, max_size=4).map(
    lambda made: Plan(tuple(Choice(decision=name, option=option) for name, option in made.items()))
)
ROWS = st.lists(
    st.tuples(
        PLANS, st.sampled_from([CONTEXT, OTHER_CONTEXT]), st.dictionaries(NAMES, MOMENTS, min_size=1, max_size=3)
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda row: (row[0].key, row[1].key),
)


@settings(deadline=None)
@given(ROWS)
def test_any_rows_survive_the_journey(rows: list) -> None:
    envelope = Stream(origin="alpha").mint(RESNET18, rows)
    read = decode(encode(envelope))
    assert read.rows == envelope.rows and encode(read) == encode(envelope)
    assert [key.hex() for key in read.block.plan_keys] == [row.plan.key for row in envelope.rows]


def _parts(data: bytes) -> list:
    return msgpack.unpackb(data)


def test_limits_hold_before_anything_is_decoded() -> None:
    data = encode(golden_records()["envelope-1"])
    with pytest.raises(WireError, match="limit"):
        decode(data, WireLimits(max_bytes=len(data) - 1))
    with pytest.raises(WireError, match="not an integer within 1 and 2"):
        decode(data, WireLimits(max_rows=2))
    with pytest.raises(WireError, match="longer"):
        decode(data, WireLimits(max_meta_bytes=10))
    deep = b"\x91" * 100_000
    with pytest.raises(WireError):
        decode_record(b"\x94" + msgpack.packb("model_opt") + msgpack.packb(deep[:60_000]) + msgpack.packb(b"") * 2)


def test_a_newer_schema_says_what_to_do() -> None:
    magic, head, meta, columns = _parts(encode(golden_records()["envelope-1"]))
    newer = msgpack.packb(msgpack.unpackb(head) | {"schema": 9, "reader": 9})
    with pytest.raises(WireError, match="update model_opt"):
        decode(b"\x94" + b"".join(msgpack.packb(one) for one in (magic, newer, meta, columns)))
    readable = msgpack.packb(msgpack.unpackb(head) | {"schema": 9, "reader": 1})
    raw = b"\x94" + b"".join(msgpack.packb(one) for one in (magic, readable, meta, columns))
    assert decode(raw).schema == 9


@pytest.mark.parametrize(("samples", "most"), [(1, 300_000), (5, 600_000)])
def test_ten_thousand_rows_stay_small(samples: int, most: int) -> None:
    rows = [
        (plan, context, {"log_speedup": moments["log_speedup"]}) for plan, context, moments in entries(10_000, samples)
    ]
    assert len(encode(Stream(origin="alpha").mint(RESNET18, rows))) <= most
