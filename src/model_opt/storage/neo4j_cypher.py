"""The statements that the Neo4j store runs. Rows are guarded by sequence."""

_LABELS = ("Signature", "State", "Measurement", "Origin", "Context", "Record", "Fact")
SCHEMA = (
    *(
        f"CREATE CONSTRAINT model_opt_{label.lower()} IF NOT EXISTS FOR (n:{label}) REQUIRE n.key IS UNIQUE"
        for label in _LABELS
    ),
    "DROP INDEX model_opt_measurement_scope IF EXISTS",
    "CREATE INDEX model_opt_record_order IF NOT EXISTS FOR (n:Record) ON (n.federation, n.cursor)",
    "CREATE INDEX model_opt_record_laws IF NOT EXISTS FOR (n:Record) ON (n.federation, n.law, n.cursor)",
    "CREATE INDEX model_opt_signature_federation IF NOT EXISTS FOR (n:Signature) ON (n.federation)",
    "CREATE INDEX model_opt_origin_federation IF NOT EXISTS FOR (n:Origin) ON (n.federation)",
    "CREATE INDEX model_opt_context_federation IF NOT EXISTS FOR (n:Context) ON (n.federation)",
    "CALL db.awaitIndexes(60)",
)

READ_FACT = "MATCH (f:Fact {key: $key}) RETURN f.value AS value"
PUT_FACT = "MERGE (f:Fact {key: $key}) SET f.value = $value"

PUT_VALUES = """
MERGE (s:Signature {key: $signature.key}) ON CREATE SET s = $signature
MERGE (r:State {key: $root})
MERGE (s)-[:ROOT]->(r)
MERGE (o:Origin {key: $origin.key}) ON CREATE SET o = $origin
"""
PUT_CONTEXTS = "UNWIND $contexts AS context MERGE (c:Context {key: context.key}) ON CREATE SET c = context"
READ_PLANS = "UNWIND $keys AS key MATCH (p:State {key: key}) WHERE p:Plan RETURN p.key AS key"
READ_STATES = "UNWIND $keys AS key MATCH (s:State {key: key}) RETURN s.key AS key"
PUT_STATES = """
UNWIND $states AS state
MATCH (parent:State {key: state.parent})
CREATE (parent)-[:OPTION {decision: state.decision, option: state.option}]->(:State {key: state.key})
RETURN count(*) AS made
"""
PUT_STATES_OF_PLANS = """
UNWIND $states AS state
MATCH (parent:State {key: state.parent})
CREATE (parent)-[:OPTION {decision: state.decision, option: state.option}]->(p:State:Plan)
SET p += state.plan
RETURN count(*) AS made
"""
PUT_PLANS = """
UNWIND $plans AS plan
MATCH (p:State {key: plan.key})
SET p:Plan, p += plan
RETURN count(*) AS made
"""
UPDATE_MEASUREMENTS = """
UNWIND $rows AS row
MATCH (m:Measurement {key: row.values.key})
SET m.sequence = m.sequence + 0
FOREACH (_ IN CASE WHEN m.sequence < row.values.sequence THEN [1] ELSE [] END | SET m = row.values)
RETURN m.key AS key
"""
"""Those that are there. The first SET takes the node's lock before its sequence is read."""
PUT_MEASUREMENTS = """
MATCH (o:Origin {key: $origin})
UNWIND $rows AS row
MATCH (p:State {key: row.plan}) WHERE p:Plan
CREATE (p)<-[:OF]-(m:Measurement)-[:BY]->(o)
SET m += row.values
RETURN count(*) AS made
"""

READ_DIGESTS = "UNWIND $keys AS key MATCH (r:Record {key: key}) RETURN r.key AS key, r.digest AS digest"
LOCK_CURSOR = """
MERGE (c:Fact {key: $counter}) ON CREATE SET c.value = 0
SET c.value = c.value + 0
RETURN c.value AS last
"""
"""Setting the counter locks it until the transaction ends: cursors become visible in their order."""
PUT_RECORDS = """
MATCH (c:Fact {key: $counter}) SET c.value = $last
WITH c
UNWIND $records AS record
CREATE (r:Record)
SET r = record
"""

READ_RECORDS = """
MATCH (r:Record) WHERE r.federation = $federation AND r.cursor > $since
RETURN r.cursor AS cursor, r.data AS data ORDER BY r.cursor LIMIT $limit
"""
READ_LAWS = """
MATCH (r:Record) WHERE r.federation = $federation AND r.law = true AND r.cursor > $since
RETURN r.cursor AS cursor, r.data AS data ORDER BY r.cursor LIMIT $limit
"""
READ_MEASUREMENTS = """
MATCH (s:Signature {key: $signature})-[:ROOT]->(root:State)
MATCH (root)-[:OPTION*0..]->(p:Plan)<-[:OF]-(m:Measurement)
RETURN properties(m) AS m, p.choices AS choices
"""
READ_SIGNATURES = "MATCH (s:Signature {federation: $federation}) RETURN s.signature AS key, s.value AS value"
READ_CONTEXTS = "MATCH (c:Context {federation: $federation}) RETURN c.context AS key, c.value AS value"
COUNT_SIGNATURES = "MATCH (s:Signature {federation: $federation}) RETURN count(s) AS count"
COUNT_ALL = """
RETURN COUNT { MATCH (r:Record) WHERE r.federation = $federation AND r.cursor > 0 } AS records,
  COUNT { MATCH (:Origin {federation: $federation})<-[:BY]-() } AS rows,
  COUNT { MATCH (s:Signature {federation: $federation}) } AS signatures,
  COUNT { MATCH (c:Context {federation: $federation}) } AS contexts,
  COUNT { MATCH (o:Origin {federation: $federation}) } AS origins
"""

FORGET = (
    """
    MATCH (o:Origin {federation: $federation})<-[:BY]-(m:Measurement)
    WHERE ($origin IS NULL OR o.name = $origin) AND ($epochs IS NULL OR m.epoch IN $epochs)
    WITH m LIMIT $limit DETACH DELETE m RETURN count(*) AS gone
    """,
    """
    MATCH (:Signature {federation: $federation})-[:ROOT]->(root:State)
    MATCH (root)-[:OPTION*0..]->(:State)-[:PLAN]->(p:Plan)
    WITH p LIMIT $limit DETACH DELETE p RETURN count(*) AS gone
    """,
    """
    MATCH (:Signature {federation: $federation})-[:ROOT]->(root:State)
    MATCH (root)-[:OPTION*0..]->(p:Plan) WHERE NOT EXISTS { (p)<-[:OF]-() }
    WITH p LIMIT $limit REMOVE p:Plan RETURN count(*) AS gone
    """,
    """
    MATCH (:Signature {federation: $federation})-[:ROOT]->(root:State)
    MATCH (root)-[:OPTION*1..]->(s:State) WHERE NOT s:Plan AND NOT EXISTS { (s)-[:OPTION]->() }
    WITH s LIMIT $limit DETACH DELETE s RETURN count(*) AS gone
    """,
    """
    MATCH (s:Signature {federation: $federation})-[:ROOT]->(root:State)
    WHERE NOT root:Plan AND NOT EXISTS { (root)-[:OPTION]->() }
    WITH s, root LIMIT $limit DETACH DELETE s, root RETURN count(*) AS gone
    """,
)
"""From the leaves up: measurements, plans without any, states that lead nowhere, signatures with nothing left.

In schema 1 plans were nodes of their own, behind `:PLAN`.
"""
