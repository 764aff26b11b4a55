"""Searches on a real Ray cluster of several raylets, with everything in it killed in turn."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from made_up import OBJECTIVE, SPACE, Sleeping
from model_opt.actors import searches
from model_opt.actors.cluster import living_workers
from model_opt.cli import fleet as commands
from model_opt.errors import FleetError, FolderInUse, InvalidInput
from model_opt.federation.recorder import recorded
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.proposer import Search
from model_opt.fleet.submission import Placement, Sharing, Submission
from model_opt.measuring.deadlines import Deadlines
from model_opt.one_owner import take
from model_opt.search.evaluator import Measurement
from model_opt.search.model_signature import Family, ModelSignature
from model_opt.storage.open import open_store

NODE = {"object_store_memory": 80 << 20}
SEARCH = Search(space=SPACE, objective=OBJECTIVE)
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def nodes(cluster: Any) -> Iterator[list[Any]]:
    """Two raylets with two logical GPUs each."""
    yield [cluster.add_node(num_cpus=2, num_gpus=2, **NODE) for _ in range(2)]


def submit(
    name: str,
    tmp_path: Path,
    *,
    budget: int = 40,
    seconds: float = 0.1,
    time_s: float = 60.0,
    sharing: Sharing | None = None,
    **placement: Any,
) -> None:
    request = Submission(
        search=SEARCH,
        rules=FleetRules(budget=budget, objective=OBJECTIVE, lease_s=4.0),
        placement=Placement(**placement),
        deadlines=Deadlines(time_s=time_s),
        sharing=sharing,
    )
    searches.submit(
        partial(Sleeping, seconds, tmp_path), request, name=name, address="auto", state=str(tmp_path / "state")
    )


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def settled(name: str) -> int:
    return int(searches.status(name)["settled"])


def check(result: searches.FleetResult, budget: int) -> None:
    """Settled leases equal the budget, no plan was explored twice, and the rows are a re-fold of the outcomes."""
    assert result.status["settled"] == len(result.outcomes) == budget
    again: dict[str, Any] = {}
    for outcome in result.outcomes:
        if isinstance(outcome, Measurement):
            again[outcome.plan.key] = recorded(again.get(outcome.plan.key, {}), outcome)
    rows = {row.plan.key: row.moments for row in result.rows}
    if not result.status["extra"]:
        assert rows == again
    assert again.keys() <= rows.keys()
    assert result.recommendation is not None


def finish(name: str, budget: int) -> searches.FleetResult:
    result = searches.watch(name)
    assert result.ending == "budget"
    check(result, budget)
    searches.release(name)
    assert not living_workers(name)
    return result


def test_a_worker_per_gpu_and_a_fleet_that_repeats_nothing(nodes: list[Any], tmp_path: Path) -> None:
    seen: list[Any] = []
    result = searches.run_search(
        partial(Sleeping, 0.05, tmp_path),
        SEARCH,
        name="per-gpu",
        simulations=60,
        address="auto",
        state=str(tmp_path / "state"),
        gather=4,
        on_progress=seen.append,
    )
    check(result, 60)
    assert len({outcome.plan.key for outcome in result.outcomes}) == 60
    assert len(result.status["measured_by"]) == 4
    assert len(result.trials) == 60 and not result.trials[0].predicted and result.trials[-1].predicted
    assert seen[-1]["settled"] == 60
    assert result.context is not None
    assert result.context.device == "made up"
    searches.release("per-gpu")


def test_workers_children_and_coordinator_killed_and_a_child_that_hangs(nodes: list[Any], tmp_path: Path) -> None:
    submit("kills", tmp_path, budget=80, time_s=1.0, workers=2)
    until(lambda: settled("kills") >= 5)
    children = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    os.kill(children[0], signal.SIGKILL)
    (tmp_path / "exit").touch()
    (tmp_path / "hang").touch()
    slot = next(iter(living_workers("kills")))
    worker = ray.get_actor(living_workers("kills")[slot], namespace="model_opt")
    os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
    for _ in range(3):
        before = searches.status("kills")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: searches.status("kills")["term"] > before["term"])  # noqa: B023
        assert settled("kills") >= before["settled"]
    result = finish("kills", 80)
    assert result.status["term"] == 4
    assert set(result.status["failures"]) <= {"crash", "deadline"}
    assert not (tmp_path / "hang").exists()


def test_a_node_joins_and_gets_work_and_its_raylet_is_killed(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    submit("nodes", tmp_path, budget=60, seconds=0.2)
    joined = cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
    until(lambda: searches.status("nodes")["granted"] >= 5 and searches.status("nodes")["workers"] == 5)
    (tmp_path / "hold").unlink()
    until(lambda: len(searches.status("nodes")["measured_by"]) == 5)
    cluster.remove_node(joined, allow_graceful=False)
    finish("nodes", 60)


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from made_up import OBJECTIVE, SPACE, Sleeping
from model_opt.actors import searches
from model_opt.fleet.submission import Placement, Sharing
from model_opt.fleet.proposer import Search
from model_opt.search.model_signature import Family, ModelSignature

class Mine(Sleeping):
    pass

factory = partial(Mine, 0.1, Path(sys.argv[1]))
signature = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())
searches.run_search(factory, Search(space=SPACE, objective=OBJECTIVE), name="orphan", simulations=60,
                 address=sys.argv[2], state=sys.argv[1] + "/state", placement=Placement(workers=2),
                 sharing=Sharing(store=sys.argv[1] + "/knowledge.db", signature=signature))
"""


