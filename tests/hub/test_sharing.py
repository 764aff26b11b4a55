"""What leaves a deployment, what it takes in, and that neither can be tricked into counting anything twice."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import knowledge

from model_opt.cli.sharing import touched_by
from model_opt.errors import InvalidInput, WireError
from model_opt.exchange.bundle import read_bundle, write_bundle
from model_opt.exchange.shared import START, export_bundle, import_bundle, preview, withdraw
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope
from model_opt.federation.export_policy import DECISIONS, ExportPolicy, coarse, exported
from model_opt.federation.identity import Identity, deployment_identity, rotate
from model_opt.federation.known import InspectableStore
from model_opt.federation.last_heard import last_heard
from model_opt.federation.moments import Moments
from model_opt.federation.row import Row
from model_opt.federation.signing import sign, verify
from model_opt.federation.stream import Stream
from model_opt.federation.trust import peers, trust
from model_opt.federation.wire import decode, encode
from model_opt.search.plan import Choice, Plan
from model_opt.storage.open import open_store
from model_opt.storage.testing import CONTEXT, RESNET18, RESNET34, VIT_B, entries, plan


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A store and the folder of an identity."""

    store: InspectableStore
    folder: Path

    @property
    def identity(self) -> Identity:
        return deployment_identity(self.folder)

    def measure(self, *rows: tuple[object, list]) -> Stream:
        """One search: its envelopes go into the store."""
        search = Stream(origin=self.identity.origin)
        self.store.append(*(search.mint(signature, entries) for signature, entries in rows))
        return search

    def trusts(self, *others: "Deployment", share: float = 1.0) -> None:
        for other in others:
            trust(other.identity.origin, share, folder=self.folder)

    def tells(self, path: Path, since: str = START, **rules: int) -> str:
        return export_bundle(self.store, path, since=since, rules=ExportPolicy(**rules), folder=self.folder).cursor

    def hears(self, path: Path, **options: bool):
        return import_bundle(self.store, path, folder=self.folder, **options)


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], Deployment]:
    return lambda name: Deployment(store=open_store(tmp_path / f"{name}.db"), folder=tmp_path / name)


