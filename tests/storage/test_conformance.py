"""Every store passes the public suite, each against its real server."""

from pathlib import Path

import pytest

from model_opt.federation.known import InspectableStore
from model_opt.storage.chroma import ChromaDBBackend
from model_opt.storage.mongodb import MongoDBBackend
from model_opt.storage.open import open_store
from model_opt.storage.redis_backend import RedisBackend
from model_opt.storage.testing import StoreConformance
from servers.starting import Server


class TestSQLite(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "knowledge.db"

    def open(self, federation: str) -> InspectableStore:
        return open_store(f"sqlite:///{self.path}", federation)


class TestJSON(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "knowledge.json"

    def open(self, federation: str) -> InspectableStore:
        return open_store(self.path, federation)


class TestSQLiteWithEmbeddedChroma(StoreConformance):
    """One owner of the index, as Chroma demands: the second object goes without."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def open(self, federation: str) -> InspectableStore:
        return ChromaDBBackend(self.path / "index", store=self.path / "knowledge.db", federation=federation)


@pytest.mark.server
class TestRedis(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, redis_server: Server) -> None:
        self.url = redis_server.url

    def open(self, federation: str) -> InspectableStore:
        return open_store(self.url, federation)


@pytest.mark.server
class TestRedisByItsClass(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, redis_server: Server) -> None:
        from urllib.parse import urlparse

        self.parts = urlparse(redis_server.url)

    def open(self, federation: str) -> InspectableStore:
        return RedisBackend(
            host=self.parts.hostname, port=self.parts.port, password=self.parts.password, federation=federation
        )


@pytest.mark.server
class TestMongoDB(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, mongodb_server: Server) -> None:
        self.url = mongodb_server.url

    def open(self, federation: str) -> InspectableStore:
        return MongoDBBackend(connection_string=self.url, federation=federation)


@pytest.mark.server
@pytest.mark.filterwarnings("error::neo4j.warnings.Neo4jWarning")
class TestNeo4j(StoreConformance):
    """Notifications of the server are errors here."""

    @pytest.fixture(autouse=True)
    def _place(self, neo4j_server: Server) -> None:
        self.url = neo4j_server.url

    def open(self, federation: str) -> InspectableStore:
        return open_store(self.url, federation)


@pytest.mark.server
class TestNeo4jWithChromaServer(StoreConformance):
    @pytest.fixture(autouse=True)
    def _place(self, neo4j_server: Server, chroma_server: Server) -> None:
        self.url = f"{neo4j_server.url}?chroma={chroma_server.url}"

    def open(self, federation: str) -> InspectableStore:
        return open_store(self.url, federation)
