"""Moving knowledge between stores of one deployment. Records move as the bytes that they are: twice is harmless."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from model_opt.errors import InvalidInput, StoreConflict
from model_opt.federation.encoded_record import EncodedRecord
from model_opt.federation.known import InspectableStore
from model_opt.federation.store import KnowledgeStore

_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a copy did, or with `dry_run` would do. `conflicts` names the records that were refused."""

    new: int
    known: int
    conflicts: tuple[str, ...]
    rows: int
    """Rows that the new records bring, counted once for each record."""
    origins: tuple[str, ...]


@runtime_checkable
class Indexed(Protocol):
    """A store with an index of signatures beside it."""

    def rebuild_index(self) -> int:
        """Makes the index anew from the store; returns how many signatures it holds."""


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


def _move(target: InspectableStore, records: Iterable[bytes], *, dry_run: bool) -> Moved:
    digests = {
        encoded.identity: encoded.digest for encoded in (EncodedRecord.open(data) for _, data in target.envelopes())
    }
    new, known, rows = 0, 0, 0
    conflicts: list[str] = []
    origins: set[str] = set()
    batch: list[EncodedRecord] = []
    for data in records:
        encoded = EncodedRecord.open(data)
        there = digests.get(encoded.identity)
        if there == encoded.digest:
            known += 1
            continue
        if there is not None:
            conflicts.append(encoded.identity)
            continue
        digests[encoded.identity] = encoded.digest
        new += 1
        rows += sum(len(envelope.block) for envelope in encoded.envelopes)
        origins.add(encoded.head.origin)
        batch.append(encoded)
        if len(batch) >= _BATCH:
            conflicts += _append(target, batch, dry_run=dry_run)
            batch = []
    conflicts += _append(target, batch, dry_run=dry_run)
    return Moved(new=new, known=known, conflicts=tuple(sorted(conflicts)), rows=rows, origins=tuple(sorted(origins)))


def _append(target: InspectableStore, batch: list[EncodedRecord], *, dry_run: bool) -> list[str]:
    """Appends, and names what somebody else's record has taken the place of meanwhile."""
    if dry_run or not batch:
        return []
    try:
        target.append(*batch)
    except StoreConflict:
        return [name for encoded in batch for name in _append_one(target, encoded)]
    return []


def _append_one(target: InspectableStore, encoded: EncodedRecord) -> list[str]:
    try:
        target.append(encoded)
    except StoreConflict:
        return [encoded.identity]
    return []
