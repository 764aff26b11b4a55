"""A store beside an index of its signatures in ChromaDB."""

from collections.abc import Mapping
from pathlib import Path

from model_opt.errors import InvalidInput
from model_opt.federation.store import KnowledgeStore
from model_opt.storage.chroma_index import ChromaIndex
from model_opt.storage.indexed import IndexedStore, inspectable
from model_opt.storage.open import open_store


class ChromaDBBackend(IndexedStore):
    """A store whose signatures are indexed by ChromaDB; records and rows live in `store`."""

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        host: str | None = None,
        port: int = 8000,
        ssl: bool = False,
        store: str | Path | KnowledgeStore | None = None,
        federation: str = "local",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A folder (`path`) for an embedded index, or `host` for a server. Without `store` a SQLite file in the folder.

        Raises `InvalidInput` where neither or both of path and host are given, or a host without a store.
        """
        if (path is None) == (host is None):
            raise InvalidInput("name either a path (embedded) or a host (server) of ChromaDB")
        if store is None and path is None:
            raise InvalidInput("the rows need a store beside the index: store='sqlite:///knowledge.db', or another URL")
        kept = open_store(store if store is not None else Path(str(path)) / "knowledge.sqlite", federation)
        where = path if path is not None else f"{'https' if ssl else 'http'}://{host}:{port}"
        if not isinstance(kept, IndexedStore):
            super().__init__(inspectable(kept), ChromaIndex(where, federation=kept.federation, headers=headers))
        else:
            raise InvalidInput(f"{kept!r} has an index already")
