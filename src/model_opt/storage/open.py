"""One way in: a URL, a path, or a store."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import ParseResult, parse_qsl, unquote, urlencode, urlparse

from model_opt.errors import InvalidInput, UnknownName
from model_opt.federation.store import KnowledgeStore
from model_opt.folders import data_folder
from model_opt.storage.address import Address

_OURS = ("chroma", "federation")


def default_store_path() -> Path:
    """The SQLite file that knowledge is kept in where nothing else is said; see `folders.data_folder`."""
    return data_folder() / "knowledge.db"


def open_store(store: str | Path | KnowledgeStore, federation: str = "local") -> KnowledgeStore:
    """The store that a URL or path names; a store is handed back as it is. Nothing is connected yet.

    Parameters
    ----------
    store
        `sqlite:///relative.db` or `sqlite:////absolute.db`, `neo4j://user:password@host:7687/database` (also `bolt`,
        and with `+s` for TLS), `redis://…` and `rediss://…`, `mongodb://…` and `mongodb+srv://…`, or a path that ends
        in `.json`, `.db` or `.sqlite`. A URL takes `?federation=NAME`, and `?chroma=` with a folder or the URL of a
        Chroma server for the index of model signatures; its other options go to the driver.
    federation
        The name under which knowledge is shared, where a URL says none.

    Raises
    ------
    InvalidInput, UnknownName
        For an address that cannot be read, or another scheme.
    """
    if not isinstance(store, str | Path):
        return store
    text = str(store)
    if "://" not in text:
        return _open_path(Path(text), federation)
    parts = urlparse(text)
    if parts.scheme not in _SCHEMES:
        raise UnknownName("kind of store", parts.scheme, [*_SCHEMES, "a path ending in .json"])
    _check_host(parts)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ours = {name: options.pop(name) for name in _OURS if name in options}
    address = Address(parts=parts, options=options, federation=ours.get("federation", federation))
    opened = _SCHEMES[parts.scheme](address)
    return _indexed(opened, ours["chroma"]) if "chroma" in ours else opened


def _check_host(parts: ParseResult) -> None:
    """Raises `InvalidInput` for an address without a host, or with a port that is none; shows nothing of it."""
    if parts.scheme == "sqlite":
        return
    advice = "characters such as : / @ in a password are written as %3A %2F %40"
    try:
        # MongoDB's addresses may name several hosts; its driver checks their ports.
        port = "mongodb" in parts.scheme or parts.port
    except ValueError:
        raise InvalidInput(f"the port in the {parts.scheme} URL is not a number; {advice}") from None
    if not parts.hostname or port == 0:
        raise InvalidInput(f"the {parts.scheme} URL names no host: {parts.scheme}://user:password@host:port; {advice}")


def place_of(store: str | Path | KnowledgeStore | None) -> str | None:
    """What another process on this machine opens the same store by; None where only this one has it.

    `store` is what `open_store` takes, None for the default.
    """
    if store is None:
        return str(default_store_path())
    if not isinstance(store, str | Path):
        return None
    return str(store) if "://" in str(store) else str(Path(store).absolute())


def is_local(place: str) -> bool:
    """Whether a URL or path names a file of this machine."""
    return "://" not in place or place.startswith("sqlite:")


def _open_path(path: Path, federation: str) -> KnowledgeStore:
    if path.suffix == ".json":
        from model_opt.storage.json_backend import JSONBackend

        return JSONBackend(path, federation=federation)
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        from model_opt.storage.sqlite import SQLiteBackend

        return SQLiteBackend(path, federation=federation)
    raise InvalidInput(f"{str(path)!r} names no store: a path ends in .json, .db or .sqlite, a URL has a scheme")


def _open_sqlite(address: Address) -> KnowledgeStore:
    from model_opt.storage.sqlite import SQLiteBackend

    if address.parts.netloc:
        raise InvalidInput("sqlite:///relative.db or sqlite:////absolute.db: three slashes or four")
    if address.options:
        raise UnknownName("option of sqlite", sorted(address.options)[0], _OURS)
    return SQLiteBackend(unquote(address.parts.path[1:]), federation=address.federation)


def _open_neo4j(address: Address) -> KnowledgeStore:
    from model_opt.storage.neo4j_backend import Neo4jBackend

    parts = address.parts
    user = None if parts.username is None else unquote(parts.username)
    return Neo4jBackend(
        parts._replace(netloc=parts.netloc.rpartition("@")[2], path="", query=urlencode(address.options)).geturl(),
        user=user,
        password=None if parts.password is None else unquote(parts.password),
        database=parts.path.strip("/") or "neo4j",
        federation=address.federation,
    )


def _open_redis(address: Address) -> KnowledgeStore:
    from model_opt.storage.redis_backend import RedisBackend

    return RedisBackend(url=address.driver_url(), federation=address.federation)


def _open_mongodb(address: Address) -> KnowledgeStore:
    from model_opt.storage.mongodb import MongoDBBackend

    database = address.parts.path.strip("/") or "model_opt"
    return MongoDBBackend(address.driver_url(), database=database, federation=address.federation)


_SCHEMES: dict[str, Callable[[Address], KnowledgeStore]] = {
    "sqlite": _open_sqlite,
    **dict.fromkeys(("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc"), _open_neo4j),
    **dict.fromkeys(("redis", "rediss"), _open_redis),
    **dict.fromkeys(("mongodb", "mongodb+srv"), _open_mongodb),
}


def _indexed(store: KnowledgeStore, where: str) -> KnowledgeStore:
    from model_opt.storage.chroma_index import ChromaIndex
    from model_opt.storage.indexed import IndexedStore, inspectable

    if not where:
        raise InvalidInput("?chroma= names a folder, or the URL of a Chroma server")
    return IndexedStore(inspectable(store), ChromaIndex(where, federation=store.federation))
