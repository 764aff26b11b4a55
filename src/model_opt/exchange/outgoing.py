"""The one stream in which this deployment tells a federation what it has measured: made, signed and kept here.

`outgoing/to-<federation>` beside the keys holds `said.db`, the signed envelopes, which are the truth and are never
altered; and for each epoch (each signing key) `heard-<epoch>.db`, copies of the local envelopes that it tells of. So
knowledge from several stores of one deployment becomes one row, and no sample is told in two epochs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from model_opt.errors import HubError, InvalidInput, StoreUnavailable
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.envelope import Envelope, check_name
from model_opt.federation.export_policy import ExportedRow, ExportPolicy, exported
from model_opt.federation.identity import Identity, identity_folder
from model_opt.federation.join import latest_rows
from model_opt.federation.known import InspectableStore
from model_opt.federation.record_index import Reached, RecordIndex, record_index
from model_opt.federation.row import Row
from model_opt.federation.signing import sign
from model_opt.federation.stream import Stream
from model_opt.federation.wire import read_head
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.sqlite import SQLiteBackend

_ROWS = 2000
"""Rows of one envelope: below a megabyte with all metrics."""
_COPIED = 50


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is new in the stream, or with a dry run would be, and how many rows stay here, by reason."""

    envelopes: tuple[Envelope, ...]
    held_back: dict[str, int]


