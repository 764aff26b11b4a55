"""Real Ray clusters of several raylets on this machine; one per test module, and never `ray stop`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

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
    from ray.cluster_utils import Cluster

    from model_opt.actors.cluster import connect

    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the raylets' workers inherit it
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
    del os.environ["PYTHONPATH"]
