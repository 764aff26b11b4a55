"""A store with an index of signatures beside it. The store is written first, and what it says counts."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import InvalidInput, StoreError
from model_opt.federation.envelope import Revocation
from model_opt.federation.join import Cursor, StreamKey
from model_opt.federation.known import InspectableStore
from model_opt.federation.row import Row
from model_opt.federation.store import Appendable, Counts, Inspection, KnowledgeStore, OriginSummary
from model_opt.search.context import Context
from model_opt.search.model_signature import ModelSignature
from model_opt.storage.neighbours import Neighbours, check_query

_log = logging.getLogger(__name__)


class SignatureIndex(Protocol):
    """Approximate nearest signatures by their vectors. Whatever it loses is put back from the store."""

    def keys(self) -> set[str]:
        """The keys of the signatures that are indexed."""

    def add(self, signatures: Sequence[ModelSignature]) -> None:
        """Adds or replaces."""

    def remove(self, keys: Sequence[str]) -> None:
        """Takes out; keys that are not there are no error."""

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[str]:
        """The keys of about the `k` nearest."""

    def close(self) -> None:
        """Lets the connection go."""


class IndexedStore:
    """`store`, with `nearest` answered by `index`. An index that fails is done without: the store compares exactly."""

    def __init__(self, store: InspectableStore, index: SignatureIndex) -> None:
        """Neither is connected yet."""
        self.store = store
        self.index = index
        self.federation = store.federation
        self._agreed: frozenset[str] | None = None
        """The keys of which store and index are known to agree; None before they have been compared."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store!r}, {self.index!r})"

    def __enter__(self) -> "IndexedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, *records: Appendable) -> int:
        """See `KnowledgeStore.append`; the index follows."""
        new = self.store.append(*records)
        self._follow()
        return new

    def rows(self, signatures: Iterable[str] | None = None) -> list[Row]:
        """See `KnowledgeStore.rows`."""
        return self.store.rows(signatures)

    def nearest(self, query: ModelSignature | NDArray[np.float32], k: int = 5) -> list[tuple[ModelSignature, float]]:
        """See `KnowledgeStore.nearest`: candidates come from the index, and are ordered by their exact similarity."""
        vector = check_query(query, k)
        if not self._follow():
            return self.store.nearest(query, k)
        try:
            candidates = self.index.nearest(vector, 2 * k + 10)
        except StoreError as error:
            _log.warning("%r fails, comparing with every signature instead: %s", self.index, error)
            return self.store.nearest(query, k)
        known = self.store.signatures()
        return Neighbours({key: known[key] for key in candidates if key in known}).nearest(vector, k)

    def revoke(self, revocation: Revocation) -> None:
        """See `KnowledgeStore.revoke`; the index follows."""
        self.append(revocation)

    def close(self) -> None:
        """Lets both connections go."""
        self._agreed = None
        self.index.close()
        self.store.close()

    def rebuild_index(self) -> int:
        """Makes the index agree with the store, whatever it holds; returns how many signatures it has."""
        known = self.store.signatures()
        there = self.index.keys()
        self.index.remove(sorted(there - set(known)))
        self.index.add(list(known.values()))
        self._agreed = frozenset(known)
        return len(known)

    def _follow(self) -> bool:
        """Brings the index up to the store: all of it the first time, then what has changed. False where it fails."""
        known = self.store.signatures()
        if self._agreed is not None and self._agreed == known.keys():
            return True
        try:
            there = self.index.keys() if self._agreed is None else self._agreed
            self.index.remove(sorted(there - known.keys()))
            self.index.add([known[key] for key in sorted(known.keys() - there)])
        except StoreError as error:
            self._agreed = None
            _log.warning("%r could not follow the store, it will be compared again: %s", self.index, error)
            return False
        self._agreed = frozenset(known)
        return True

    # What the store tells about itself

    def counts(self) -> Counts:
        """See `Inspection.counts`."""
        return self.store.counts()

    def origins(self) -> list[OriginSummary]:
        """See `Inspection.origins`."""
        return self.store.origins()

    def signatures(self) -> dict[str, ModelSignature]:
        """See `Inspection.signatures`."""
        return self.store.signatures()

    def contexts(self) -> dict[str, Context]:
        """See `Inspection.contexts`."""
        return self.store.contexts()

    def cursors(self) -> Mapping[StreamKey, Cursor]:
        """See `Inspection.cursors`."""
        return self.store.cursors()

    def envelopes(self, since: int = 0, page: int = 200) -> Iterator[tuple[int, bytes]]:
        """See `Inspection.envelopes`."""
        return self.store.envelopes(since, page)


def inspectable(store: KnowledgeStore) -> InspectableStore:
    """`store`, of which an index can be made; raises `InvalidInput` where it cannot tell what it holds."""
    if not isinstance(store, Inspection):
        raise InvalidInput(f"{store!r} cannot be inspected, so no index can be made from it")
    return store