def test_a_search_survives_its_driver(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path), cluster.address],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    until(lambda: searches.list_searches(state=str(tmp_path / "state")).get("orphan") == "running")
    until(lambda: settled("orphan") >= 3)
    driver.kill()
    driver.wait()
    result = finish("orphan", 60)
    assert len(result.status["measured_by"]) == 2
    store = open_store(tmp_path / "knowledge.db")
    stored = {row.plan.key: dict(row.moments) for row in store.rows()}
    store.close()
    assert stored == {row.plan.key: row.moments for row in result.rows}


def test_planning_takes_place_elsewhere_than_measuring(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    device = cluster.add_node(num_cpus=2, labels={"class": "device"}, **NODE)
    server = cluster.add_node(num_cpus=1, labels={"class": "server"}, **NODE)
    submit("apart", tmp_path, budget=30, labels={"class": "device"}, search_labels={"class": "server"})
    until(lambda: searches.status("apart")["ending"])
    said = searches.result("apart").descriptions.values()
    assert {(one["measured_on"], one["planned_on"]) for one in said} == {(device.node_id, server.node_id)}
    assert len(finish("apart", 30).status["measured_by"]) == 2
    cluster.remove_node(device)
    cluster.remove_node(server)


@pytest.mark.soak
def test_metrics_reach_rays_exporter_by_their_names(nodes: list[Any], tmp_path: Path) -> None:
    from urllib.request import urlopen

    from model_opt.actors.metrics import EXPORTED

    submit("shown", tmp_path, budget=10_000, workers=2, time_s=1.0)
    (tmp_path / "exit").touch()
    ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]

    def shown() -> set[str]:
        texts = "".join(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode() for port in ports)
        return {name for name in EXPORTED if f"ray_{name}{{" in texts}

    until(lambda: shown() == set(EXPORTED))
    searches.stop("shown")
    searches.release("shown")


