"""ChromaDB as an index of signatures beside a store. It can be rebuilt from the store and is never the truth."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from numpy.typing import NDArray

from model_opt.errors import MissingDependency, StoreConflict, StoreError, StoreUnavailable
from model_opt.search.model_signature import ModelSignature

_BATCH = 5000
"""Chroma takes at most 5,461 at once."""
_PAGE = 20_000
_OPENING = threading.RLock()
"""Chroma shares its embedded systems by folder in a table of the process that two threads may not change at once."""
_log = logging.getLogger(__name__)


class ChromaIndex:
    """The vectors of one federation's signatures in a Chroma collection, by cosine.

    With a folder the index is embedded: only one process may own it (two lose vectors). Several processes share a
    server (`chroma run`), which has no authentication: keep it on the loopback or behind a proxy that has.
    """

    def __init__(
        self, where: str | Path, *, federation: str = "local", headers: Mapping[str, str] | None = None
    ) -> None:
        """`where` is a folder or the URL of a server; `headers` are for an authenticating proxy."""
        self._where = str(where)
        self._headers = dict(headers or {})
        self._name = f"model_opt_{blake2b(federation.encode(), digest_size=8).hexdigest()}"
        self._federation = federation
        self._collection: Any = None

    def __repr__(self) -> str:
        parts = urlparse(self._where)
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else self._where
        return f"ChromaIndex({shown!r})"

    def keys(self) -> set[str]:
        """The keys of the signatures that are indexed."""
        found: set[str] = set()
        with self._translated():
            while page := self._open().get(limit=_PAGE, offset=len(found), include=[])["ids"]:
                found.update(page)
        return found

    def count(self) -> int:
        """How many signatures are indexed."""
        with self._translated():
            return int(self._open().count())

    def add(self, signatures: Sequence[ModelSignature]) -> None:
        """Adds or replaces."""
        with self._translated():
            for start in range(0, len(signatures), _BATCH):
                part = signatures[start : start + _BATCH]
                self._open().upsert(
                    ids=[one.key for one in part],
                    embeddings=np.array([one.vector for one in part]),
                    metadatas=[{"family": str(one.family), "parameters": one.parameters} for one in part],
                )

    def remove(self, keys: Sequence[str]) -> None:
        """Takes out; keys that are not there are no error."""
        with self._translated():
            for start in range(0, len(keys), _BATCH):
                self._open().delete(ids=list(keys[start : start + _BATCH]))

    def nearest(self, vector: NDArray[np.float32], k: int) -> list[str]:
        """The keys of about the `k` nearest; the search is approximate."""
        with self._translated():
            available = self._open().count()
            if not available:
                return []
            answer = self._open().query(query_embeddings=[vector], n_results=min(k, available), include=["distances"])
            return list(answer["ids"][0])

    def clear(self) -> None:
        """Drops the collection."""
        with self._translated():
            self._open()
            self._client.delete_collection(self._name)
            self._collection = None

    def close(self) -> None:
        """Lets the connection go."""
        with _OPENING:
            if self._collection is not None:
                self._client.close()
                # Chroma's HTTP client leaves its connections to the garbage collector.
                session = getattr(getattr(self._client, "_server", None), "_session", None)
                if session is not None:
                    session.close()
            self._collection = None

    def _open(self) -> Any:
        with _OPENING:
            return self._collection if self._collection is not None else self._opened()

    def _opened(self) -> Any:
        self._client = self._connect()
        collection = self._client.get_or_create_collection(
            self._name,
            embedding_function=None,
            configuration={"hnsw": {"space": "cosine"}},
            metadata={"federation": self._federation},
        )
        space = collection.configuration_json["hnsw"]["space"]
        if space != "cosine":
            raise StoreConflict(f"{self!r}: the collection {self._name} compares by {space}; it has to be by cosine")
        self._collection = collection
        return collection

    def _connect(self) -> Any:
        try:
            import chromadb
        except ImportError as error:
            raise MissingDependency("chromadb", "all") from error
        quiet = chromadb.config.Settings(anonymized_telemetry=False)
        if "://" not in self._where:
            Path(self._where).mkdir(parents=True, exist_ok=True)
            return chromadb.PersistentClient(self._where, settings=quiet)
        parts = urlparse(self._where)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 8000)
        return chromadb.HttpClient(
            parts.hostname or "localhost", port, ssl=secure, headers=self._headers, settings=quiet
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx
        from chromadb.errors import ChromaError

        try:
            yield
        except (httpx.TransportError, OSError) as error:
            self._collection = None
            raise StoreUnavailable(f"{self!r} cannot be reached: {type(error).__name__}") from error
        except ChromaError as error:
            self._collection = None
            raise StoreError(f"{self!r}: {type(error).__name__}: {error}") from error
        except ValueError as error:
            # This is what its HTTP client raises for a server that is not there.
            self._collection = None
            raise StoreUnavailable(f"{self!r} cannot be reached: {error}") from error
