"""The head node itself: lost with its state folder kept, and given a job to run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from model_opt.actors import searches
from model_opt.actors.cluster import connect

pytestmark = pytest.mark.timeout(150)


def head(**arguments: Any) -> Cluster:
    node = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False} | arguments
    return Cluster(initialize_head=True, head_node_args=node)


def until(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


SUBMIT = """
import json, sys, time
from functools import partial
from pathlib import Path
from made_up import OBJECTIVE, SPACE, Sleeping
from model_opt.actors import searches
from model_opt.fleet.submission import Placement, Submission
from model_opt.fleet.coordinator_state import FleetRules
from model_opt.fleet.proposer import Search
address, folder = sys.argv[1], Path(sys.argv[2])
request = Submission(search=Search(space=SPACE, objective=OBJECTIVE), placement=Placement(workers=2),
                  rules=FleetRules(budget=40, objective=OBJECTIVE, lease_s=4.0))
searches.submit(partial(Sleeping, 0.1, folder), request, name="lost", address=address, state=str(folder / "state"))
while (status := searches.status("lost", address=address))["settled"] < 8:
    time.sleep(0.05)
print(json.dumps({"term": status["term"], "epoch": status["epoch"]}))
"""


def test_a_new_head_goes_on_from_the_folder_of_the_lost_one(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    first = head()
    # a driver of its own: Ray ends a driver whose raylet dies, and this process must outlive it
    submitted = subprocess.run(
        [sys.executable, "-c", SUBMIT, first.address, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
    )
    assert submitted.returncode == 0, submitted.stderr
    before = json.loads(submitted.stdout.splitlines()[-1])
    for process in first.head_node.all_processes.values():
        for info in process:
            info.process.kill()
    first.shutdown()
    second = head()
    try:
        connect(second.address)
        assert searches.list_searches(state=state) == {"lost": "kept"}
        searches.resume("lost", state=state)
        result = searches.watch("lost")
        assert (result.ending, len(result.outcomes)) == ("budget", 40)
        assert result.status["term"] > before["term"]
        assert result.status["epoch"] == before["epoch"]
        searches.release("lost")
    finally:
        ray.shutdown()
        second.shutdown()


JOB = """
import sys
from functools import partial
from made_up import OBJECTIVE, SPACE, Sleeping
from model_opt.actors import searches
from model_opt.fleet.submission import Placement
from model_opt.fleet.proposer import Search
result = searches.run_search(partial(Sleeping, 0.02), Search(space=SPACE, objective=OBJECTIVE), name="job",
                          simulations=20, address="auto", state=sys.argv[1], placement=Placement(workers=1))
print("settled", result.status["settled"])
searches.release("job")
"""


@pytest.mark.soak
def test_a_search_as_a_submitted_job(tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    (tmp_path / "job.py").write_text(JOB)
    made = head(include_dashboard=True, dashboard_port=0)
    try:
        client = JobSubmissionClient(f"http://{made.head_node.webui_url}")
        job = client.submit_job(
            entrypoint=f"{sys.executable} {tmp_path / 'job.py'} {tmp_path}",
            runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
        )
        until(lambda: client.get_job_status(job).is_terminal())
        assert client.get_job_status(job) is JobStatus.SUCCEEDED, client.get_job_logs(job)
        assert "settled 20" in client.get_job_logs(job)
    finally:
        made.shutdown()