def test_what_is_told_is_what_was_measured_once(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b = made("a"), made("b")
    bundle = tmp_path / "told.mopt"
    search = a.measure((RESNET18, entries(10, 3)))
    a.measure((RESNET18, entries(5, 2)), (VIT_B, entries(4)))
    a.tells(bundle)
    b.trusts(a)
    would = b.hears(bundle, dry_run=True)
    assert (would.new, would.rows_added, b.store.rows()) == (2, 14, [])
    assert last_heard(b.folder) == {}
    began = time.time()
    assert b.hears(bundle) == would and knowledge(b.store) == knowledge(a.store)
    first = last_heard(b.folder)
    assert list(first) == [(a.identity.origin, a.identity.epoch)] and began <= min(first.values()) <= time.time()
    assert b.hears(bundle).known == 2 and last_heard(b.folder) == first
    echo = a.hears(bundle)
    assert (echo.own, echo.new) == (2, 0)
    a.store.append(search.mint(RESNET18, entries(12, 4)))
    a.tells(bundle)
    assert b.hears(bundle).rows_updated == 10 and knowledge(b.store) == knowledge(a.store)
    assert min(last_heard(b.folder).values()) > min(first.values()) and last_heard(a.folder) == {}


def test_a_new_key_tells_only_what_is_new(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b = made("a"), made("b")
    b.trusts(a)
    a.measure((RESNET18, entries(10, 3)))
    cursor = a.tells(tmp_path / "1")
    rotate(a.folder)
    assert a.tells(tmp_path / "2", cursor) == "1.1" and list(read_bundle(tmp_path / "2")) == []
    a.measure((RESNET18, entries(6)), (RESNET34, entries(3)))
    a.tells(tmp_path / "2", cursor)
    for name in ("2", "1"):
        b.hears(tmp_path / name)
    assert knowledge(b.store) == knowledge(a.store) and len(b.store.rows()) == 19
    other = Deployment(store=open_store(tmp_path / "other.json"), folder=a.folder)
    other.measure((RESNET18, entries(4, first=50)))
    other.tells(tmp_path / "3")
    assert b.hears(tmp_path / "3").rows_added == 4


def test_nothing_unsigned_untrusted_or_damaged_is_taken(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b = made("a"), made("b")
    bundle = tmp_path / "told.mopt"
    a.measure((RESNET18, entries(5)))
    a.tells(bundle)
    refused = b.hears(bundle)
    assert refused.new == 0 and "identity trust" in next(iter(refused.refused))
    write_bundle(tmp_path / "raw", [encode(Stream(origin=a.identity.origin).mint(RESNET18, entries(3)))])
    b.trusts(a)
    assert "not signed" in next(iter(b.hears(tmp_path / "raw").refused))
    (tmp_path / "cut").write_bytes(bundle.read_bytes()[:-40])
    with pytest.raises(WireError):
        b.hears(tmp_path / "cut")
    elsewhere = Deployment(store=open_store(tmp_path / "e.db", federation="elsewhere"), folder=tmp_path / "e")
    elsewhere.trusts(a)
    assert "federation" in next(iter(elsewhere.hears(bundle).refused))
    assert b.store.rows() == [] and elsewhere.store.rows() == []


def test_a_skipped_bundle_is_noticed(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b = made("a"), made("b")
    b.trusts(a)
    cursor = START
    for number in range(3):
        a.measure((RESNET18, entries(4, first=4 * number)))
        cursor = a.tells(tmp_path / str(number), cursor)
    assert b.hears(tmp_path / "0").gaps == ()
    (gap,) = b.hears(tmp_path / "2").gaps
    assert (gap.origin, gap.known) == (a.identity.origin, 1) and len(b.store.rows()) == 8
    assert b.hears(tmp_path / "1").gaps == () and knowledge(b.store) == knowledge(a.store)


def test_two_stories_and_impossible_claims_cost_the_trust(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b, c, reader = (made(name) for name in "abcr")
    reader.trusts(a, b, c)

    def told(by: Deployment, rows: list, name: str) -> Path:
        who = by.identity
        stream = Stream(origin=who.origin, epoch=who.epoch)
        write_bundle(tmp_path / name, [sign(who, stream.mint(RESNET18, rows))])
        return tmp_path / name

    reader.hears(told(a, entries(3), "one"))
    caught = reader.hears(told(a, entries(3, first=9), "two"), dry_run=True)
    assert caught.quarantined == (a.identity.origin,) and peers(reader.folder)[a.identity.origin].trust == 1
    reader.hears(tmp_path / "two")
    assert peers(reader.folder)[a.identity.origin].trust == 0 and len(reader.store.rows()) == 3
    wild = [(plan(prune="1"), CONTEXT, {"log_speedup": Moments.of([50.0])})]
    assert reader.hears(told(b, wild, "wild")).quarantined == (b.identity.origin,)
    spread = Moments(n=2, mean=0.5, m2=10.0, min=0.4, max=0.6)
    assert reader.hears(told(c, [(plan(prune="1"), CONTEXT, {"log_speedup": spread})], "spread")).quarantined


def test_withdrawals_fold_anew_and_name_the_results(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a, b, c = made("a"), made("b"), made("c")
    for one, other in ((b, a), (c, a), (c, b)):
        one.trusts(other)
    a.measure((RESNET18, entries(5)))
    a.tells(tmp_path / "a.mopt")
    b.measure((RESNET18, entries(3)))
    for one in (b, c):
        one.hears(tmp_path / "a.mopt")
    assert withdraw(b.store, a.identity.origin, reason="wrong clock", folder=b.folder) == (8, 3)
    b.tells(tmp_path / "b.mopt")
    assert "cannot withdraw" in next(iter(c.hears(tmp_path / "b.mopt").refused)) and len(c.store.rows()) == 8
    trust(b.identity.origin, 1.0, authority=True, folder=c.folder)
    taken = c.hears(tmp_path / "b.mopt")
    assert "wrong clock" in taken.withdrawals[0] and {row.origin for row in c.store.rows()} == {b.identity.origin}
    assert c.hears(tmp_path / "a.mopt").known == 1 and len(c.store.rows()) == 3
    for name, origins in (("one", [a.identity.origin]), ("two", []), ("three", None)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "result.json").write_text(json.dumps({"knowledge": {"origins": origins}}))
    assert touched_by(a.identity.origin, tmp_path / "runs") == [tmp_path / "runs" / "one" / "result.json"]


def test_only_what_is_on_the_lists_leaves(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a = made("a")
    secret = replace(CONTEXT, libraries=(("torch", "2.14.1"), ("acme_kernels", "0.1")))
    rows = [(one, secret, moments | {"revenue": Moments.of([1.0])}) for one, _, moments in entries(4)]
    rows.append((Plan((Choice(decision="prune/encoder.acme", option="0.5"),)), CONTEXT, rows[0][2]))
    rows.append((plan(prune="acme model"), CONTEXT, rows[0][2]))
    odd = replace(RESNET18, operators=RESNET18.operators | {"acme_attention": 3})
    a.measure((RESNET18, rows), (VIT_B, entries(2)))
    assert "acme" not in str(preview(a.store, folder=a.folder).envelopes)
    assert coarse(odd).operators["other"] == 3 and "acme_attention" not in coarse(odd).operators
    shown = preview(a.store, folder=a.folder)
    assert sum(shown.held_back.values()) == 4 and len(shown.envelopes[0]["rows"]) == 4
    assert list((a.folder / "outgoing" / "to-local").glob("*.db")) == []
    a.tells(tmp_path / "told")
    (data,) = read_bundle(tmp_path / "told")
    assert b"acme" not in data and b"revenue" not in data
    told = verify(EncodedRecord.open(data), {a.identity.origin})
    assert isinstance(told, Envelope) and told.signature == coarse(RESNET18) != RESNET18
    assert [row["moments"].keys() for row in shown.envelopes[0]["rows"]] == [m.keys() for m in told.block.moments()]
    assert preview(a.store, folder=a.folder).told_before == 1
    with pytest.raises(InvalidInput):
        preview(a.store, since="yesterday", folder=a.folder)


def test_the_lists_know_every_technique() -> None:
    from model_opt.compression.technique import ORDER

    assert set(ORDER) == DECISIONS


ROW = st.builds(
    lambda signature, number, epoch, values: Row(
        federation="local",
        signature=signature.key,
        plan=plan(prune=str(number)),
        context=CONTEXT.key,
        origin="a",
        epoch=f"{epoch:032x}",
        sequence=1,
        moments={"log_speedup": Moments.of(values)},
    ),
    st.sampled_from([RESNET18, replace(RESNET18, parameters=RESNET18.parameters + 1)]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.floats(-3, 3), min_size=1, max_size=3),
)


@settings(deadline=None)
@given(st.lists(ROW, max_size=12, unique_by=lambda row: row.key), st.randoms())
def test_coarsening_loses_no_sample_and_needs_no_order(rows: list[Row], source) -> None:
    signatures = {one.key: one for one in (RESNET18, replace(RESNET18, parameters=RESNET18.parameters + 1))}
    rules, contexts = ExportPolicy(least_plans=1), {CONTEXT.key: CONTEXT}
    left = exported(rows, signatures, contexts, rules)
    shuffled = rows[:]
    source.shuffle(shuffled)
    assert exported(shuffled, signatures, contexts, rules) == left
    told = sum(moments["log_speedup"].n for _, entries in left.rows for _, _, moments in entries)
    assert told == sum(row.moments["log_speedup"].n for row in rows)


def test_signed_bytes_are_never_made_again(made: Callable[[str], Deployment], tmp_path: Path) -> None:
    a = made("a")
    a.measure((RESNET18, entries(5)))
    a.tells(tmp_path / "1")
    a.measure((RESNET34, entries(5)))
    a.tells(tmp_path / "2")
    first, again = list(read_bundle(tmp_path / "1")), list(read_bundle(tmp_path / "2"))
    assert again[: len(first)] == first and [decode(data).sequence for data in again] == [1, 2]
