"""The queries of the documentation run on a graph that two origins have written."""

import re
import secrets
from pathlib import Path

import pytest

from model_opt.federation.stream import Stream
from model_opt.storage.neo4j_backend import Neo4jBackend
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
    store.close()


SCHEMA_1 = (
    """
    MATCH (:Signature {federation: $federation})-[:ROOT]->(root:State)
    MATCH (root)-[:OPTION*0..]->(state:State)
    WITH DISTINCT state WHERE state:Plan
    REMOVE state:Plan
    CREATE (state)-[:PLAN]->(plan:Plan)
    SET plan = properties(state), state = {key: state.key}
    WITH state, plan MATCH (state)<-[edge:OF]-(m:Measurement)
    DELETE edge CREATE (m)-[:OF]->(plan)
    """,
    "MATCH (f:Fact {key: $federation + '|rows'}) SET f.value = 1",
)
"""Lays a graph out as schema 1 did: plans are nodes of their own."""
_APART = """
MATCH (:Signature {federation: $federation})-[:ROOT]->(root:State)
MATCH (root)-[:OPTION*0..]->(:State)-[:PLAN]->(plan:Plan)
RETURN count(DISTINCT plan) AS plans
"""


@pytest.mark.server
def test_a_graph_of_schema_1_is_laid_out_anew(neo4j_server: Server) -> None:
    federation = f"old-{secrets.token_hex(6)}"
    store = open_store(neo4j_server.url, federation)
    assert isinstance(store, Neo4jBackend)
    stream = Stream(origin="alpha", federation=federation)
    store.append(stream.mint(RESNET18, entries(20, 3)), stream.mint(VIT_B, entries(10)))
    rows = store.rows()
    for statement in SCHEMA_1:
        store._run(statement, federation=federation)
    assert store.rows() == [] and store._read(_APART, federation=federation)[0]["plans"] == 30
    store.close()
    assert store.rows() == rows and len(rows) == 30
    assert store._schema() == Neo4jBackend.rows_schema
    assert store._read(_APART, federation=federation)[0]["plans"] == 0
    store.append(stream.mint(RESNET18, entries(25, 4)))
    assert len(store.rows([RESNET18.key])) == 25
    store.close()
