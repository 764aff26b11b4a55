"""Real Ray clusters of several raylets on this machine; one per test module, and never `ray stop`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  (as the product's own clusters: Ray's default is 15)
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch for a cluster on the loopback address

QUICK_HEALTH = {
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head without room for workers; tests add nodes. Connected, in the product's namespace."""
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    from model_opt.actors.cluster import connect

    ray_constants.ENABLE_RAY_CLUSTER = False  # where Ray was imported before the switch was set
    before, own = os.environ.get("PYTHONPATH"), str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = own if before is None else own + os.pathsep + before  # the raylets' workers inherit it
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": QUICK_HEALTH,
            "object_store_memory": 100 << 20,
        },
    )
    connect(made.address)
    yield made
    ray.shutdown()
    made.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
