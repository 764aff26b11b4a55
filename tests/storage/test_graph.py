"""The queries of the documentation run on a graph that two origins have written."""

import re
import secrets
from pathlib import Path

import pytest

from model_opt.federation.stream import Stream
from model_opt.storage.neo4j_graph import Neo4jBackend
from model_opt.storage.open import open_store
from model_opt.storage.testing import RESNET18, VIT_B, entries
from servers.starting import Server

PAGE = Path(__file__).parents[2] / "docs" / "storage.md"
QUERIES = re.findall(r"```cypher\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.server
@pytest.mark.filterwarnings("error::neo4j.warnings.Neo4jWarning")
def test_the_documented_queries_answer(neo4j_server: Server) -> None:
    federation = f"graph-{secrets.token_hex(6)}"
    store = open_store(neo4j_server.url, federation)
    assert isinstance(store, Neo4jBackend)
    for origin in ("alpha", "beta"):
        stream = Stream(origin=origin, federation=federation)
        store.append(stream.mint(RESNET18, entries(20, 3)), stream.mint(VIT_B, entries(10)))
    assert len(QUERIES) == 5
    answers = [[record.data() for record in store._read(query)] for query in QUERIES]
    assert all(answers)
    assert {"alpha", "beta"} & {answer["origin"] for answer in answers[0]}
    assert answers[1][0]["origins"] >= 2
    assert store.fold_statistics(RESNET18.key) > 0
    store.close()
