"""Slots, bundles, metrics of time and the flush: the parts of a fleet that need no cluster."""

import json
import logging
import time
from pathlib import Path

import pytest

from made_up import CONTEXT, OBJECTIVE, SPACE, metrics
from model_opt.errors import FleetError, InvalidInput
from model_opt.fleet import submission
from model_opt.fleet.coordinator_service import CoordinatorService
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.flush import Flush, context_fact
from model_opt.fleet.leases import Holder
from model_opt.fleet.logs import JsonFormatter
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Placement, Sharing, Submission
from model_opt.fleet.worker_slots import ClusterNode, nodes_of, worker_slots
from model_opt.fleet.worker_state import WorkerState
from model_opt.search.evaluator import Measurement, Purpose
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.storage.open import open_store

A100 = {"ray.io/accelerator-type": "A100"}


def node(name: str, labels: dict[str, str] | None = None, **resources: float) -> ClusterNode:
    return ClusterNode(node_id=name * 12, resources=resources, labels=labels or {})


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement(), {"a": 2, "b": 1}),
        (Placement(gpus=0.5), {"a": 4, "b": 2}),
        (Placement(gpus=2), {"a": 1, "b": 0}),
        (Placement(gpus=0.0), {"a": 8, "b": 4, "c": 4}),
        (Placement(gpus=0.0, cpus=4), {"a": 2, "b": 1, "c": 1}),
        (Placement(labels=A100), {"b": 1}),
        (Placement(workers=2), {"a": 1, "b": 1}),
    ],
)
def test_slots(placement: Placement, expected: dict[str, int]) -> None:
    nodes = [node("a", GPU=2, CPU=8), node("b", A100, GPU=1, CPU=4), node("c", CPU=4)]
    slots = worker_slots(nodes, placement)
    found = {name: sum(slot.node_id[0] == name for slot in slots) for name in "abc"}
    assert found == {"a": 0, "b": 0, "c": 0} | expected
    assert len({slot.name for slot in slots}) == len(slots)


def test_without_a_gpu_slots_are_processors_and_dead_nodes_do_not_count() -> None:
    listing = [
        {"NodeID": "a" * 20, "Alive": True, "Resources": {"CPU": 2.0}, "Labels": {}},
        {"NodeID": "b" * 20, "Alive": False, "Resources": {"CPU": 2.0}},
    ]
    assert [slot.node_id[0] for slot in worker_slots(nodes_of(listing), Placement())] == ["a", "a"]


def request() -> Submission:
    return Submission(search=Search(space=SPACE, objective=OBJECTIVE), rules=FleetRules(budget=3, objective=OBJECTIVE))


def test_a_bundle_travels_in_pieces_and_is_known_by_its_content(tmp_path: Path) -> None:
    load = bytes(range(256)) * (submission.CHUNK_BYTES // 200)
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    path, manifest = submission.pickled(lambda: load, there)  # type: ignore[arg-type, return-value]
    assert len(list(submission.chunks(path))) == 2
    assert not submission.is_complete(there)
    submission.complete(there, manifest, request())
    assert submission.read(there)[0] == manifest
    assert submission.read(there)[1].rules == request().rules
    asked: list[int] = []

    def fetch(number: int) -> bytes:
        asked.append(number)
        return submission.read_chunk(path, number)

    assert submission.fetched(manifest, here, fetch).read_bytes() == path.read_bytes()
    cached = submission.fetched(manifest, here, fetch)
    assert asked == [0, 1]
    cached.write_bytes(bytes(manifest.size_bytes))
    assert submission.fetched(manifest, here, fetch).read_bytes() == path.read_bytes(), "damaged, and as long as before"
    with pytest.raises(FleetError, match="did not arrive"):
        submission.fetched(manifest, tmp_path / "damaged", lambda number: b"x" * len(fetch(number)))
    path.write_bytes(b"cut off")
    with pytest.raises(FleetError, match="submit it again"):
        submission.complete(there, manifest, request())


def test_what_cannot_be_pickled_fails_at_submission(tmp_path: Path) -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(InvalidInput, match="cannot be sent to the cluster"):
        submission.pickled(lambda: lock, tmp_path)  # type: ignore[arg-type, return-value]


def test_merged_rows_reach_the_store_once_across_restarts(tmp_path: Path) -> None:
    signature = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())
    sharing = Sharing(store=f"sqlite:///{tmp_path / 'knowledge.db'}", signature=signature, origin="me")
    rules = FleetRules(budget=4, objective=OBJECTIVE)
    worker = WorkerState(Holder(worker="a", incarnation="1"), CONTEXT.key)
    for life in range(2):
        service = CoordinatorService.at(tmp_path / "state", rules)
        service.remember(context_fact(CONTEXT))
        for number in range(2):
            plan = SPACE.plan({"d0": str(1 + life), "d1": str(number)})
            worker.hear(service.ask(worker.question(proposals=[(plan, Purpose.EXPLORE)], wanted=1)))
            grant = worker.start()
            assert grant is not None
            worker.finish(Measurement(plan=plan, samples={k: (v,) for k, v in metrics(plan).items()}), 0.1)
            worker.hear(service.ask(worker.question()))
        flush = Flush(service, sharing)
        flush.close()
        assert flush.error is None
        expected = {(row.plan.key, row.context): row.moments for row in service.rows()}
        epoch = service.status()["epoch"]
        service.close()
    store = open_store(sharing.store)
    rows = store.rows()
    assert {(row.plan.key, row.context): dict(row.moments) for row in rows} == expected
    assert len(rows) == 4
    assert {(row.origin, row.epoch, row.signature) for row in rows} == {("me", epoch, signature.key)}
    store.close()


def test_a_store_that_cannot_be_reached_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    signature = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())
    sharing = Sharing(store=f"sqlite:///{tmp_path / 'file' / 'knowledge.db'}", signature=signature)
    service = CoordinatorService.at(tmp_path / "state", FleetRules(budget=1, objective=OBJECTIVE))
    service.remember(context_fact(CONTEXT))
    worker = WorkerState(Holder(worker="a", incarnation="1"), CONTEXT.key)
    plan = SPACE.plan({"d0": "1"})
    worker.hear(service.ask(worker.question(proposals=[(plan, Purpose.EXPLORE)], wanted=1)))
    worker.start()
    worker.finish(Measurement(plan=plan, samples={"latency_ms": (1.0,)}), 0.1)
    flush = Flush(service, sharing)
    assert service.ask(worker.question()).ending == "budget"
    flush.close()
    assert flush.error is not None
    service.close()


def test_logs_are_json_with_ids() -> None:
    record = logging.LogRecord("model_opt.x", logging.INFO, "f", 1, "worker %s", ("a",), None)
    line = json.loads(JsonFormatter({"search": "s"}).format(record))
    assert (line["message"], line["search"], line["level"]) == ("worker a", "s", "info")
    assert line["at"].startswith(time.strftime("%Y"))
