"""Identities and signatures: what verifies, what does not, and who may say what."""

import json
import multiprocessing
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from model_opt.cli.identity import app
from model_opt.errors import InvalidInput, ModelOptError, StoreConflict, StoreError, WireError
from model_opt.exchange.bundle import read_bundle
from model_opt.federation import identity as identities
from model_opt.federation import signing
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import FIRST, Envelope, Record, Revocation
from model_opt.federation.identity import Certificate, Identity, deployment_identity, rotate
from model_opt.federation.signing import equivocates, sign
from model_opt.federation.stream import Stream
from model_opt.federation.trust import peers, quarantine, shares, trust, trusted
from model_opt.federation.wire import decode_record, encode, seal, split
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, entries


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return deployment_identity(tmp_path_factory.mktemp("alice"))


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return deployment_identity(tmp_path_factory.mktemp("mallory"))


def told(by: Identity, rows: int = 3, first: int = 0) -> Envelope:
    return Stream(origin=by.origin, epoch=by.epoch).mint(RESNET18, entries(rows, first=first))


def verify(data: bytes, origins: set[str], authorities: frozenset[str] = frozenset()) -> EncodedRecord:
    opened = EncodedRecord.open(data)
    assert signing.verify(opened, origins, authorities=authorities) is opened.record
    return opened


def refused(by: Identity, origin: str) -> Revocation:
    return Revocation(federation="local", origin=origin, authority=by.origin, reason="x", epochs={by.epoch: 2})


def fixed() -> Identity:
    """The identity of the golden file. Never change it: add another instead."""
    root, key = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
    origin, public = root.public_key().public_bytes_raw().hex(), key.public_key().public_bytes_raw()
    epoch = "0123456789abcdef" * 2
    signature = root.sign(b"model_opt certificate 1\n" + origin.encode() + public + epoch.encode())
    return Identity(
        root=root,
        key=key,
        certificate=Certificate(origin=origin, key=public, epoch=epoch, signature=signature),
    )


@pytest.mark.parametrize("schema", [1, 2])
def test_old_signatures_verify_for_ever(schema: int) -> None:
    data = (Path(__file__).parents[1] / "data" / f"signed-envelope-{schema}.bin").read_bytes()
    assert data == sign(fixed(), replace(told(fixed()), schema=schema))
    assert verify(data, {fixed().origin}).data == data


def test_what_was_signed_verifies_and_is_the_same_record(alice: Identity) -> None:
    envelope = told(alice)
    data = sign(alice, envelope)
    opened = verify(data, {alice.origin})
    assert opened.data == data and isinstance(opened.record, Envelope) and opened.record.rows == envelope.rows
    assert opened.digest == EncodedRecord.of(envelope).digest and opened.identity == envelope.identity
    assert opened.signed and not EncodedRecord.of(envelope).signed and len(data) - len(encode(envelope)) < 200


@pytest.fixture(scope="module")
def signed(alice: Identity) -> list[bytes]:
    return [sign(alice, record) for record in (told(alice), refused(alice, alice.origin))]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1), st.integers(0, 2**20), st.integers(1, 255))
def test_no_byte_can_be_changed(signed: list[bytes], which: int, place: int, flip: int) -> None:
    data = bytearray(signed[which])
    origin = decode_record(signed[which]).origin
    assert verify(signed[which], {origin})
    data[place % len(data)] ^= flip
    with pytest.raises(WireError):
        verify(bytes(data), {origin})
    with pytest.raises(WireError):
        verify(signed[which][: place % len(data)], {origin})


def test_who_is_not_trusted_or_does_not_sign_is_refused(alice: Identity, mallory: Identity) -> None:
    envelope = told(alice)
    with pytest.raises(WireError, match="not signed"):
        verify(encode(envelope), {alice.origin})
    with pytest.raises(WireError, match="not trusted"):
        verify(sign(alice, envelope), {mallory.origin})
    with pytest.raises(InvalidInput):
        sign(mallory, envelope)
    forged = seal(encode(envelope), split(sign(mallory, told(mallory))).seal)
    with pytest.raises(WireError, match="forged"):
        verify(forged, {alice.origin, mallory.origin})
    local = Stream(origin="a-laptop", epoch=alice.epoch).mint(RESNET18, entries(1))
    with pytest.raises(WireError, match="forged"):
        verify(seal(encode(local), split(sign(alice, envelope)).seal), {"a-laptop"})


def test_a_seal_is_good_for_its_record_and_epoch_only(alice: Identity, tmp_path: Path) -> None:
    other = seal(encode(told(alice, first=7)), split(sign(alice, told(alice))).seal)
    with pytest.raises(WireError, match="forged"):
        verify(other, {alice.origin})
    before = deployment_identity(tmp_path)
    after = rotate(tmp_path)
    assert (after.origin, after.earlier) == (before.origin, (before.epoch,)) and after.epoch != before.epoch
    assert verify(sign(before, told(before)), {after.origin}) and verify(sign(after, told(after)), {after.origin})
    stolen = Identity(root=before.root, key=before.key, certificate=after.certificate)
    with pytest.raises(WireError, match="forged"):
        verify(sign(stolen, told(after)), {after.origin})
    with pytest.raises(InvalidInput):
        sign(before, told(after))