@pytest.mark.soak
def test_a_frozen_worker_is_replaced_in_its_leases_and_comes_back(nodes: list[Any], tmp_path: Path) -> None:
    submit("frozen", tmp_path, budget=60, workers=2)
    until(lambda: settled("frozen") >= 5)
    worker = ray.get_actor(next(iter(living_workers("frozen").values())), namespace="model_opt")
    pid = ray.get(worker.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: searches.status("frozen")["expired"] >= 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    finish("frozen", 60)


def test_a_stopped_search_is_extended_from_its_folder_and_unknown_names_are_told(
    nodes: list[Any], tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    submit("stopped", tmp_path, budget=10_000, workers=1)
    until(lambda: settled("stopped") >= 2)
    searches.stop("stopped")
    result = searches.watch("stopped")
    assert result.ending == "stopped"
    check(result, len(result.outcomes))
    searches.release("stopped")
    assert searches.list_searches(state=state) == {"stopped": "kept"}
    with pytest.raises(FleetError, match="no search 'absent' runs here"):
        searches.status("absent")
    with pytest.raises(FleetError, match=r"kept: stopped"):
        searches.resume("absent", state=state)
    with pytest.raises(InvalidInput, match="search"):
        submit("not a name/", tmp_path)
    searches.extend("stopped", 5, state=state)
    assert searches.list_searches(state=state) == {"stopped": "running"}
    until(lambda: settled("stopped") > len(result.outcomes))
    commands.release("stopped")
    assert searches.list_searches(state=state) == {"stopped": "kept"}


def test_resume_waits_until_what_was_left_behind_is_in_the_store(nodes: list[Any], tmp_path: Path) -> None:
    state, folder = str(tmp_path / "state"), tmp_path / "disk"
    folder.touch()
    signature = ModelSignature(family=Family.CNN, parameters=10, layers=2, operators={"linear": 2}, stages=())
    submit("late", tmp_path, budget=6, workers=1, sharing=Sharing(store=str(folder / "kb.db"), signature=signature))
    assert searches.watch("late").ending == "budget"
    assert searches.flushed("late", timeout_s=0.0)
    searches.release("late")
    folder.unlink()
    folder.mkdir()
    commands.resume("late", address="auto", state=state)
    with open_store(folder / "kb.db") as store:
        assert len(store.rows()) == searches.status("late")["rows"] > 0
    searches.release("late")


def search_of(factory: Callable[[], Sleeping], name: str, tmp_path: Path, workers: int) -> searches.FleetResult:
    state, placement = str(tmp_path / "state"), Placement(workers=workers)
    return searches.run_search(
        factory, SEARCH, name=name, simulations=5, address="auto", placement=placement, state=state
    )


def test_a_mistake_is_told_to_the_driver_and_once_mended_the_same_name_begins_anew(
    nodes: list[Any], tmp_path: Path
) -> None:
    def broken() -> Sleeping:
        raise ValueError("no such model")

    with pytest.raises(FleetError, match="no such model"):
        search_of(broken, "mistake", tmp_path, workers=1)
    assert searches.list_searches()["mistake"] == "failed"
    mended = search_of(partial(Sleeping, 0.02, tmp_path), "mistake", tmp_path, workers=1)
    assert (mended.ending, len(mended.outcomes)) == ("budget", 5)
    with pytest.raises(FleetError, match="model or evaluator is another one"):
        search_of(broken, "mistake", tmp_path, workers=1)  # what was measured is never given up
    searches.release("mistake")


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_start_does_not_end_a_search(nodes: list[Any], tmp_path: Path, workers: int) -> None:
    def starts_badly_once() -> Sleeping:
        """The first of all workers to come finds its device busy; those after it take a while to load."""
        try:
            (tmp_path / "first").touch(exist_ok=False)
        except FileExistsError:
            time.sleep(3)
            return Sleeping(0.02, tmp_path)
        raise RuntimeError("all devices are busy")

    name = f"bad-start-{workers}"
    result = search_of(starts_badly_once, name, tmp_path, workers)
    assert (result.ending, len(result.outcomes)) == ("budget", 5)
    searches.release(name)


def test_a_folder_in_which_another_coordinator_works_is_left_alone(nodes: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "state" / "twice"
    folder.mkdir(parents=True)
    owned = take(folder)
    with pytest.raises(FleetError, match=f"'twice' runs already: .* is in use by process {os.getpid()} on "):
        submit("twice", tmp_path, budget=2, workers=1)
    assert "twice" not in searches.list_searches()
    assert {path.name for path in folder.iterdir()} == {".lock", ".owner.json"}
    owned.release()
    submit("twice", tmp_path, budget=2, workers=1)
    assert searches.watch("twice").ending == "budget"
    with pytest.raises(FolderInUse, match=f"process {searches.status('twice')['pid']} on "):
        take(folder)
    searches.release("twice")
    take(folder).release()


def test_a_state_folder_that_cannot_be_used_is_told_in_a_line_and_may_be_mended(
    cluster: Any, nodes: list[Any], tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.touch()
    with pytest.raises(FleetError, match=r"state folder .*state/told on the head node cannot be used") as told:
        submit("told", tmp_path, budget=2, workers=1)
    assert "\n" not in str(told.value) and "told" not in searches.list_searches()
    state.unlink()
    submit("told", tmp_path, budget=2, workers=1)
    assert finish("told", 2).status["settled"] == 2


def test_another_versions_search_is_told_in_a_line(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "state" / "older"
    folder.mkdir(parents=True)
    (folder / "request.pickle").write_bytes(b"cmodel_opt.actors.gone\nSubmission\n.")
    (folder / "manifest.json").write_text('{"digest": "", "size_bytes": 0}')
    for _ in range(2):
        with pytest.raises(FleetError, match="begun by another version of model_opt") as told:
            submit("older", tmp_path, budget=2, workers=1)
        assert "\n" not in str(told.value)
    with pytest.raises(FleetError, match="begun by another version"):
        searches.resume("older", address="auto", state=str(tmp_path / "state"))
