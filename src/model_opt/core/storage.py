"""The stores under the guide's import path."""

from model_opt.storage.chroma import ChromaDBBackend
from model_opt.storage.json_backend import JSONBackend
from model_opt.storage.mongodb import MongoDBBackend
from model_opt.storage.neo4j_backend import Neo4jBackend
from model_opt.storage.open import open_store
from model_opt.storage.redis_backend import RedisBackend
from model_opt.storage.sqlite import SQLiteBackend

__all__ = [
    "ChromaDBBackend",
    "JSONBackend",
    "MongoDBBackend",
    "Neo4jBackend",
    "RedisBackend",
    "SQLiteBackend",
    "open_store",
]