def test_a_signing_key_cannot_take_anything_away(alice: Identity) -> None:
    mark = split(sign(alice, told(alice))).seal
    with pytest.raises(WireError, match="wrong kind of key"):
        verify(seal(encode(refused(alice, alice.origin)), mark), {alice.origin})


def test_only_an_origin_or_an_authority_withdraws(alice: Identity, mallory: Identity) -> None:
    both = {alice.origin, mallory.origin}
    assert verify(sign(alice, refused(alice, alice.origin)), both)
    foreign = sign(mallory, refused(mallory, alice.origin))
    with pytest.raises(WireError, match="cannot withdraw"):
        verify(foreign, both)
    assert verify(foreign, both, frozenset({mallory.origin}))
    with pytest.raises(InvalidInput):
        sign(mallory, refused(alice, alice.origin))


def test_two_stories_are_noticed_and_cost_the_trust(alice: Identity, tmp_path: Path) -> None:
    one, other = (EncodedRecord.open(sign(alice, told(alice, first=first))) for first in (0, 9))
    assert one.record.previous == FIRST  # type: ignore[union-attr]
    assert equivocates(one, other) and not equivocates(one, one)
    trust(alice.origin, 0.7, name="alice", folder=tmp_path)
    assert alice.origin in trusted("f" * 64, tmp_path) and shares("f" * 64, tmp_path)[alice.origin] == 0.7
    quarantine(alice.origin, "two envelopes 1", folder=tmp_path)
    assert trusted("f" * 64, tmp_path) == {"f" * 64}
    assert peers(tmp_path)[alice.origin].name == "alice" and "two envelopes" in peers(tmp_path)[alice.origin].note
    for wrong in ((alice.origin, 1.1), ("alice", 0.5)):
        with pytest.raises(InvalidInput):
            trust(*wrong, folder=tmp_path)


def test_an_unsigned_conflict_is_refused_and_changes_nothing(alice: Identity, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "kb.db"))
    data = sign(alice, told(alice))
    assert store.append(data) == 1 and store.append(encode(told(alice))) == 0
    with pytest.raises(StoreConflict):
        store.append(encode(told(alice, first=9)))
    kept = dict(store.envelopes()).values()  # type: ignore[attr-defined]
    assert list(kept) == [data]
    store.close()


def _origin(folder: str) -> str:
    return deployment_identity(Path(folder)).origin


def test_whoever_is_first_makes_it_and_all_get_the_same(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        made = pool.map(_origin, [str(tmp_path / "new")] * 6, chunksize=1)
    assert len(set(made)) == 1 and len(made[0]) == 64


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_keys_are_nobody_elses(tmp_path: Path) -> None:
    made = deployment_identity(tmp_path)
    secret = (tmp_path / "root.key").read_text()
    assert secret not in repr(made)
    for name in ("root.key", "signing.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    (tmp_path / "root.key").chmod(0o644)
    with pytest.raises(StoreError, match="chmod"):
        deployment_identity(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "root.key").write_text("no key"),
        lambda folder: (folder / "root.key").write_text("11" * 32),
        lambda folder: (folder / "signing.json").write_text("{}"),
    ],
)
def test_damaged_keys_are_said_to_be_so(harm: Callable[[Path], object], tmp_path: Path) -> None:
    deployment_identity(tmp_path)
    harm(tmp_path)
    with pytest.raises(StoreError):
        deployment_identity(tmp_path)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "data_folder", lambda: tmp_path)
    run = CliRunner().invoke

    def ask(*words: str) -> dict[str, object]:
        result = run(app, [*words, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)  # type: ignore[no-any-return]

    made = ask("create")
    origin = str(made["origin"])
    assert ask("create") == made
    assert ask("trust", "a" * 64, "0.5", "--name", "vision")["trust"] == 0.5
    assert ask("rotate")["earlier_epochs"] == [made["epoch"]]
    bundle = tmp_path / "withdrawn.mopt"
    told = ask("revoke", "--reason", "stolen", "--out", str(bundle))
    shown = ask("show")
    assert told["rotated"] and shown["origin"] == origin and told["withdrawn"] in shown["earlier_epochs"]  # type: ignore[operator]
    assert shown["peers"] == {"a" * 64: {"trust": 0.5, "name": "vision", "note": "", "authority": False}}
    record: Record = verify(next(iter(read_bundle(bundle))), {origin}).record
    assert isinstance(record, Revocation) and record.epochs == {told["withdrawn"]: 1}
    assert "vision" in run(app, ["show"]).stdout
    assert isinstance(run(app, ["trust", "bob"]).exception, ModelOptError)
