"""A real split of the network: two hosts in network namespaces, and a cable that is pulled and put back."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HEAD, HOST = "10.77.12.1", "10.77.12.2"
A, B = "model-opt-a", "model-opt-b"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

SEARCH = """
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
                  rules=FleetRules(budget=400, objective=OBJECTIVE, gather=2, gather_s=120.0, lease_s=4.0))
searches.submit(partial(Sleeping, 0.2, folder), request, name="split", address=address, state=str(folder / "state"))

def say(status):
    print(json.dumps({name: status[name] for name in ("settled", "workers", "expired", "measured_by")}), flush=True)

result = searches.watch("split", address=address, on_progress=say)
rows = sum(moments["latency_ms"].n for moments in (row.moments for row in result.rows))
print(json.dumps({"ending": result.ending, "outcomes": len(result.outcomes), "samples": rows,
                  "extra": result.status["extra"], "expired": result.status["expired"],
                  "measured_by": result.status["measured_by"]}), flush=True)
searches.release("split", address=address)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces joined by one cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", A)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    try:
        ip("netns", "add", B)
        ip("link", "add", "veth-a", "netns", A, "type", "veth", "peer", "name", "veth-b", "netns", B)
        for space, cable, address in ((A, "veth-a", HEAD), (B, "veth-b", HOST)):
            ip("-n", space, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", space, "link", "set", cable, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield
    finally:
        for space in (A, B):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=30)


def inside(space: str, *command: str, **more: Any) -> "subprocess.Popen[str]":
    settings = {"PYTHONPATH": str(Path(__file__).parents[1]), "RAY_AUTH_MODE": "disabled"}
    settings |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.Popen(["ip", "netns", "exec", space, *command], env={**os.environ, **settings}, text=True, **more)


def ray_node(space: str, address: str, folder: Path, *more: str) -> "subprocess.Popen[str]":
    small = ("--num-cpus=1", "--object-store-memory=100000000", f"--node-ip-address={address}", f"--temp-dir={folder}")
    log = (folder.parent / f"{folder.name}.log").open("w")
    return inside(space, "ray", "start", "--block", *small, *more, stdout=log, stderr=log, start_new_session=True)


def end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_a_search_heals_after_a_split(hosts: None, tmp_path: Path) -> None:
    """The far worker is cut off for longer than its leases live: they are leased again, and what it measured meanwhile
    comes in when the cable is back."""
    head = ray_node(A, HEAD, Path("/tmp/model-opt-split-a"), "--head", "--port=6479", "--include-dashboard=false")
    far = driver = None
    try:
        time.sleep(8)
        far = ray_node(B, HOST, Path("/tmp/model-opt-split-b"), f"--address={HEAD}:6479")
        (tmp_path / "search.py").write_text(SEARCH)
        driver = inside(
            A, sys.executable, str(tmp_path / "search.py"), f"{HEAD}:6479", str(tmp_path), stdout=subprocess.PIPE
        )
        lines = driver.stdout
        assert lines is not None
        told: dict[str, Any] = {"settled": 0, "measured_by": {}}
        while told["settled"] < 20 or len(told["measured_by"]) < 2:
            told = json.loads(lines.readline())
        ip("-n", B, "link", "set", "veth-b", "down")
        before = dict(told["measured_by"])
        while not told["expired"]:
            told = json.loads(lines.readline())
        time.sleep(2)
        ip("-n", B, "link", "set", "veth-b", "up")
        while "ending" not in told:
            told = json.loads(lines.readline())
        assert driver.wait(60) == 0
    finally:
        for process in (driver, far, head):
            if process is not None:
                end(process)
        for letter in "ab":
            shutil.rmtree(f"/tmp/model-opt-split-{letter}", ignore_errors=True)
    assert (told["ending"], told["outcomes"]) == ("budget", 400)
    assert told["samples"] == 400 + told["extra"]
    assert told["expired"] >= 1
    assert all(told["measured_by"][worker] > count for worker, count in before.items()), (before, told)
