"""The laws of joining, chains with gaps, and bundles."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_opt.errors import InvalidInput, WireError
from model_opt.exchange.bundle import read_bundle, write_bundle
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Revocation
from model_opt.federation.join import ChainLink, Knowledge, Policy, cursors, join
from model_opt.federation.stream import Stream
from model_opt.storage.testing import RESNET18, VIT_B, entries


def story() -> list[EncodedRecord]:
    """Two origins, three epochs, a twin that contradicts, and two revocations."""
    alpha, beta, twin = (
        Stream(origin=name, epoch=e * 32) for name, e in (("alpha", "a"), ("beta", "b"), ("alpha", "a"))
    )
    later = Stream(origin="alpha", epoch="c" * 32)
    records = [alpha.mint(RESNET18, entries(3, number + 1, first=number)) for number in range(3)]
    records += [beta.mint(VIT_B, entries(4, number + 1)) for number in range(3)]
    records.append(twin.mint(RESNET18, entries(5)))
    records.append(later.mint(RESNET18, entries(4, 2)))
    refused = Revocation(federation="local", origin="beta", authority="r", reason="x", epochs={"b" * 32: 3})
    earlier = Revocation(federation="local", origin="beta", authority="r", reason="y", epochs={"b" * 32: 2})
    return [EncodedRecord.of(record) for record in (*records, refused, earlier)]


STORY = story()
PARTS = st.lists(st.integers(0, len(STORY) - 1), max_size=12).map(lambda picks: Knowledge.of(STORY[i] for i in picks))


def same(a: Knowledge, b: Knowledge) -> bool:
    return {k: s.digest for k, s in a.records.items()} == {k: s.digest for k, s in b.records.items()} and (
        a.rows() == b.rows()
    )


@given(PARTS, PARTS, PARTS)
def test_joining_is_commutative_associative_and_idempotent(a: Knowledge, b: Knowledge, c: Knowledge) -> None:
    assert same(join(a, b), join(b, a))
    assert same(join(join(a, b), c), join(a, join(b, c)))
    assert same(join(a, a), a)


@given(st.permutations(range(len(STORY))), st.integers(0, 2**16))
def test_order_and_duplicates_do_not_matter(order: list[int], seed: int) -> None:
    source = random.Random(seed)
    state = Knowledge()
    for number in order:
        state = join(state, Knowledge.of([STORY[number]]))
        if source.random() < 0.3:
            state = join(Knowledge.of([STORY[source.choice(order[: order.index(number) + 1])]]), state)
    assert same(state, Knowledge.of(STORY))
    rows = state.rows()
    assert {key.epoch[0] for key in rows} == {"a", "b", "c"}
    assert {row.sequence for key, row in rows.items() if key.origin == "beta"} == {1}


def test_a_policy_takes_the_strictest() -> None:
    policy = Policy.of(sealed.record for sealed in STORY)
    assert policy.admits("local", "beta", "b" * 32, 1) and not policy.admits("local", "beta", "b" * 32, 2)
    assert policy.admits("local", "beta", "d" * 32, 99) and policy.admits("other", "beta", "b" * 32, 9)
    everything = policy.with_records([Revocation(federation="local", origin="beta", authority="r", reason="z")])
    assert not everything.admits("local", "beta", "d" * 32, 1)


def test_cursors_stop_at_gaps_and_forks() -> None:
    stream = ("local", "alpha", "a" * 32)
    digests = ["0" * 64, *(f"{i:064x}" for i in range(1, 8))]
    chain = [ChainLink(stream=stream, sequence=i, previous=digests[i - 1], digest=digests[i]) for i in range(1, 8)]
    assert cursors(chain)[stream].sequence == 7
    at = cursors([*chain[:2], chain[3], chain[6]])[stream]
    assert (at.sequence, at.missing, at.forked) == (2, ((3, 3), (5, 6)), False)
    other = ChainLink(stream=stream, sequence=3, previous="f" * 64, digest="e" * 64)
    at = cursors([*chain[:2], other])[stream]
    assert (at.sequence, at.forked) == (2, True)


def test_bundles_come_back_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    data = [sealed.data for sealed in STORY]
    assert write_bundle(path, data) == len(data)
    assert list(read_bundle(path)) == data
    raw = path.read_bytes()
    for cut in (0, 5, 30, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:cut])
        with pytest.raises(WireError):
            list(read_bundle(path))
    path.write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
    with pytest.raises(WireError):
        list(read_bundle(path))


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInput):
        Stream(origin="a|b").mint(RESNET18, entries(1))
    with pytest.raises(InvalidInput):
        Stream(origin="alpha").mint(RESNET18, [])
    with pytest.raises(InvalidInput):
        Stream(origin="alpha").mint(RESNET18, [*entries(1), *entries(1)])
