"""The statements that the Neo4j store runs. Nodes are written before relationships, rows are guarded by sequence."""

_LABELS = ("Signature", "State", "Plan", "Measurement", "Origin", "Context", "Record", "Fact")
SCHEMA = (
    *(
        f"CREATE CONSTRAINT model_opt_{label.lower()} IF NOT EXISTS FOR (n:{label}) REQUIRE n.key IS UNIQUE"
        for label in _LABELS
    ),
    "CREATE INDEX model_opt_measurement_scope IF NOT EXISTS FOR (n:Measurement) ON (n.scope)",
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
READ_PLANS = "UNWIND $keys AS key MATCH (p:Plan {key: key}) RETURN p.key AS key"
PUT_STATES = """
UNWIND $states AS state
MERGE (s:State {key: state.key}) ON CREATE SET s.fresh = true
WITH s, state WHERE s.fresh
REMOVE s.fresh
WITH s, state
MATCH (parent:State {key: state.parent})
CREATE (parent)-[:OPTION {decision: state.decision, option: state.option}]->(s)
"""
PUT_PLANS = """
UNWIND $plans AS plan
MATCH (s:State {key: plan.key})
MERGE (p:Plan {key: plan.key}) ON CREATE SET p = plan
MERGE (s)-[:PLAN]->(p)
"""
PUT_MEASUREMENTS = """
MATCH (o:Origin {key: $origin})
UNWIND $rows AS row
MERGE (m:Measurement {key: row.key}) ON CREATE SET m.sequence = 0
WITH o, m, row, m.sequence AS known
WHERE known < row.sequence
SET m = row.values
WITH o, m, row WHERE known = 0
MATCH (p:Plan {key: row.plan})
CREATE (m)-[:OF]->(p)
CREATE (m)-[:BY]->(o)
"""

READ_DIGESTS = "UNWIND $keys AS key MATCH (r:Record {key: key}) RETURN r.key AS key, r.digest AS digest"
PUT_RECORD = """
MERGE (c:Fact {key: $counter}) ON CREATE SET c.value = 0
SET c.value = c.value + 0
MERGE (r:Record {key: $key})
ON CREATE SET r.federation = $federation, r.origin = $origin, r.law = $law, r.digest = $digest, r.data = $data,
  r.cursor = c.value + 1, c.value = c.value + 1, r.fresh = true
WITH r, coalesce(r.fresh, false) AS new
REMOVE r.fresh
RETURN r.digest AS digest, CASE WHEN new THEN 1 ELSE 0 END AS new
"""
"""Setting the counter locks it until the transaction ends: cursors become visible in their order."""

READ_RECORDS = """
MATCH (r:Record) WHERE r.federation = $federation AND r.cursor > $since
RETURN r.cursor AS cursor, r.data AS data ORDER BY r.cursor LIMIT $limit
"""
READ_LAWS = """
MATCH (r:Record) WHERE r.federation = $federation AND r.law = true AND r.cursor > $since
RETURN r.cursor AS cursor, r.data AS data ORDER BY r.cursor LIMIT $limit
"""
READ_MEASUREMENTS = """
MATCH (m:Measurement {scope: $scope})-[:OF]->(p:Plan)
RETURN properties(m) AS m, p.choices AS choices
"""
READ_SIGNATURES = "MATCH (s:Signature {federation: $federation}) RETURN s.signature AS key, s.value AS value"
READ_CONTEXTS = "MATCH (c:Context {federation: $federation}) RETURN c.context AS key, c.value AS value"
COUNT_SIGNATURES = "MATCH (s:Signature {federation: $federation}) RETURN count(s) AS count"
COUNT_ALL = """
RETURN COUNT { MATCH (r:Record) WHERE r.federation = $federation AND r.cursor > 0 } AS records,
  COUNT { MATCH (m:Measurement) WHERE m.scope STARTS WITH $federation + '|' } AS rows,
  COUNT { MATCH (s:Signature {federation: $federation}) } AS signatures,
  COUNT { MATCH (c:Context {federation: $federation}) } AS contexts,
  COUNT { MATCH (o:Origin {federation: $federation}) } AS origins
"""

FORGET = (
    """
    MATCH (m:Measurement) WHERE m.scope STARTS WITH $federation + '|'
      AND ($origin IS NULL OR m.origin = $origin) AND ($epochs IS NULL OR m.epoch IN $epochs)
    WITH m LIMIT $limit DETACH DELETE m RETURN count(*) AS gone
    """,
    """
    MATCH (p:Plan) WHERE p.key STARTS WITH $federation + '|' AND NOT EXISTS { (p)<-[:OF]-() }
    WITH p LIMIT $limit DETACH DELETE p RETURN count(*) AS gone
    """,
    """
    MATCH (s:Signature {federation: $federation})
    WHERE NOT EXISTS { MATCH (m:Measurement {scope: s.key}) }
    WITH s LIMIT $limit DETACH DELETE s RETURN count(*) AS gone
    """,
    """
    MATCH (s:State) WHERE s.key STARTS WITH $federation + '|'
      AND NOT EXISTS { (s)-[:OPTION]->() } AND NOT EXISTS { (s)-[:PLAN]->() } AND NOT EXISTS { (s)<-[:ROOT]-() }
    WITH s LIMIT $limit DETACH DELETE s RETURN count(*) AS gone
    """,
)

FOLD = """
MATCH (s:Signature {key: $signature})-[:ROOT]->(root:State)
MATCH (root)-[:OPTION*0..]->(:State)-[edge:OPTION]->(below:State)
MATCH (below)-[:OPTION*0..]->(:State)-[:PLAN]->(plan:Plan)<-[:OF]-(m:Measurement)
WITH edge, count(DISTINCT plan) AS plans, sum(coalesce(m.log_speedup_n, 0)) AS samples,
  avg(m.log_speedup_mean) AS log_speedup, avg(m.log_size_ratio_mean) AS log_size_ratio,
  avg(m.accuracy_drop_mean) AS accuracy_drop
SET edge.derived = true, edge.plans = plans, edge.samples = samples, edge.log_speedup_mean = log_speedup,
  edge.log_size_ratio_mean = log_size_ratio, edge.accuracy_drop_mean = accuracy_drop
RETURN count(edge) AS edges
"""