class Outgoing:
    """The outgoing stream of `identity` to one federation. Several processes may say at once: they take turns."""

    def __init__(self, identity: Identity, federation: str, folder: Path | None = None) -> None:
        """`folder` is the identity's. Nothing is touched before the first call."""
        check_name("federation", federation)
        self._identity, self._federation = identity, federation
        self._folder = (folder or identity_folder()) / "outgoing" / f"to-{federation}"
        self._opened: dict[str, SQLiteBackend] = {}

    def say(
        self, store: InspectableStore, rules: ExportPolicy, *, dry_run: bool = False, heard: Reached | None = None
    ) -> Said:
        """Tells what `store` has of this deployment's searches and was not told, or told otherwise, before.

        `heard` is how far a hub knows this key's stream. Raises `HubError` where that was not said here: a clone of
        this machine, or this one after its backup was made, has spoken under the key; `InvalidInput` where the key was
        withdrawn.
        """
        with self._turn():
            ledger = self._ledger()
            if heard is not None and not self._has_said(heard, ledger):
                raise HubError(
                    "the hub has heard more under this key than is kept here: this machine or its keys were cloned, or "
                    "brought back from a backup. Nothing was sent. Give it a key of its own, then push again: "
                    "model-opt identity rotate"
                )
            if not ledger.policy.admits(self._federation, self._identity.origin, self._identity.epoch, 1):
                raise InvalidInput("this key was withdrawn, and nobody would listen: model-opt identity rotate")
            if not dry_run:
                self._copy(store, ledger)
            rows, signatures, contexts = self._sources(store, ledger)
            left = exported(rows, signatures, contexts, rules)
            made = tuple(self._mint(left.rows, ledger))
            if made and not dry_run:
                self._open("said").append(*(sign(self._identity, envelope) for envelope in made))
            return Said(envelopes=made, held_back=dict(left.held_back))

    def records(self, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """All that was ever told, signed, after the cursor `since`: (cursor, bytes)."""
        if self._path("said").exists():
            with SQLiteBackend(self._path("said"), federation=self._federation) as said:
                yield from said.envelopes(since)

    def keep(self, *records: bytes) -> None:
        """Keeps signed withdrawals of this deployment in the stream: what they refuse may be told under another key."""
        with self._turn():
            self._open("said").append(*records)

    def heard_of(self, epochs: Iterable[str]) -> frozenset[str]:
        """Those of this identity's epochs that tell of some of the local `epochs`: a store with these hears nothing
        new in them."""
        local = frozenset(epochs)
        mine = (self._identity.epoch, *self._identity.earlier)
        with self._turn():
            return frozenset(epoch for epoch in mine if self._told_in(epoch) & local)

    def _ledger(self) -> RecordIndex:
        return (
            record_index(data for _, data in self._open("said").envelopes()) if self._there("said") else RecordIndex()
        )

    def _has_said(self, heard: Reached, ledger: RecordIndex) -> bool:
        stream = (self._federation, self._identity.origin, self._identity.epoch)
        link = ledger.links.get(stream, {}).get(heard.sequence)
        return heard.sequence == 0 or (link is not None and link.digest == heard.digest)

    def _told_in(self, epoch: str) -> frozenset[str]:
        if not self._there(f"heard-{epoch}"):
            return frozenset()
        return frozenset(stream[2] for stream in self._open(f"heard-{epoch}").cursors())

    def _elsewhere(self, ledger: RecordIndex) -> frozenset[str]:
        """The local epochs that good earlier keys have told of, and the epochs of all keys."""
        identity = self._identity
        good = [e for e in identity.earlier if ledger.policy.admits(self._federation, identity.origin, e, 1)]
        return frozenset({identity.epoch, *identity.earlier}).union(*map(self._told_in, good))

    def _sources(
        self, store: InspectableStore, ledger: RecordIndex
    ) -> tuple[list[Row], dict[str, ModelSignature], dict[str, Context]]:
        elsewhere, own = self._elsewhere(ledger), self._identity.origin
        rows = [row for row in store.rows() if row.origin == own and row.epoch not in elsewhere]
        signatures, contexts = dict(store.signatures()), dict(store.contexts())
        if self._there(self._heard):
            heard = self._open(self._heard)
            rows += heard.rows()
            signatures, contexts = signatures | heard.signatures(), contexts | heard.contexts()
        return list(latest_rows(rows).values()), signatures, contexts

    @property
    def _heard(self) -> str:
        return f"heard-{self._identity.epoch}"

    def _copy(self, store: InspectableStore, ledger: RecordIndex) -> None:
        """Copies this deployment's own local records, so that its stream does not depend on one store."""
        elsewhere, own = self._elsewhere(ledger), self._identity.origin
        heard = self._open(self._heard)
        known = {read_head(data).digest for _, data in heard.envelopes()}
        batch: list[EncodedRecord] = []
        for _, data in store.envelopes():
            encoded = EncodedRecord.open(data)
            epoch = encoded.head.fields.get("epoch")
            if encoded.head.origin == own and encoded.digest not in known and epoch not in elsewhere:
                batch.append(encoded)
            if len(batch) >= _COPIED:
                heard.append(*batch)
                batch = []
        heard.append(*batch)

    def _mint(
        self, rows: Iterable[tuple[ModelSignature, tuple[ExportedRow, ...]]], ledger: RecordIndex
    ) -> Iterator[Envelope]:
        identity = self._identity
        stream = Stream(origin=identity.origin, epoch=identity.epoch, federation=self._federation)
        at = ledger.reached.get((self._federation, identity.origin, identity.epoch))
        if at is not None:
            stream.sequence, stream.previous = at.sequence, at.digest
        told = self._told()
        for signature, leavers in rows:
            changed = [
                (plan, context, moments)
                for plan, context, moments in leavers
                if told.get((signature.key, plan.key, context.key)) != moments
            ]
            for start in range(0, len(changed), _ROWS):
                yield stream.mint(signature, changed[start : start + _ROWS])

    def _told(self) -> dict[tuple[str, str, str], object]:
        rows = self._open("said").rows() if self._there("said") else []
        rows = [row for row in rows if row.epoch == self._identity.epoch]
        return {(row.signature, row.plan.key, row.context): dict(row.moments) for row in rows}

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.db"

    def _there(self, name: str) -> bool:
        return name in self._opened or self._path(name).exists()

    def _open(self, name: str) -> SQLiteBackend:
        """The file of this name, made on first use and open until the turn ends."""
        if name not in self._opened:
            self._opened[name] = SQLiteBackend(self._path(name), federation=self._federation)
        return self._opened[name]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock", timeout=60):
                try:
                    yield
                finally:
                    while self._opened:
                        self._opened.popitem()[1].close()
        except (OSError, Timeout) as error:
            raise StoreUnavailable(f"the outgoing stream at {self._folder} cannot be written: {error}") from error
