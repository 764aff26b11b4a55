"""Moving knowledge: export, import, copy, revoke. Records move as the bytes that they are: twice is harmless."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from model_opt.errors import InvalidInput, StoreConflict
from model_opt.federation.bundle import read_bundle, write_bundle
from model_opt.federation.envelope import Revocation
from model_opt.federation.sealed import Sealed
from model_opt.storage.knowledge import InspectableStore
from model_opt.storage.store import KnowledgeStore

_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`cursor` is where the next export with `since` goes on."""

    records: int
    size_bytes: int
    cursor: int


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What an import or a copy did, or with `dry_run` would do. `conflicts` names the records that were refused."""

    new: int
    known: int
    conflicts: tuple[str, ...]
    rows: int
    """Rows that the new records bring, counted once for each record."""
    origins: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """How many rows there were and are."""

    origin: str
    rows_before: int
    rows_after: int


@runtime_checkable
class Indexed(Protocol):
    """A store with an index of signatures beside it."""

    def rebuild_index(self) -> int:
        """Makes the index anew from the store; returns how many signatures it holds."""


def export_bundle(store: InspectableStore, path: Path, *, since: int = 0) -> Exported:
    """Writes the records after the cursor `since` to a bundle."""
    cursor = since

    def records() -> Iterator[bytes]:
        nonlocal cursor
        for cursor, data in store.envelopes(since):  # noqa: B007 - the last one is kept
            yield data

    count = write_bundle(path, records())
    return Exported(records=count, size_bytes=path.stat().st_size, cursor=cursor)


def import_bundle(store: InspectableStore, path: Path, *, dry_run: bool = False) -> Moved:
    """Appends a bundle's records. Raises `WireError` for a bad bundle before anything is appended.

    A record that contradicts what is there is refused and named, and the others are taken.
    """
    for data in read_bundle(path):
        opened = Sealed.open(data).record
        if opened.federation != store.federation:
            raise InvalidInput(f"a bundle of federation {opened.federation!r}; the store is {store.federation!r}")
    return _move(store, read_bundle(path), dry_run=dry_run)


def copy_store(source: InspectableStore, target: InspectableStore, *, dry_run: bool = False) -> Moved:
    """Appends every record of `source` to `target`."""
    if source.federation != target.federation:
        raise InvalidInput(f"federations differ: {source.federation!r} and {target.federation!r}")
    return _move(target, (data for _, data in source.envelopes()), dry_run=dry_run)


def rebuild_index(store: KnowledgeStore) -> int:
    """Makes the index of signatures anew; raises `InvalidInput` for a store without one (its search is exact)."""
    if not isinstance(store, Indexed):
        raise InvalidInput(f"{store!r} has no index of signatures: it compares with every one of them")
    return store.rebuild_index()


def revoke_origin(
    store: InspectableStore,
    origin: str,
    *,
    reason: str,
    authority: str = "reader",
    epochs: Mapping[str, int] | None = None,
) -> Revoked:
    """Withdraws all that `origin` has said, or its `epochs` from the sequences given on."""
    before = store.counts().rows
    store.revoke(
        Revocation(
            federation=store.federation, origin=origin, authority=authority, reason=reason, epochs=dict(epochs or {})
        )
    )
    return Revoked(origin=origin, rows_before=before, rows_after=store.counts().rows)


def _move(target: InspectableStore, records: Iterable[bytes], *, dry_run: bool) -> Moved:
    digests = {sealed.identity: sealed.digest for sealed in (Sealed.open(data) for _, data in target.envelopes())}
    new, known, rows = 0, 0, 0
    conflicts: list[str] = []
    origins: set[str] = set()
    batch: list[bytes] = []
    for data in records:
        sealed = Sealed.open(data)
        there = digests.get(sealed.identity)
        if there == sealed.digest:
            known += 1
            continue
        if there is not None:
            conflicts.append(sealed.identity)
            continue
        digests[sealed.identity] = sealed.digest
        new += 1
        rows += sum(len(envelope.block) for envelope in sealed.envelopes)
        origins.add(sealed.record.origin)
        batch.append(data)
        if len(batch) >= _BATCH:
            conflicts += _append(target, batch, dry_run=dry_run)
            batch = []
    conflicts += _append(target, batch, dry_run=dry_run)
    return Moved(new=new, known=known, conflicts=tuple(sorted(conflicts)), rows=rows, origins=tuple(sorted(origins)))


def _append(target: InspectableStore, batch: list[bytes], *, dry_run: bool) -> list[str]:
    """Appends, and names what somebody else's record has taken the place of meanwhile."""
    if dry_run or not batch:
        return []
    try:
        target.append(*batch)
    except StoreConflict:
        return [name for data in batch for name in _append_one(target, data)]
    return []


def _append_one(target: InspectableStore, data: bytes) -> list[str]:
    try:
        target.append(data)
    except StoreConflict:
        return [Sealed.open(data).identity]
    return []
